"""Texts as they grow: turn ids into characters, and end at a stop text."""

from collections.abc import Sequence
from typing import NamedTuple

from charlm.text.tokenizer import Tokenizer

Alternatives = list[tuple[str, float]]


class Piece(NamedTuple):
    """One character of a text.

    Args:
        text: The character.
        nats: Its log-probability under the model itself, before temperature and filters. For a
            model of bytes, the sum over its bytes.
        likely: The most likely characters in its place and their probabilities, if asked for. For
            a model of bytes, in the place of its last byte.
    """

    text: str
    nats: float
    likely: Alternatives | None = None


class TextStream:
    """One text as it is drawn; it holds back only what may still change.

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
        self._nats = 0.0  # of the bytes of an incomplete character
        self._held: list[Piece] = []

    def push(self, idx: int, nats: float, likely: Alternatives | None = None) -> list[Piece]:
        """Take one more id; return the characters that became certain."""
        if self.ended:
            return []
        text = self._decoder.push(idx)
        if not text:
            self._nats += nats
            return []
        # Invalid bytes come out with the id that shows them invalid: they are the first characters
        # of the text, and the last one belongs to this id.
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
        """Return what was held back at the end of the text."""
        rest = "" if self.ended else self._decoder.finish()
        given, self._held = self._held + [Piece(c, 0.0) for c in rest], []
        if rest:
            given[-len(rest)] = Piece(rest[0], self._nats)
        return given[: self._first_stop("".join(piece.text for piece in given))]

    def _first_stop(self, held: str) -> int:
        """Return the start of the first stop text, which ends this text, or the length."""
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        self.ended = self.ended or bool(found)
        return min(found, default=len(held))

    def _beginning_of_a_stop(self, held: str) -> int:
        """Return how many characters at the end of `held` could begin a stop text."""
        for length in range(min(len(held), max(map(len, self._stops)) - 1), 0, -1):
            if any(stop.startswith(held[-length:]) for stop in self._stops):
                return length
        return 0
