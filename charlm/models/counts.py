"""How often every n-gram of a text occurs, for all orders at once, in bounded memory.

Every position of the text starts one window of `order` characters. After sorting, windows with the
same first k characters are neighbours, so one sort counts the n-grams of every order: each run of
equal prefixes is one n-gram, and its length is the count. A text that is too large for the memory
budget is sorted in pieces, which are written to disk and merged. Arrays larger than memory are
mapped files, processed in stretches.

The counts form a tree. A node of level k is a distinct k-gram, numbered in sorted order; its parent
is the k-gram without its last character. A node is found by its key, parent * V + character, which
fits into 64 bits for any order and alphabet.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.errors import check_stop
from charlm.text.tokens import Ids

Array = npt.NDArray[Any]

BUDGET = 1 << 30  # bytes
# Characters sorted between two calls of `should_stop`, more if they would be too many pieces.
PIECE, PIECES = 1 << 20, 16
STRIDE = 1 << 18  # nodes or windows processed at a time: their arrays fit into a CPU's cache


@dataclass
class Level:
    """All distinct k-grams of a text.

    Args:
        keys: parent * V + last character, increasing, (N,) int64. Level 1 has all V characters.
        counts: How often each occurs, (N,) int64.
    """

    keys: Array
    counts: Array

    def find(self, keys: Array) -> Array:
        """Return the nodes of `keys`, all of which must exist."""
        return np.searchsorted(self.keys, keys)


@dataclass
class Counts:
    """The tree of counts.

    Args:
        levels: `levels[k - 1]` holds the k-grams.
        vocab_size: Number of distinct characters (V).
        opening: The nodes of the text's first 1, 2, ... characters: they have no left neighbour.
        boundary: The id between records; their n-grams end with the first boundary that follows, or
            begin with one. None: this is one text.
        scratch: A folder for arrays that may be larger than memory; None: use memory.
    """

    levels: list[Level]
    vocab_size: int
    opening: list[int]
    scratch: Path | None = None
    boundary: int | None = None

    def zeros(self, size: int, dtype: npt.DTypeLike) -> Array:
        """Return an array of `size` zeros, or raise OSError if the disk is too small."""
        if self.scratch is None or not size:
            return np.zeros(size, dtype)
        length = size * np.dtype(dtype).itemsize
        with TemporaryFile(dir=self.scratch) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk behind a map would kill the process
                os.posix_fallocate(file.fileno(), 0, length)
            else:
                file.truncate(length)
            return np.memmap(file, dtype, mode="r+")


def count_ngrams(
    ids: Ids,
    vocab_size: int,
    order: int,
    *,
    scratch: Path | None = None,
    budget: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Counts:
    """Count the n-grams of every order up to `order`.

    A text that may need more than `budget` bytes of memory (None: `BUDGET`) is counted in the
    folder `scratch`, if there is one.

    Raises:
        Stopped: `should_stop`, which is called often, said so.
        OSError: The disk is too small or refuses.
    """
    budget = BUDGET if budget is None else budget
    packing = _Packing(vocab_size, order, ids.boundary)
    sorting = 2 * packing.width + 40  # bytes per character while a piece is sorted
    growing = 40 * order  # at worst each character starts a new n-gram in every level
    if scratch is None or len(ids) * (sorting + growing) <= budget:
        scratch, piece = None, PIECE
    else:
        piece = max(1, min(budget // sorting, max(PIECE, len(ids) // PIECES)))
    runs = []
    for first in range(0, len(ids), piece):
        check_stop(should_stop)
        count = min(piece, len(ids) - first)
        text = ids.read(first, min(count + order - 1, len(ids) - first))
        run = _distinct(packing.pack(text, count))
        if scratch is not None:  # and no reference to it in memory, while the next is sorted
            run = _on_disk(run[0], scratch), _on_disk(run[1], scratch)
        runs.append(run)
    blocks = _merged(runs, max(1, min(STRIDE, piece) // len(runs)))
    levels = _tree(map(packing.unpacked, blocks), vocab_size, order, scratch, should_stop)
    begin: Array = ids.read(0, min(order, len(ids)))
    if ids.boundary is not None:
        begin = begin[: 2 + int(np.argmax(np.append(begin[1:] == ids.boundary, True)))]
    opening = _walk(levels, begin, vocab_size)
    return Counts(levels, vocab_size, opening, scratch, ids.boundary)


class _Packing:
    """Windows as numbers or byte strings that sort like the windows.

    A character takes as few bits as V + 1 values need; the extra value, zero, stands for the places
    after the end of the text, or of a record. Each 64-bit word holds as many characters as fit.
    """

    def __init__(self, vocab_size: int, order: int, boundary: int | None = None) -> None:
        self.order, self.boundary = order, boundary
        self.bits = vocab_size.bit_length()
        self.a_word = 64 // self.bits
        self.words = -(-order // self.a_word)
        self.width = 8 * self.words
        self.small: npt.DTypeLike = np.int32 if vocab_size < 2**31 else np.int64

    def pack(self, text: Array, count: int) -> Array:
        """Return the windows that start at the first `count` characters, sortable, (count,)."""
        padded = np.zeros(count + self.order - 1, np.uint64)
        padded[: len(text)] = text
        padded[: len(text)] += np.uint64(1)
        packed = np.zeros((count, self.words), ">u8" if self.words > 1 else np.uint64)
        reach = self._reach(text, count)
        for word in range(self.words):
            places = range(word * self.a_word, min((word + 1) * self.a_word, self.order))
            value = np.zeros(count, np.uint64)
            for place in places:
                value <<= np.uint64(self.bits)
                symbols = padded[place : place + count]
                value |= symbols if reach is None else np.where(place <= reach, symbols, 0)
            packed[:, word] = value
        # Big-endian words compare like one string of bytes, which NumPy can sort at any width.
        return packed.view(f"S{self.width}").ravel() if self.words > 1 else packed.ravel()

    def _reach(self, text: Array, count: int) -> Array | None:
        """Return the last place of each window that belongs to it: that of the next boundary."""
        if self.boundary is None:
            return None
        borders = np.append(np.flatnonzero(text == self.boundary), len(text))
        starts = np.arange(count)
        return borders[np.searchsorted(borders, starts, side="right")] - starts

    def unpacked(self, run: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return the characters of sorted windows, (order, M), -1 after the end; and counts."""
        keys, counts = run
        words = np.ascontiguousarray(keys).view(">u8" if self.words > 1 else np.uint64)
        words = words.reshape(len(keys), self.words)
        symbols = np.empty((self.order, len(keys)), self.small)
        for word in range(self.words):
            value = words[:, word].astype(np.uint64)
            mask = np.uint64((1 << self.bits) - 1)
            for place in reversed(
                range(word * self.a_word, min((word + 1) * self.a_word, self.order))
            ):
                symbols[place] = value & mask
                value >>= np.uint64(self.bits)
        symbols -= 1
        return symbols, counts


