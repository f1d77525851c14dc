"""Ids on disk, read as they are needed.

Files are read by position instead of memory-mapped: the pages of a map count as the process's
memory, and if a mapped file shrinks, the process crashes, while a read raises an error.
"""

import os
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from charlm.errors import DataError
from charlm.storage import machine_errors
from charlm.storage.regular import open_regular

RESTORE = "restore it or start a new run"


@runtime_checkable
class Ids(Protocol):
    """Ids that can be read by position: a `Split` or an `IdArray`."""

    def __len__(self) -> int: ...

    def read(self, first: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return `count` ids from position `first`: (count,)."""


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
class Split:
    """One part of a corpus: ids [start, stop) of a token file."""

    tokens: TokenFile
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, first: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return `count` ids of this part from its position `first`, or raise IndexError."""
        _check_range(self, first, count)
        return self.tokens.read(self.start + first, count)

    def part(self, first: int, stop: int) -> "Split":
        """Return positions [first, stop) as a part of its own, or raise IndexError."""
        _check_range(self, first, stop - first)
        return Split(self.tokens, self.start + first, self.start + stop)


class IdArray:
    """Ids in memory, (N,), read like a `Split`."""

    def __init__(self, ids: npt.NDArray[np.integer[Any]]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, first: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return `count` ids from position `first`, or raise IndexError."""
        _check_range(self, first, count)
        return self.ids[first : first + count]

    def part(self, first: int, stop: int) -> "IdArray":
        """Return positions [first, stop) without a copy, or raise IndexError."""
        return IdArray(self.read(first, stop - first))


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
