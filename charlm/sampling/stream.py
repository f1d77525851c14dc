"""Streaming text: turn ids into characters, and end at a stop text."""

from collections.abc import Sequence
from typing import NamedTuple

from charlm.text.tokenizer import Tokenizer

Alternatives = list[tuple[str, float]]


class Piece(NamedTuple):
    """One character of a text.

    Its log-probability `nats` is the model's own, before temperature and filters; for a model of
    bytes, the sum over its bytes. `likely`, if requested, are the most likely characters in its
    place (for bytes: that of its last byte) and their probabilities.
    """

    text: str
    nats: float
    likely: Alternatives | None = None


class TextStream:
    """One text as it is drawn. It has `ended` before the first of `stops`.

    Only a possible beginning of a stop text or of a character of several bytes is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.ended = False
        self._decode = tokenizer.stream_decoder()
        self._stops = [stop for stop in stops if stop]
        self._nats = 0.0  # of the bytes of an incomplete character
        self._held: list[Piece] = []

    def push(self, idx: int, nats: float, likely: Alternatives | None = None) -> list[Piece]:
        """Take one more id; return the characters that became certain."""
        if self.ended:
            return []
        text = self._decode(idx)
        if not text:
            self._nats += nats
            return []
        # Invalid bytes come out first, with the id that shows them invalid; the last is its own.
        pieces = [Piece(c, 0.0 if i else self._nats) for i, c in enumerate(text[:-1])]
        pieces.append(Piece(text[-1], nats if pieces else nats + self._nats, likely))
        self._nats = 0.0
        if not self._stops:
            return pieces
        pieces = self._held + pieces
        held = "".join(piece.text for piece in pieces)
        end = self._first_stop(held)
        if not self.ended:
            end -= self._beginning_of_a_stop(held)
        self._held = pieces[end:]
        return pieces[:end]

    def finish(self) -> list[Piece]:
        """Return the characters held back at the end of the text."""
        if self.ended:
            return []
        rest = self._decode(None)
        given = self._held + [Piece(c, 0.0 if i else self._nats) for i, c in enumerate(rest)]
        return given[: self._first_stop("".join(piece.text for piece in given))]

    def _first_stop(self, held: str) -> int:
        """Return the start of the first stop text, which ends this text, or the length."""
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        self.ended = self.ended or bool(found)
        return min(found, default=len(held))

    def _beginning_of_a_stop(self, held: str) -> int:
        """Return how many characters at the end of `held` could begin a stop text."""
        lengths = range(min(len(held), max(map(len, self._stops)) - 1), 0, -1)
        begins = (n for n in lengths if any(stop.startswith(held[-n:]) for stop in self._stops))
        return next(begins, 0)