def _distinct(keys: Array, counts: Array | None = None) -> tuple[Array, Array]:
    """Return the distinct keys in order, and their counts."""
    if counts is None:
        keys.sort()
    else:
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    if counts is None:
        return keys[first], np.diff(first, append=len(keys))
    return keys[first], np.add.reduceat(counts, first)


def _on_disk(array: Array, folder: Path) -> Array:
    """Write an array to a file without a name, and map it; its disk space is freed with the map."""
    with TemporaryFile(dir=folder) as file:
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        return np.memmap(file, array.dtype, mode="r")


def _merged(runs: list[tuple[Array, Array]], block: int) -> Iterator[tuple[Array, Array]]:
    """Yield the distinct keys of sorted runs in order, with the sums of their counts.

    It looks at `block` keys of each run per pass.
    """
    if len(runs) == 1:
        keys, counts = runs[0]
        for first in range(0, len(keys), block):
            yield keys[first : first + block], counts[first : first + block]
        return
    at = [0] * len(runs)
    while any(start < len(keys) for start, (keys, _) in zip(at, runs, strict=True)):
        # No key up to the smallest last key of the blocks can appear in a later block.
        limit = min(
            keys[min(start + block, len(keys)) - 1]
            for start, (keys, _) in zip(at, runs, strict=True)
            if start < len(keys)
        )
        taken = []
        for i, (keys, counts) in enumerate(runs):
            stop = at[i] + int(np.searchsorted(keys[at[i] : at[i] + block], limit, side="right"))
            taken.append((keys[at[i] : stop], counts[at[i] : stop]))
            at[i] = stop
        keys, counts = (np.concatenate(parts) for parts in zip(*taken, strict=True))
        yield _distinct(keys, counts)


