"""Texts as they grow: ids become characters, and a stop text ends one."""

from collections.abc import Sequence
from typing import NamedTuple

from charlm.text.tokenizer import Tokenizer

Alternatives = list[tuple[str, float]]


class Piece(NamedTuple):
    """What one character adds to a text; of a model of bytes, the bytes that make it.

    Args:
        text: The character.
        nats: Its log-probability under the model itself, before temperature and filters.
        likely: What was likely in its place with probabilities, the likeliest first, where that is
            asked for; of a model of bytes, in the place of its last byte.
    """

    text: str
    nats: float
    likely: Alternatives | None = None


class TextStream:
    """One text as it is drawn; it holds back only what may still turn out otherwise.

    That is the beginning of a stop text, or of a character of several bytes.

    Args:
        tokenizer: Of the model.
        stops: Texts that end it; they are not part of it.

    Attributes:
        ended: Whether a stop text has come.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.ended = False
        self._decoder = tokenizer.stream_decoder()
        self._stops = [stop for stop in stops if stop]
        self._nats = 0.0  # of the bytes of a character that is not complete
        self._held: list[Piece] = []

    def push(self, idx: int, nats: float, likely: Alternatives | None = None) -> list[Piece]:
        """Take one more id; return what is certain now and was not before."""
        if self.ended:
            return []
        text = self._decoder.push(idx)
        if not text:
            self._nats += nats
            return []
        # Bytes that turn out to be no character come together with what shows it: theirs are the
        # first characters of the text, and the last is this id's.
        pieces = [Piece(c, 0.0) for c in text[:-1]] + [Piece(text[-1], nats, likely)]
        pieces[0] = pieces[0]._replace(nats=pieces[0].nats + self._nats)
        self._nats = 0.0
        if not self._stops:
            return pieces
        self._held += pieces
        held = "".join(piece.text for piece in self._held)
        end = self._first_stop(held)
        if not self.ended:
            end -= self._beginning_of_a_stop(held)
        given, self._held = self._held[:end], [] if self.ended else self._held[end:]
        return given

    def finish(self) -> list[Piece]:
        """Return what was held back: nothing more will come."""
        rest = "" if self.ended else self._decoder.finish()
        given, self._held = self._held + [Piece(c, 0.0) for c in rest], []
        if rest:
            given[-len(rest)] = Piece(rest[0], self._nats)
        return given[: self._first_stop("".join(piece.text for piece in given))]

    def _first_stop(self, held: str) -> int:
        """Return where the first stop text begins, which ends this one; where none does, the end."""
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        self.ended = self.ended or bool(found)
        return min(found, default=len(held))

    def _beginning_of_a_stop(self, held: str) -> int:
        """Return how many characters at the end of what is held could be the start of a stop."""
        for length in range(min(len(held), max(map(len, self._stops)) - 1), 0, -1):
            if any(stop.startswith(held[-length:]) for stop in self._stops):
                return length
        return 0
