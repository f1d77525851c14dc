"""Where text comes from: a name, a file, a folder, a glob, or standard input.

A `Source` is a list of parts that can be opened again. So a text can be read twice, for its
alphabet and for its ids, without being held in memory. `reading` says what comes between parts.
"""

import contextlib
import difflib
import glob
import io
import os
import re
import shutil
import stat
import sys
import sysconfig
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from charlm.errors import DataError, MachineError, Phrase, Setting
from charlm.storage.machine import machine_errors
from charlm.text.datasets import DATASETS
from charlm.text.files import files_in, files_like, plain_order

EMBEDDED = {
    "python-docs": "Python's reference topics (about 0.46 M characters)",
    "python-stdlib": "source of Python's standard library (about 12 MB)",
}

STANDARD_INPUT = "standard input"  # the name of what is read from there
_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "lib2to3", "__pycache__"}


class Part(NamedTuple):
    """A piece of a text: its name, and how to open its bytes (which may raise OSError)."""

    label: str
    open: Callable[[], BinaryIO | io.RawIOBase]
    path: str | None = None  # of a file, which other processes can open too


@dataclass(frozen=True)
class Source:
    """A text as its parts, in order."""

    name: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()  # remarks for the user on what was left out
    files: int | None = None  # how many a folder or a pattern stands for


def open_source(
    name: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    as_before: bool = False,
) -> Source:
    """Find the text called `name`, fetching a named text if needed.

    Args:
        name: `python-docs`, `shakespeare`, ...; a file, a folder, a glob; or `-`.
        progress: Called with bytes done and bytes in total while a text is fetched.
        as_before: List files in the order of charlm before it had `data.joiner`: p1, p10, p2.

    Raises:
        DataError: There is no such text, or it is not a regular file.
        MachineError: It cannot be read or fetched.
    """
    if not name:  # Path("") is the current folder
        raise DataError("text", "got an empty name", "name a file, a folder, a glob, a text, or -")
    if name == "python-docs":
        return Source(name, (Part(name, _python_docs),))
    if name == "python-stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        code = sorted(root.rglob("*.py"))
        return _of_files(
            name, [str(p) for p in code if not _STDLIB_LEFT_OUT & set(p.relative_to(root).parts)]
        )
    if name == "-":
        return Source(STANDARD_INPUT, (_standard_input(),))
    if name in DATASETS:
        return Source(name, (_file_part(str(_fetched(name, progress))),))
    with machine_errors(Path(name)):
        if os.path.isfile(name):
            return Source(name, (_file_part(str(Path(name))),))
        if as_before and (paths := plain_order(name)):
            return _of_files(name, paths)
        return _of_files(name, *_files(name))


def open_stream(
    name: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> Source:
    """Find the text called `name` to read it once; takes and raises what `open_source` does.

    Standard input is not copied first: what is there can be read before the rest has come. So is a
    pipe with a name, as a shell's `<(command)` has one.
    """
    if name == "-":
        return Source(STANDARD_INPUT, (Part(STANDARD_INPUT, _AsItComes),))
    with contextlib.suppress(OSError, ValueError):  # whatever that is, `open_source` will say
        if stat.S_ISFIFO(os.stat(name).st_mode):
            return Source(name, (_file_part(name),))
    return open_source(name, progress)


class _AsItComes(io.RawIOBase):
    """Standard input; a read waits only where nothing is there."""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.stdin.buffer.fileno()

    def readinto(self, buffer: Any) -> int:
        data = sys.stdin.buffer.read1(len(buffer))  # type: ignore[union-attr]
        buffer[: len(data)] = data
        return len(data)


def _of_files(name: str, paths: Sequence[str], notes: Iterable[str] = ()) -> Source:
    return Source(name, tuple(map(_file_part, paths)), tuple(notes), len(paths))


def _file_part(path: str) -> Part:
    # Without a buffer: chunks are larger, and to make one takes as long as to open a file.
    return Part(path, partial(io.FileIO, path), path)


def _python_docs() -> io.BytesIO:
    from pydoc_data.topics import topics

    return io.BytesIO("\n\n".join(topics[name] for name in sorted(topics)).encode())


def _fetched(name: str, progress: Callable[[int, int], None]) -> Path:
    try:
        return DATASETS[name].fetch(progress)
    except MachineError as error:
        copy = f"add a copy that you have (charlm data add {name} FILE)"
        mend = f"try again, {copy}, or use a text that needs no network: {{}}"
        offline = Setting("data.source", "python-docs")
        raise error.replace(mend=Phrase(mend, offline)) from None


def _standard_input() -> Part:
    """Copy standard input, which can be read only once, to a temporary file."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 -- the closure keeps it open
    with contextlib.ExitStack() as failing, machine_errors(Path(tempfile.gettempdir())):
        failing.enter_context(spool)
        before = state_of(sys.stdin.buffer)  # it may be a file
        shutil.copyfileobj(sys.stdin.buffer, spool)
        if before != state_of(sys.stdin.buffer):
            raise changed_meanwhile(STANDARD_INPUT)
        spool.flush()
        failing.pop_all()

    def reopen() -> BinaryIO:
        spool.seek(0)  # a copy of the descriptor shares its position: one reader at a time
        return os.fdopen(os.dup(spool.fileno()), "rb")

    weakref.finalize(reopen, spool.close)
    return Part(STANDARD_INPUT, reopen)


def state_of(file: BinaryIO | io.IOBase) -> tuple[int, int] | None:
    """Return the size of an open file and when it was changed; None if it is no regular file."""
    try:
        status = os.fstat(file.fileno())
    except io.UnsupportedOperation:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def changed_meanwhile(name: str) -> DataError:
    """Return the error for a text of which one read does not fit another."""
    return DataError(name, "changed while it was being read", "try again")


def _files(name: str) -> tuple[list[str], list[str]]:
    """Return the files that a folder or a pattern stands for, in order, and notes for the user."""
    path = Path(name)
    if path.is_dir():
        files, notes = files_in(str(path))
        if not files:
            what = "; ".join(["no file in this folder", *notes])
            raise DataError(name, what, "name another source")
        return files, notes
    if not path.exists():
        return _globbed(name)
    pipe = Phrase("pipe it in with {}", Setting("data.source", "-"))
    raise DataError(name, "not a regular file", pipe)


def _near_files(path: Path) -> list[str]:
    """Return the file beside a missing one whose name is much like its name, if there is one."""
    with contextlib.suppress(OSError), os.scandir(path.parent) as found:
        names = [one.name for one in islice(found, 1000)]
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
        return [str(path.with_name(name)) for name in near]
    return []


def _globbed(name: str) -> tuple[list[str], list[str]]:
    if not glob.has_magic(name):
        known = [*EMBEDDED, *DATASETS]
        near = difflib.get_close_matches(name, known, n=1) or _near_files(Path(name))
        hint = f"did you mean {near[0]!r}? " if near else ""
        mend = f"{hint}named texts: {', '.join(known)} (charlm data list)"
        raise DataError(name, "no such file or named text", mend)
    files, notes = files_like(name)
    if not files:
        folder = Path(re.split(r"[*?[]", name)[0] or ".")
        folder = folder if folder.is_dir() else folder.parent
        what = "; ".join([f"matches no file in {folder.resolve()}", *notes])
        raise DataError(name, what, "check the pattern")
    return files, notes
