"""Atomic writes: a file or folder appears complete or not at all.

Both are written under a temporary name in the same folder, flushed to the disk, and renamed into
place. Leftovers of a crash start with `.tmp-` and are never read; `remove_leftovers` deletes them.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from charlm.storage.machine import machine_errors
from charlm.storage.manifest import write_manifest


def write_file(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, durably; a MachineError leaves the old file unharmed."""
    temporary = _beside(path, "new")
    with machine_errors(path):
        try:
            temporary.write_bytes(data)
            put_in_place(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = path  # the user does not know the temporary name
            raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file to `path` after flushing its content to the disk, or raise OSError."""
    flush_file(temporary)
    temporary.replace(path)
    flush_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Yield a text file that replaces the one at `path` if the block succeeds, or is deleted if not.

    A pipe or a device is written directly. For a symbolic link, its target is replaced. Raise
    OSError if the folder is missing or `path` is a folder, MachineError if the disk or its
    permissions refuse; an older file stays unharmed.
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as out:
            yield out
        return
    place = path.resolve()
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with scratch_folder(place.parent) as folder:
        temporary = folder / place.name
        with temporary.open("w", encoding="utf-8") as out:
            yield out
        put_in_place(temporary, place)


def make_folder(path: Path) -> None:
    """Make a folder and its parents durably: they survive a power cut. Or raise OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_folder(folder.parent)


@contextlib.contextmanager
def new_folder(path: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a folder to fill with files; it appears at `path` only when the block succeeds.

    Its manifest has the files' sizes and SHA-256, and `facts`, read when the block ends. An older
    folder at `path` is replaced at the end, and restored if that fails.

    Raises:
        MachineError: The disk or its permissions refuse; nothing appears at `path`.
    """
    temporary = _beside(path, "new")
    with machine_errors(path):
        # Do not make its parents: a run deleted during training must not partly reappear.
        temporary.mkdir()
        try:
            yield temporary
            for file in sorted(temporary.iterdir()):
                flush_file(file)
            write_manifest(temporary, facts)
            flush_folder(temporary)
            _replace_folder(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename a finished folder to `path`, moving an older one aside first."""
    old = _beside(path, "old")
    if path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    flush_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder in one step, then delete its files: readers never see it half-deleted.

    A folder that cannot be removed stays: that must not stop a training run.
    """
    trash = _beside(path, "trash")
    with contextlib.suppress(OSError):
        path.rename(trash)
        flush_folder(path.parent)
        _delete(trash)


def remove_leftovers(folder: Path) -> None:
    """Delete leftovers of an earlier crash in a folder and below, or raise MachineError.

    Call it with the lock held. A folder that was moved aside is restored if the crash happened
    before its replacement arrived.
    """
    with machine_errors(folder):
        for path in [path for path in folder.rglob(".tmp-*") if is_leftover(path.name)]:
            place = path.with_name(path.name.split("-", 3)[-1])
            if path.name.startswith(".tmp-old-") and not place.exists():
                path.rename(place)
            else:
                _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)  # `rmtree` refuses files, links and pipes


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for data larger than memory; it is deleted when the block ends.

    Raise MachineError if the disk is too small or refuses.
    """
    folder = _beside(parent / "scratch", "new")
    with machine_errors(folder):
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def is_leftover(name: str) -> bool:
    """Tell whether a name is one of charlm's temporary names; a user's own files never match."""
    return bool(re.match(r"\.tmp-(new|old|trash)-[0-9a-f]{8}-(?!\.{0,2}$)", name))


def _beside(path: Path, kind: str) -> Path:
    """Return an unused temporary name in the folder of `path`."""
    return path.with_name(f".tmp-{kind}-{secrets.token_hex(4)}-{path.name}")


def flush_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Wait until the folder's entries are on the disk, so that a rename survives a power cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows has no handle to a folder to flush
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
