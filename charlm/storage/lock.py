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

from charlm.errors import MachineError, Phrase, Setting
from charlm.storage.json_file import read_object
from charlm.storage.machine import machine_errors

LOCK = ".lock"
HOLDER = ".lock-holder.json"


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder for writing while the block runs.

    The lock belongs to the kernel (flock), so `kill -9` frees it at once. Some network file systems
    ignore these locks. Raise MachineError if the folder is not writable, or if another process
    holds it; the message says which.
    """
    new = not (folder / LOCK).exists()
    lock = _acquired(folder)
    holder = folder / HOLDER
    try:
        facts = {"pid": os.getpid(), "host": platform.node(), "started": time.time()}
        try:
            with machine_errors(folder):
                holder.unlink(missing_ok=True)  # do not follow a link or wait for a pipe
                holder.write_text(json.dumps(facts), encoding="utf-8")
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
    if (folder / LOCK).exists():
        # The holder's file stays: after a kill, it still says which process used the folder.
        _acquired(folder).release()


def _acquired(folder: Path) -> BaseFileLock:
    lock = FileLock(folder / LOCK)
    with machine_errors(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:  # an OSError too: answered before machine_errors sees it
            what = f"{_describe(folder / HOLDER)} is writing there"
            mend = Phrase("wait for it or choose another {}", Setting("out"))
            raise MachineError(folder, what, mend) from None
    return lock


def _describe(holder: Path) -> str:
    try:
        facts = read_object(holder)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["started"]))
        host = str(facts["host"])
        host = host if host.isprintable() and len(host) < 256 else reprlib.repr(host)
        return f"process {reprlib.repr(facts['pid'])} on {host} (since {since})"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