def _tree(
    blocks: Iterator[tuple[Array, Array]],
    vocab_size: int,
    order: int,
    folder: Path | None,
    should_stop: Callable[[], bool],
) -> list[Level]:
    """Turn sorted distinct windows into the nodes of every level."""
    grown = [_Growing(folder, k) for k in range(1, order + 1)]
    before = np.full(order, -1)  # the last window of the block before
    singles = np.zeros(vocab_size, np.int64)
    for symbols, counts in blocks:
        check_stop(should_stop)
        new = np.zeros(len(counts), bool)
        parent = np.zeros(len(counts), np.int64)
        for k, level in enumerate(grown):
            column = symbols[k]
            new[0] |= column[0] != before[k]
            new[1:] |= column[1:] != column[:-1]
            there = column >= 0
            if k == 0:
                singles += np.bincount(column, counts, vocab_size).astype(np.int64)
                parent = column.astype(np.int64)
                continue
            parent = level.add(new & there, there, parent * vocab_size + column, counts)
        before = symbols[:, -1].copy()
    first = Level(np.arange(vocab_size), singles)
    return [first, *(level.finish() for level in grown[1:])]


class _Growing:
    """A level while blocks of nodes are added to it, in memory or in two files."""

    def __init__(self, folder: Path | None, k: int) -> None:
        self.size = 0
        self.last = 0  # count so far of the last node, which the next block may continue
        self.parts: list[tuple[Array, Array]] = []
        self.paths = [folder / f"level-{k}-{name}" for name in ("keys", "counts")] if folder else []

    def add(self, starts: Array, there: Array, keys: Array, counts: Array) -> Array:
        """Add the nodes that begin in rows marked by `starts`; return the node of each of M rows.

        `there` marks the rows that have a k-gram: the text's last windows are shorter.
        """
        rows = np.flatnonzero(starts)
        nodes = self.size - 1 + np.cumsum(starts)
        sums = np.concatenate([[0], np.cumsum(np.where(there, counts, 0))])
        self.last += int(sums[rows[0]] if len(rows) else sums[-1])
        if len(rows):
            totals = np.diff(sums[rows], append=sums[-1])
            # The last node is held back: the next block may add to it.
            finished = np.concatenate([[self.last], totals[:-1]] if self.size else [totals[:-1]])
            self.last = int(totals[-1])
            self._keep(keys[rows], finished)
            self.size += len(rows)
        return nodes

    def finish(self) -> Level:
        """Return the whole level."""
        self._keep(np.empty(0, np.int64), np.array([self.last] if self.size else [], np.int64))
        if not self.paths:
            keys, counts = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
            self.parts.clear()  # otherwise each level would be in memory twice
            return Level(keys, counts)
        if not self.size:
            return Level(np.empty(0, np.int64), np.empty(0, np.int64))
        level = Level(*(np.memmap(path, np.int64, mode="r") for path in self.paths))
        with contextlib.suppress(OSError):  # Windows cannot; they are deleted with their folder
            for path in self.paths:
                path.unlink()
        return level

    def _keep(self, keys: Array, counts: Array) -> None:
        if not self.paths:
            self.parts.append((keys, counts))
        for path, array in zip(self.paths, (keys, counts), strict=False):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(array).data)


def _walk(levels: list[Level], text: Array, vocab_size: int) -> list[int]:
    """Return the nodes of the first 1, 2, ... characters of `text`."""
    nodes: list[int] = text[:1].tolist()
    for level, symbol in zip(levels[1:], text[1:].tolist(), strict=False):
        nodes += level.find(np.array([nodes[-1] * vocab_size + symbol])).tolist()
    return nodes
