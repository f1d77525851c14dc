"""Atomic writes: a file or folder appears complete or not at all.

Both are written under a temporary name in the same folder, flushed to the disk, and renamed into
place. Leftovers of a crash start with `.tmp-` and are never read; `remove_leftovers` deletes them.

An overlay file system, such as a container's, cannot rename a folder of its lower layer, such as one
from the container's image: such a folder is copied, and then removed with its manifest first. A
folder without a manifest counts as never finished.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from charlm.errors import DataError
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.manifest import NAME, write_manifest
from charlm.storage.regular import check_folder, is_folder, is_regular, open_regular

_CHUNK = 1 << 20


def write_file(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, durably; a MachineError leaves the old file unharmed."""
    with _new_file(path, path, "wb") as file:
        file.write(data)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file to `path` after flushing its content to the disk, or raise OSError."""
    flush_file(temporary)
    temporary.replace(path)
    flush_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Yield a file that replaces the one at `path` if the block succeeds, or is deleted if not.

    It is a text file in UTF-8, or with `wb` a binary file.

    A pipe or a device is written directly. For a symbolic link, its target is replaced. Raise
    OSError if the folder is missing or `path` is a folder, MachineError if the disk or its
    permissions refuse; an older file stays unharmed.
    """
    if path.exists() and not path.is_file():
        with path.open(mode, encoding="utf-8" if mode == "w" else None) as out:
            yield out
        return
    place = path.resolve()
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with _new_file(place, path, mode) as out:
        yield out


@contextlib.contextmanager
def _new_file(place: Path, path: Path, mode: Literal["w", "wb"]) -> Iterator[IO[Any]]:
    """Yield a file that is put at `place` if the block succeeds; errors call it `path`."""
    temporary = _beside(place, "new")
    with machine_errors(path):
        try:
            with temporary.open(mode, encoding="utf-8" if mode == "w" else None) as out:
                yield out
            put_in_place(temporary, place)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            own = (temporary, str(temporary), place.parent, None)
            if isinstance(error, OSError) and error.filename in own:
                error.filename = str(path)  # the user does not know the temporary name
            raise


def make_folder(path: Path) -> None:
    """Make a folder and its parents durably: they survive a power cut. Or raise OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_folder(folder.parent)


@contextlib.contextmanager
def new_folder(
    path: Path,
    facts: Mapping[str, Any],
    hashes: Mapping[str, str] | None = None,
    *,
    resumable: bool = False,
    apart: Collection[str] = (),
) -> Iterator[Path]:
    """Yield a folder to fill with files; it appears at `path` only when the block succeeds.

    Its manifest has the files' sizes and SHA-256, and `facts`, read when the block ends. An older
    folder at `path` is replaced at the end, and restored if that fails.

    Args:
        path: Where it appears.
        facts: What else its manifest says.
        hashes: SHA-256 of files that are known when the block ends, by their names.
        resumable: Yield `shared_place(path)` with what an earlier call left there; and leave it, unless
            the block raises a DataError: then it is of no use.
        apart: Names of files, known when the block ends, that are not in the manifest: they are deleted
            once the folder is at `path`, so a kill before that loses none of them.

    Raises:
        CheckpointError: There is something at `path` that is not a folder.
        MachineError: The disk or its permissions refuse; nothing appears at `path`.
    """
    temporary = shared_place(path) if resumable else _beside(path, "new")
    with machine_errors(path):
        check_folder(path)
        check_folder(temporary)
        # Do not make its parents: a run deleted during training must not partly reappear.
        temporary.mkdir(exist_ok=resumable)
        try:
            yield temporary
            for file in sorted(temporary.iterdir()):
                flush_file(file)
            write_manifest(temporary, facts, hashes, apart)
            flush_folder(temporary)
            _replace_folder(temporary, path)
            if apart:
                for name in apart:
                    (path / name).unlink(missing_ok=True)
                flush_folder(path)
        except BaseException as error:
            if not resumable or isinstance(error, DataError):
                shutil.rmtree(temporary, ignore_errors=True)
            raise


def shared_place(path: Path) -> Path:
    """Return a temporary name for what will be at `path` that others know.

    Several processes write there together, or a later start goes on with what is there.
    """
    return path.with_name(f".tmp-new-{0:08x}-{path.name}")


def make_empty(folder: Path) -> None:
    """Make a temporary folder, without what an earlier try left there, or raise MachineError."""
    with machine_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename a finished folder to `path`, moving an older one aside first."""
    old = _beside(path, "old")
    try:
        if not is_gone(path):
            move_folder(path, old)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):  # then `remove_leftovers` does it
            _restore(old, path)
        raise
    flush_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def move_folder(path: Path, target: Path) -> None:
    """Rename a folder, or raise OSError; `target` appears whole, before `path` is gone."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = _beside(target, "new")
        try:
            _copy_folder(path, copy)
            copy.rename(target)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        _remove(path)  # it flushes the folder that both are in, before it deletes anything


def _copy_folder(path: Path, target: Path) -> None:
    """Copy a folder's regular files, and those in its folders, durably."""
    target.mkdir()
    for one in path.iterdir():
        if is_folder(one):
            _copy_folder(one, target / one.name)
        elif is_regular(one):
            copy_start(one, target / one.name)
    flush_folder(target)


