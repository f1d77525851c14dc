"""Records: many short texts instead of one long one, such as names, molecules, tunes or messages.

A record begins and ends with a boundary: a symbol of the alphabet that no text contains and nobody
sees. So its first character is predicted from the boundary before it, and its end is predicted like
a character. On disk the records of a part stand one after another, with a boundary before the first
and one after each.

Before a text is split into parts, its records are put into an order that depends on their content
and a seed only. So a list that is sorted and one that is shuffled make the same parts, and equal
records are neighbours: they fall into one part (see `shuffling`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from charlm.config import DataConfig
from charlm.errors import DataError, Phrase, Setting, number_of
from charlm.text.tokenizer import BOUNDARY

END_OF_PART = 0x110000  # among code points: the end of a file; just above the last code point
LONGEST = 1 << 26  # symbols of one record, which must fit into memory

_NEWLINE, _RETURN = ord("\n"), ord("\r")
_GOLDEN = 0x9E3779B97F4A7C15
_PRIME = np.uint64(0x00000100000001B3)

Kind = Literal["lines", "files", "paragraphs"]
Symbols = npt.NDArray[Any]
Lengths = npt.NDArray[np.int64]


class Records(NamedTuple):
    """Records without boundaries, one after another, (N,); and the length of each, (R,)."""

    symbols: Symbols
    lengths: Lengths


@dataclass
class Tally:
    """What was found while a text was cut into records."""

    records: int = 0
    longest: int = 0  # symbols
    empty: int = 0  # lines or files, which are left out
    returns: int = 0  # carriage returns before a newline, which are left out

    def notes(self, kind: Kind) -> list[str]:
        """Return remarks for the user."""
        name = {"lines": "line", "files": "file", "paragraphs": "paragraph"}[kind]
        found = []
        if self.empty:
            are = number_of(self.empty, f"empty {name} is", f"empty {name}s are")
            found.append(f"{are} left out")
        if self.returns:
            found.append(
                f"{number_of(self.returns, 'line ends', 'lines end')} with \\r\\n, taken as \\n"
            )
        return found

    def more_notes(self, block_size: int, repeats: int | None) -> list[str]:
        """Return remarks on records longer than a window, and on repeats that were left out."""
        found = []
        if repeats:
            are = number_of(repeats, "record is a repeat", "records are repeats")
            found.append(f"{are}, which data.unique leaves out")
        if self.longest >= block_size:
            longest = f"the longest record has {number_of(self.longest, 'character')} and an end"
            rest = (
                f"model.block_size is {block_size}, so what is left is continued in another window"
            )
            found.append(f"{longest}; {rest}")
        return found


class Cutter:
    """Cuts a text into records, chunk by chunk.

    Args:
        kind: What a record is.
        source: The name of the text, for errors.
    """

    def __init__(self, kind: Kind, source: str) -> None:
        self.kind, self.source = kind, source
        self.tally = Tally()
        self._waiting: list[Symbols] = []  # pieces of a record whose end has not been seen
        self.waiting = 0  # how many symbols these are
        self._newline: Symbols = _NOTHING  # at the end of a chunk; it may end a paragraph
        self._return: Symbols = _NOTHING  # a carriage return at the end of a chunk

    @classmethod
    def of(cls, data: DataConfig, source: str) -> "Cutter":
        """Return what cuts a text that `read_symbols` reads, in which each value of a column is a file."""
        assert data.records != "none"
        return cls(data.records if data.column is None else "files", source)

    def cut(self, chunks: Iterator[Symbols]) -> Iterator[Records]:
        """Yield the records of code points in chunks, in which `END_OF_PART` ends a file.

        Raises DataError for a boundary in the text, or a record too long to hold in memory.
        """
        for chunk in chunks:
            yield self.push(chunk)
        yield self.push(np.array([END_OF_PART], np.uint32))

    def push(self, chunk: Symbols) -> Records:
        """Return the records that a chunk completes; what is left waits, and is not copied again."""
        text = self._without_returns(chunk)
        if (text == ord(BOUNDARY)).any():
            what = "holds U+10FFFF, which marks the borders of records"
            raise DataError(self.source, what, Phrase("remove it, or use {}", _NONE))
        if self.kind == "paragraphs":
            text, ends = self._ends_of_paragraphs(text)
        else:
            ends = text == END_OF_PART
            if self.kind == "lines":
                ends |= text == _NEWLINE
        stop = _last(ends) + 1
        if not stop:
            self._wait(text)
            return Records(_NOTHING, np.empty(0, np.int64))
        lengths = np.diff(np.cumsum(~ends[:stop])[ends[:stop]], prepend=0).astype(np.int64)
        lengths[0] += self.waiting
        full = lengths > 0
        if self.kind != "paragraphs":
            self.tally.empty += int((~full & (text[ends] != END_OF_PART)).sum())
        lengths = lengths[full]
        self.tally.records += len(lengths)
        self.tally.longest = max(self.tally.longest, int(lengths.max(initial=0)))
        symbols = np.concatenate([_NOTHING, *self._waiting, text[:stop][~ends[:stop]]])
        self._waiting, self.waiting = [], 0
        self._wait(text[stop:])
        return Records(symbols, lengths)

    def _wait(self, piece: Symbols) -> None:
        """Keep the next piece of a record that has not ended."""
        if len(piece):
            self._waiting.append(piece.copy())  # not the chunk that it is a part of
            self.waiting += len(piece)
        if self.waiting > LONGEST:
            what = f"a record is longer than {LONGEST:,} characters"
            raise DataError(self.source, what, Phrase("use {}", _NONE))

    def _ends_of_paragraphs(self, text: Symbols) -> tuple[Symbols, npt.NDArray[np.bool_]]:
        """Return what is known of the next symbols, and which of them are outside of a paragraph.

        A newline beside another, or at either end of a file, is. What follows the last newline is not
        known yet, so it is kept for the next chunk.
        """
        text = np.concatenate([self._newline, text])
        newline, end = text == _NEWLINE, text == END_OF_PART
        before = _shifted(newline | end, 1, not self.waiting)
        held = len(text) - bool(len(text) and newline[-1] and not before[-1])
        after = _shifted(newline | end, -1, False)[:held]
        text, self._newline = text[:held], text[held:].copy()
        return text, end[:held] | (newline[:held] & (before[:held] | after))

    def _without_returns(self, chunk: Symbols) -> Symbols:
        """Leave out a carriage return before a newline or the end of a file."""
        if self.kind == "files":
            return chunk
        text = np.concatenate([self._return, chunk])
        held = len(text) - (len(text) > 0 and text[-1] == _RETURN)
        text, self._return = (
            text[:held],
            text[held:].copy(),
        )  # what follows the last is not known yet
        after = np.append(text[1:], 0)
        returns = (text == _RETURN) & ((after == _NEWLINE) | (after == END_OF_PART))
        self.tally.returns += int(returns.sum())
        return text[~returns] if returns.any() else text


_NONE = Setting("data.records", "none")
_NOTHING: Symbols = np.empty(0, np.uint32)


def _shifted(mask: npt.NDArray[np.bool_], by: int, edge: bool) -> npt.NDArray[np.bool_]:
    """Return a mask moved by one place; `edge` comes in at the end that is left free."""
    moved = np.full_like(mask, edge)
    if by > 0:
        moved[1:] = mask[:-1]
    else:
        moved[:-1] = mask[1:]
    return moved


def _last(mask: npt.NDArray[np.bool_]) -> int:
    """Return the last place where a mask is set; -1 if there is none."""
    found = np.flatnonzero(mask)
    return int(found[-1]) if len(found) else -1


def keys_of(records: Records, seed: int) -> npt.NDArray[np.uint64]:
    """Return a key for each record, (R,): a hash of its symbols and the seed."""
    symbols, lengths = records
    if not len(lengths):
        return np.empty(0, np.uint64)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(symbols)) - np.repeat(starts, lengths)
    powers = np.cumprod(np.full(int(lengths.max()), _PRIME))
    # A polynomial in the prime, modulo 2^64, then mixed: the high bits are to depend on all symbols.
    sums = np.add.reduceat((symbols.astype(np.uint64) + np.uint64(1)) * powers[place], starts)
    return _mixed(_mixed(sums) + np.uint64(seed * _GOLDEN % 2**64))


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix the bits of each number: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def taken(records: Records, places: npt.NDArray[np.int64]) -> Records:
    """Return the records at these places, in this order."""
    symbols, lengths = records
    starts = np.cumsum(lengths) - lengths
    chosen = lengths[places]
    first = np.cumsum(chosen) - chosen
    at = np.arange(int(chosen.sum())) + np.repeat(starts[places] - first, chosen)
    return Records(symbols[at], chosen)
