"""Streaming text: turn ids into characters, and end at a stop text."""

from collections.abc import Sequence
from typing import NamedTuple

from charlm.text.raw import as_bytes
from charlm.text.tokenizer import IntArray, Tokenizer

Alternatives = list[tuple[str, float]]


class Piece(NamedTuple):
    """One character of a text, or one byte that is not UTF-8 (see `charlm.text.raw`).

    Its log-probability `nats` is the model's own, before temperature and filters; for a model of
    bytes, the sum over its bytes. `likely`, if requested, are the most likely characters in its
    place (for bytes: that of its last byte) and their probabilities.
    """

    text: str
    nats: float
    likely: Alternatives | None = None


class _Drawn(NamedTuple):
    idx: int
    nats: float
    likely: Alternatives | None


class TextStream:
    """One text as it is drawn. It has `ended` before the first of `stops`, which are ids.

    A record also ends before the boundary; then it is `complete`.

    Only a possible beginning of a stop text or of a character of several bytes is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[IntArray] = ()) -> None:
        self.ended = self.complete = False
        self._of_bytes = tokenizer.unit == "bytes"
        self._plain = not (self._of_bytes or stops)  # each id is a certain character at once
        self._boundary = tokenizer.boundary
        self._decode = tokenizer.stream_decoder()
        # As strings of ids, which can be searched; the text itself has no half of a character.
        self._stops = ["".join(map(chr, stop.tolist())) for stop in stops]
        self._held: list[_Drawn] = []  # what could begin a stop text
        self._incomplete: list[_Drawn] = []  # the bytes of a character that has more

    def push(self, idx: int, nats: float, likely: Alternatives | None = None) -> list[Piece]:
        """Take one more id; return the characters that became certain."""
        if self.ended:
            return []
        if idx == self._boundary:
            self.ended = self.complete = True
            return self._characters(self._held, True)
        if self._plain:
            return [Piece(self._decode(idx), nats, likely)]
        if not self._stops:
            return self._characters([_Drawn(idx, nats, likely)], False)
        self._held.append(_Drawn(idx, nats, likely))
        held = "".join(chr(drawn.idx) for drawn in self._held)
        end = self._first_stop(held)
        if not self.ended:
            end -= self._beginning_of_a_stop(held)
        certain, self._held = self._held[:end], self._held[end:]
        return self._characters(certain, self.ended)

    def finish(self) -> list[Piece]:
        """Return the characters held back at the end of the text."""
        return [] if self.ended else self._characters(self._held, True)

    def _characters(self, drawn: Sequence[_Drawn], last: bool) -> list[Piece]:
        """Return the characters that these ids complete, and at the end of a text all others."""
        pieces = []
        for one in drawn:
            self._incomplete.append(one)
            pieces += [self._piece(character) for character in self._decode(one.idx)]
        if last:
            pieces += [self._piece(character) for character in self._decode(None)]
        return pieces

    def _piece(self, character: str) -> Piece:
        """Return the next character with what its own ids have."""
        length = len(as_bytes(character)) if self._of_bytes else 1
        own, self._incomplete = self._incomplete[:length], self._incomplete[length:]
        return Piece(character, sum(drawn.nats for drawn in own), own[-1].likely)

    def _first_stop(self, held: str) -> int:
        """Return the start of the first stop text, which ends this text, or the length."""
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        self.ended = self.ended or bool(found)
        return min(found, default=len(held))

    def _beginning_of_a_stop(self, held: str) -> int:
        """Return how many ids at the end of `held` could begin a stop text."""
        lengths = range(min(len(held), max(map(len, self._stops)) - 1), 0, -1)
        begins = (n for n in lengths if any(stop.startswith(held[-n:]) for stop in self._stops))
        return next(begins, 0)
