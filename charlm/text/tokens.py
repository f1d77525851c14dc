"""Ids on disk, read as they are needed.

Files are read by position instead of memory-mapped: the pages of a map count as the process's
memory, and if a mapped file shrinks, the process crashes, while a read raises an error.
"""

import os
from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from charlm.errors import DataError
from charlm.storage import machine_errors
from charlm.storage.regular import open_regular

RESTORE = "restore it or start a new run"
# On disk, an escape is its place in the file of ids, then its code point, which takes 21 bits.
ESCAPES, CODE_BITS = np.dtype("<u8"), 21


@runtime_checkable
class Ids(Protocol):
    """Ids that can be read by position: a `Split` or an `IdArray`."""

    @property
    def boundary(self) -> int | None:
        """The id between records; None: this is one text."""

    @property
    def escape(self) -> int | None:
        """The id of rare characters; None: there is none."""

    def __len__(self) -> int: ...

    def read(self, first: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return `count` ids from position `first`: (count,)."""


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest little-endian unsigned type that holds every id."""
    return np.dtype("u1" if vocab_size <= 1 << 8 else "<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenFile:
    """A file of ids.

    Args:
        path: The file.
        dtype: The little-endian unsigned type of an id.
        size: Number of ids that the file must hold.

    Raises:
        CheckpointError: It is not a regular file.
        DataError: The file holds more or fewer.
        MachineError: It cannot be opened.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], size: int) -> None:
        self.path, self.dtype, self.size = path, dtype, size
        with machine_errors(path):
            self._file = open_regular(path, buffering=0)
        found = os.fstat(self._file.fileno()).st_size
        if found != size * dtype.itemsize:
            what = f"{found:,} bytes, its manifest says {size * dtype.itemsize:,}"
            raise DataError(path, what, RESTORE)

    def read(self, start: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return `count` ids from position `start`: (count,), of the file's own dtype.

        Raises DataError if the file ends before them, and MachineError if the disk fails.
        """
        offset, length = start * self.dtype.itemsize, count * self.dtype.itemsize
        with machine_errors(self.path):
            data = _read_at(self._file.fileno(), offset, length)
        if len(data) != length:
            what = f"cut short while in use: {len(data)} of {length} bytes at byte {offset:,}"
            raise DataError(self.path, what, RESTORE)
        return np.frombuffer(data, self.dtype)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


@dataclass(frozen=True)
class Escapes:
    """Which characters the escapes in a file of ids stand for (see `charlm.text.escapes`)."""

    idx: int  # the id of an escape
    found: "Split"  # of a file of `ESCAPES`

    def between(self, start: int, stop: int) -> "Split":
        """Return those of the ids in places [start, stop)."""
        first, last = (first_at_least(self.found, place << CODE_BITS) for place in (start, stop))
        return self.found.part(first, last)


@dataclass(frozen=True)
class Split:
    """One part of a corpus: ids [start, stop) of a token file.

    Records have a boundary before the first and one after each; `borders` are their places in the
    file, in order. `escapes` say which characters the escapes of the file stand for.
    """

    tokens: TokenFile
    start: int
    stop: int
    borders: "Split | None" = None
    boundary: int | None = None
    escapes: Escapes | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def records(self) -> int:
        """How many records it holds; of one text, 0."""
        return 0 if self.borders is None else max(0, len(self.borders) - 1)

    @property
    def escape(self) -> int | None:
        """The id of rare characters; None: there is none."""
        return self.escapes.idx if self.escapes else None

    def read(self, first: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return `count` ids of this part from its position `first`, or raise IndexError."""
        _check_range(self, first, count)
        return self.tokens.read(self.start + first, count)

    def part(self, first: int, stop: int) -> "Split":
        """Return positions [first, stop) as a part of its own, or raise IndexError."""
        _check_range(self, first, stop - first)
        start, stop = self.start + first, self.start + stop
        borders = self.borders
        if borders is not None:
            borders = borders.part(first_at_least(borders, start), first_at_least(borders, stop))
        return replace(self, start=start, stop=stop, borders=borders)

    def divided(self, at: int) -> tuple["Split", "Split"]:
        """Return what comes before position `at` and the rest; records are not divided."""
        if self.borders is None:
            return self.part(0, at), self.part(at, len(self))
        last = max(0, len(self.borders) - 2)  # both parts get a record, if there are two
        border = min(max(1, first_at_least(self.borders, self.start + at)), last)
        place = int(self.borders.read(border, 1)[0]) - self.start
        return self.part(0, place + 1), self.part(place, len(self))  # both have this boundary

    def joined(self, later: "Split") -> "Split":
        """Return this and a later part, as they were before they were divided."""
        borders = self.borders
        if borders is not None and later.borders is not None:
            borders = replace(borders, stop=later.borders.stop)
        return replace(self, stop=later.stop, borders=borders)


def first_at_least(increasing: Ids, least: int) -> int:
    """Return how many numbers of an increasing sequence on disk are below `least`."""
    low, high = 0, len(increasing)
    while low < high:
        middle = (low + high) // 2
        if int(increasing.read(middle, 1)[0]) < least:
            low = middle + 1
        else:
            high = middle
    return low


class IdArray:
    """Ids in memory, (N,), read like a `Split`."""

    def __init__(
        self,
        ids: npt.NDArray[np.integer[Any]],
        boundary: int | None = None,
        escape: int | None = None,
    ) -> None:
        self.ids = ids
        self.boundary = boundary
        self.escape = escape

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, first: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return `count` ids from position `first`, or raise IndexError."""
        _check_range(self, first, count)
        return self.ids[first : first + count]

    def part(self, first: int, stop: int) -> "IdArray":
        """Return positions [first, stop) without a copy, or raise IndexError."""
        return IdArray(self.read(first, stop - first), self.boundary, self.escape)


def _check_range(ids: Sized, first: int, count: int) -> None:
    if first < 0 or count < 0 or first + count > len(ids):
        raise IndexError(f"ids {first} to {first + count} of a text of {len(ids)}")


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    if hasattr(os, "pread"):
        data = os.pread(descriptor, length, offset)
        if len(data) == length or not data:
            return data
        return data + _read_at(descriptor, offset + len(data), length - len(data))
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows
    return os.read(descriptor, length)
