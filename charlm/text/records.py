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
from charlm.errors import DataError, Phrase, Setting
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
            many = "s are" if self.empty > 1 else " is"
            found.append(f"{self.empty:,} empty {name}{many} left out")
        if self.returns:
            lines = f"{self.returns:,} lines end" if self.returns > 1 else "1 line ends"
            found.append(f"{lines} with \\r\\n, taken as \\n")
        return found

    def more_notes(self, block_size: int, repeats: int | None) -> list[str]:
        """Return remarks on records longer than a window, and on repeats that were left out."""
        found = []
        if repeats:
            found.append(f"{repeats:,} records are repeats, which data.unique leaves out")
        if self.longest >= block_size:
            longest = f"the longest record has {self.longest:,} characters and an end"
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
        self._tail: Symbols = np.empty(0, np.uint32)  # a record whose end has not been seen
        self._return: Symbols = np.empty(0, np.uint32)  # a carriage return at the end of a chunk

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

    @property
    def waiting(self) -> int:
        """How many symbols wait for the end of their record."""
        return len(self._tail)

    def push(self, chunk: Symbols) -> Records:
        """Return the records that a chunk completes."""
        text = np.concatenate([self._tail, self._without_returns(chunk)])
        if (text == ord(BOUNDARY)).any():
            what = "holds U+10FFFF, which marks the borders of records"
            raise DataError(self.source, what, Phrase("remove it, or use {}", _NONE))
        newline, end = text == _NEWLINE, text == END_OF_PART
        ends = end
        if self.kind == "lines":
            ends = newline | end
        elif self.kind == "paragraphs":
            # A newline beside another, or at either end of a file, is outside of a paragraph.
            edge = newline | end
            ends = end | (newline & (_shifted(edge, 1, True) | _shifted(edge, -1, False)))
            complete = end | (newline & _shifted(newline, 1, False))
            ends &= np.arange(len(text)) <= _last(complete)
        stop = _last(ends) + 1
        if len(text) - stop > LONGEST:
            what = f"a record is longer than {LONGEST:,} characters"
            raise DataError(self.source, what, Phrase("use {}", _NONE))
        self._tail = text[stop:]
        body, ends = text[:stop], ends[:stop]
        lengths = np.diff(np.cumsum(~ends)[ends], prepend=0).astype(np.int64)
        full = lengths > 0
        if self.kind != "paragraphs":
            self.tally.empty += int((~full & (body[ends] != END_OF_PART)).sum())
        lengths = lengths[full]
        self.tally.records += len(lengths)
        self.tally.longest = max(self.tally.longest, int(lengths.max(initial=0)))
        return Records(body[~ends], lengths)

    def _without_returns(self, chunk: Symbols) -> Symbols:
        """Leave out a carriage return before a newline or the end of a file."""
        if self.kind == "files":
            return chunk
        text = np.concatenate([self._return, chunk])
        held = len(text) - (len(text) > 0 and text[-1] == _RETURN)
        text, self._return = text[:held], text[held:]  # what follows the last one is not known yet
        after = np.append(text[1:], 0)
        returns = (text == _RETURN) & ((after == _NEWLINE) | (after == END_OF_PART))
        self.tally.returns += int(returns.sum())
        return text[~returns] if returns.any() else text


_NONE = Setting("data.records", "none")


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
