"""Files and folders that are what they seem.

A run folder may come from someone else. Following a link in it leads out of it, opening a pipe waits
for whoever is at its other end, and reading a device may never end. So every file in it is opened
here. What is opened is looked at again: another process may have put something in its place.
"""

import os
import stat
from pathlib import Path
from typing import IO

from charlm.errors import CheckpointError
from charlm.storage.machine import is_gone

# Windows lacks these flags. O_NONBLOCK has no effect on regular files.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"))
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path, mode: str = "rb", buffering: int = -1) -> IO[bytes]:
    """Open a regular file, never waiting; see `open` for the arguments.

    Raises:
        CheckpointError: It is a link, a pipe, a folder or a device.
        OSError: It does not exist, or the disk or its permissions refuse.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | _FLAGS, 0o666)

    check_file(path)
    file: IO[bytes] = open(path, mode, buffering, opener=opener)  # noqa: SIM115 -- for the caller
    try:
        _check(path, os.fstat(file.fileno()), stat.S_IFREG)
    except BaseException:
        file.close()
        raise
    return file


def check_file(path: Path) -> None:
    """Refuse what is at `path`, with a CheckpointError, unless it is a regular file or nothing."""
    if not is_gone(path):
        _check(path, path.lstat(), stat.S_IFREG)


def check_folder(path: Path) -> None:
    """Refuse what is at `path`, with a CheckpointError, unless it is a folder or nothing."""
    if not is_gone(path):
        _check(path, path.lstat(), stat.S_IFDIR)


def is_regular(path: Path) -> bool:
    """Tell whether there is a regular file at `path`, and not a link to one."""
    return path.is_file() and not path.is_symlink()


def has_other_names(path: Path) -> bool:
    """Tell whether a file has another name too (a hard link), perhaps in another folder."""
    return path.stat().st_nlink > 1


def is_folder(path: Path) -> bool:
    """Tell whether there is a folder at `path`, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _check(path: Path, status: os.stat_result, expected: int) -> None:
    found = stat.S_IFMT(status.st_mode)
    if found != expected:
        there = "a folder" if expected == stat.S_IFDIR else "a regular file"
        raise CheckpointError(path, f"is {_KINDS.get(found, 'a device')}", f"put {there} there")
