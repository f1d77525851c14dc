"""Memory that the processes of one machine share, to pass tensors to each other without a network.

Through a socket each tensor is copied into the kernel and out again, once for each pair of processes.
Here a process copies its tensors once, into a file in memory, and the others read them there.

Each process has two files and writes them in turn, so what was read stays as it is until the next but
one is written. A file has no name once all have opened it: nothing stays, whichever process is killed.
"""

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

PLACE = Path("/dev/shm")  # names are random, files private  # nosec B108
ALIGNED = 64  # bytes: each tensor begins where an allocator could have put it
SPARE = 1.25  # how much larger a file is made than needed: a table's rows vary from step to step


class Slots:
    """The files of all processes, opened by this one.

    Args:
        name: Of this start, known to its processes only.
        rank: Of this process.
        size: How many there are.
        all_did: Waits for all processes, and tells whether all of them say true.

    Raises:
        OSError: They cannot share memory, which all of them then find out.
    """

    def __init__(self, name: str, rank: int, size: int, all_did: Callable[[bool], bool]) -> None:
        self.rank = rank
        self._files: list[list[_File]] = []  # of each process, one for each turn
        paths = [
            tuple(PLACE / f"charlm-{name}-{of}-{turn}" for turn in (0, 1)) for of in range(size)
        ]
        own: list[int] = []
        try:
            with contextlib.suppress(OSError):
                for path in paths[rank]:  # one by one: the first is closed if the second fails
                    own.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            if all_did(len(own) == 2):
                with contextlib.suppress(OSError):
                    for pair in paths:
                        self._files.append([])
                        for path in pair:
                            self._files[-1].append(_File(os.open(path, os.O_RDWR)))
            complete = all_did(sum(map(len, self._files)) == 2 * size)
        finally:
            for path, number in zip(paths[rank], own, strict=False):
                os.close(number)
                path.unlink(missing_ok=True)
        if not complete:
            self.close()
            raise OSError("the processes see different file systems")

    def write(self, turn: int, parts: Sequence[Tensor]) -> bool:
        """Write tensors to the file of this process for a turn, 0 or 1; False: there is no room."""
        try:
            pack(parts, self._files[self.rank][turn].grown(bytes_of(parts)))
        except OSError:
            return False
        return True

    def read(self, rank: int, turn: int, size: int) -> Tensor:
        """Return the `size` bytes that another process has written, as they are in its file."""
        return self._files[rank][turn].mapped(size)

    def close(self) -> None:
        """Close the files; tensors that were read stay."""
        for pair in self._files:
            for file in pair:
                os.close(file.number)
        self._files = []


class _File:
    """An open file, and as much of it as was mapped so far."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._refused = float("inf")  # bytes that there was no room for

    def grown(self, size: int) -> Tensor:
        """Return its first bytes, after making it larger; OSError if the memory is too small."""
        if size >= self._refused:  # to ask in each step takes a while
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if size > len(self._bytes):
            try:
                self._allocate(int(SPARE * size))
            except OSError:
                try:
                    self._allocate(size)
                except OSError:
                    self._refused = size
                    raise
        return self.mapped(size)

    def _allocate(self, size: int) -> None:
        # A file that only claims its size would end the process where a page is not to be had.
        os.posix_fallocate(self.number, 0, size)

    def mapped(self, size: int) -> Tensor:
        """Return its first bytes."""
        if size > len(self._bytes):
            self._bytes = torch.frombuffer(mmap.mmap(self.number, 0), dtype=torch.uint8)
        return self._bytes[:size]


def bytes_of(parts: Sequence[Tensor]) -> int:
    """Return how many bytes tensors take when they are packed."""
    return _room(8 * len(parts)) + sum(_room(x.nbytes) for x in parts)


def pack(parts: Sequence[Tensor], buffer: Tensor) -> None:
    """Write tensors into bytes, after the length of each: the size of its first dimension."""
    lengths = torch.tensor([len(x) if x.ndim else 1 for x in parts])
    buffer[: lengths.nbytes].view(torch.int64).copy_(lengths)
    for place, x in zip(unpack(buffer, parts), parts, strict=True):
        place.copy_(x)


def unpack(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in bytes, as views; only their lengths differ from those of `like`."""
    lengths = buffer[: 8 * len(like)].view(torch.int64).tolist()
    found, at = [], _room(8 * len(like))
    for length, x in zip(lengths, like, strict=True):
        shape = torch.Size((length, *x.shape[1:])) if x.ndim else x.shape
        size = shape.numel() * x.itemsize
        found.append(buffer[at : at + size].view(x.dtype).view(shape))
        at += _room(size)
    return found


def _room(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