def copy_start(path: Path, target: Path, length: int | None = None) -> None:
    """Copy a regular file, or its first `length` bytes, to a new file, durably."""
    with open_regular(path) as file, target.open("xb") as copy:
        left = os.fstat(file.fileno()).st_size if length is None else length
        while chunk := file.read(min(left, _CHUNK)):
            copy.write(chunk)
            left -= len(chunk)
        copy.flush()
        os.fsync(copy.fileno())


def remove_folder(path: Path) -> None:
    """Remove a folder, or what is in its place; readers never see it half-deleted.

    A folder that cannot be removed stays: that must not stop a training run.
    """
    with contextlib.suppress(OSError):
        _remove(path)


def _remove(path: Path) -> None:
    trash = _beside(path, "trash")
    try:
        path.rename(trash)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        trash.mkdir()  # says what to go on with after a crash
        flush_folder(path.parent)
        _take_apart(path)
    flush_folder(path.parent)
    _delete(trash)


def _take_apart(path: Path) -> None:
    """Delete a folder where it is, its manifest first."""
    _delete(path / NAME)
    flush_folder(path)
    shutil.rmtree(path)


def _restore(old: Path, path: Path) -> None:
    """Put a folder back that was moved aside, if there is nothing whole in its place."""
    if is_folder(path) and not _is_whole(path) and _is_whole(old):
        shutil.rmtree(path)
    if is_folder(old) and is_gone(path):
        move_folder(old, path)


def remove_leftovers(folder: Path, keep: Path | None = None) -> None:
    """Delete leftovers of an earlier crash in a folder and below, or raise MachineError.

    The one at `keep` stays.

    Call it with the lock held. A folder that was moved aside is restored if the crash happened
    before its replacement arrived; a link or a file never is, since charlm moves only folders aside.
    """
    with machine_errors(folder):
        for path in [path for path in folder.rglob(".tmp-*") if is_leftover(path.name)]:
            if path == keep:
                continue
            place = path.with_name(path.name.split("-", 3)[-1])
            if path.name.startswith(".tmp-old-"):
                _restore(path, place)
            elif path.name.startswith(".tmp-trash-") and _is_begun(path, place):
                shutil.rmtree(place)
            _delete(path)


def _is_whole(folder: Path) -> bool:
    return is_folder(folder) and not is_gone(folder / NAME)


def _is_begun(trash: Path, place: Path) -> bool:
    """Tell whether `trash` stands for a folder that could not be renamed and is half-deleted."""
    empty = is_folder(trash) and not any(trash.iterdir())
    return empty and is_folder(place) and not _is_whole(place)


def _delete(path: Path) -> None:
    if is_folder(path):
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


def open_to_append(path: Path, keep: int) -> IO[bytes]:
    """Open a file, or a new one, to append to its first `keep` bytes; the rest is cut off.

    Raises the errors of `open_regular`.
    """
    file = open_regular(path, "ab", 0)
    try:
        file = own_file(file, path, keep)
        file.truncate(keep)
    except BaseException:
        file.close()
        raise
    return file


def own_file(file: IO[bytes], path: Path, length: int) -> IO[bytes]:
    """Return a file to append to that has no other name: `file`, or a copy that replaces it at `path`.

    A copy of a folder with hard links (`cp -al`, many backups) has the same files under other names:
    what is written into one of them appears in both folders. The copy has the first `length` bytes.
    """
    if os.fstat(file.fileno()).st_nlink < 2:
        return file
    temporary = _beside(path, "new")
    try:
        copy_start(path, temporary, length)
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    file.close()
    return open_regular(path, "ab", 0)


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
