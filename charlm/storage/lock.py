"""One writer per folder: a kernel lock, which is released when its process dies."""

import contextlib
import json
import os
import platform
import reprlib
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from charlm.errors import CheckpointError, MachineError, Phrase, Setting
from charlm.storage.atomic import write_file
from charlm.storage.json_file import read_object
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.regular import check_file, has_other_names, is_regular

LOCK = ".lock"
HOLDER = ".lock-holder.json"
NAMING_SECONDS = 2.0  # from taking the lock to the name on disk, on a busy machine


class _LockedError(MachineError):
    """Another process holds the folder."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder for writing while the block runs.

    The lock belongs to the kernel (flock), so `kill -9` frees it at once. Some network file systems
    ignore these locks.

    Raises:
        MachineError: The folder is not writable, or another process holds it; the message says
            which.
        CheckpointError: There is something in place of the lock's file that is not a file.
    """
    new = is_gone(folder / LOCK)
    lock = _own(folder, _acquired(folder))
    holder = folder / HOLDER
    try:
        facts = {"pid": os.getpid(), "host": platform.node(), "started": time.time()}
        try:
            with machine_errors(folder):
                holder.unlink(missing_ok=True)
                with holder.open("x", encoding="utf-8") as file:  # a new one: no link is followed
                    file.write(json.dumps(facts))
        except MachineError:
            if new:  # a folder that cannot be written to is left as it was
                (folder / LOCK).unlink(missing_ok=True)
            raise
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def refuse_locked(folder: Path) -> None:
    """Raise MachineError if another process holds a folder, or it is not readable."""
    if is_regular(folder / LOCK):
        # The holder's file stays: after a kill, it still says which process used the folder.
        _acquired(folder).release()


def is_locked(folder: Path) -> bool:
    """Tell whether another process writes to a folder; MachineError if that cannot be found out."""
    try:
        refuse_locked(folder)
    except _LockedError:
        return True
    return False


def _acquired(folder: Path) -> BaseFileLock:
    path = folder / LOCK
    with machine_errors(folder):
        check_file(path)
        lock, before = FileLock(path), _inode(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # an OSError too: answered before machine_errors sees it
            what = f"{_holder(folder / HOLDER)} is writing there"
            mend = Phrase("wait for it or choose another {}", Setting("out"))
            raise _LockedError(folder, what, mend) from None
        if before not in (None, _inode(path)):  # another process has replaced it: see `_own`
            lock.release()
            return _acquired(folder)
    return lock


def _own(folder: Path, lock: BaseFileLock) -> BaseFileLock:
    """Return a lock of this folder alone.

    In a copy of a folder with hard links (`cp -al`), both have the same lock; it is replaced while it
    is held.
    """
    path = folder / LOCK
    with machine_errors(folder):
        if not has_other_names(path):
            return lock
        try:
            write_file(path, b"")
            return _acquired(folder)
        finally:
            lock.release()


def _inode(path: Path) -> int | None:
    return None if is_gone(path) else path.lstat().st_ino


def _holder(path: Path) -> str:
    # Who has just taken the lock is about to write its name: it gets a moment.
    deadline = time.monotonic() + NAMING_SECONDS
    while (name := _described(path)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return name or "another process"


def _described(holder: Path) -> str | None:
    try:
        facts = read_object(holder)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["started"]))
        host = str(facts["host"])
        host = host if host.isprintable() and len(host) < 256 else reprlib.repr(host)
        return f"process {reprlib.repr(facts['pid'])} on {host} (since {since})"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, CheckpointError):
        return None
