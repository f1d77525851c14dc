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
        text, self._nats = self._decoder.push(idx), self._nats + nats
        if not text:
            return []
        piece, self._nats = Piece(text, self._nats, likely), 0.0
        if not self._stops:
            return [piece]
        self._held.append(piece)
        held = "".join(piece.text for piece in self._held)
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        self.ended = bool(found)
        given = self._give(min(found) if found else len(held) - self._beginning_of_a_stop(held))
        if self.ended:
            self._held = []
        return given

    def finish(self) -> list[Piece]:
        """Return what was held back: nothing more will come."""
        rest = self._decoder.finish()
        if rest and not self.ended:
            self._held.append(Piece(rest, self._nats))
        given, self._held = self._held, []
        return given

    def _give(self, length: int) -> list[Piece]:
        """Take so many characters from what is held; a piece that they end within is cut."""
        given: list[Piece] = []
        while self._held and length > 0:
            piece = self._held.pop(0)
            given.append(Piece(piece.text[:length], piece.nats, piece.likely))
            if len(piece.text) > length:
                self._held.insert(0, Piece(piece.text[length:], 0.0))
            length -= len(piece.text)
        return given

    def _beginning_of_a_stop(self, held: str) -> int:
        """Return how many characters at the end of what is held could be the start of a stop."""
        for length in range(min(len(held), max(map(len, self._stops)) - 1), 0, -1):
            if any(stop.startswith(held[-length:]) for stop in self._stops):
                return length
        return 0
