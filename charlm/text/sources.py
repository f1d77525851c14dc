"""Where text comes from: a name, a file, a folder, a glob, or standard input.

A `Source` is a list of parts that can be opened again. So a text can be read twice, for its
alphabet and for its ids, without being held in memory.
"""

import difflib
import glob
import io
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from charlm.errors import DataError, MachineError, Phrase, Setting
from charlm.storage.machine import machine_errors
from charlm.text.datasets import DATASETS

EMBEDDED = {
    "python-docs": "Python's reference topics (about 0.46 M characters)",
    "python-stdlib": "source of Python's standard library (about 12 MB)",
}

_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Part:
    """A piece of a text: its name, and how to open its bytes (which may raise OSError)."""

    label: str
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Source:
    """A text as its parts, joined in order with nothing between them."""

    name: str
    parts: tuple[Part, ...]


def open_source(
    name: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> Source:
    """Find the text called `name`, fetching a named text if needed.

    Args:
        name: `python-docs`, `shakespeare`, ...; a file, a folder, a glob; or `-`.
        progress: Called with bytes done and bytes in total while a text is fetched.

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
        files = [p for p in code if not _STDLIB_LEFT_OUT & set(p.relative_to(root).parts)]
    elif name == "-":
        return Source("standard input", (_standard_input(),))
    else:
        files = [_fetched(name, progress)] if name in DATASETS else _files(name)
    return Source(name, tuple(map(_file_part, files)))


def _file_part(path: Path) -> Part:
    return Part(str(path), lambda: path.open("rb"))


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
    with machine_errors(Path(tempfile.gettempdir())):
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.flush()

    def reopen() -> BinaryIO:
        spool.seek(0)  # a copy of the descriptor shares its position: one reader at a time
        return os.fdopen(os.dup(spool.fileno()), "rb")

    weakref.finalize(reopen, spool.close)
    return Part("standard input", reopen)


def _files(name: str) -> list[Path]:
    path = Path(name)
    with machine_errors(path):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
            if not files:
                raise DataError(name, "no file in this folder", "name another source")
            return files
        if not path.exists():
            return _globbed(name)
        if not path.is_file():
            pipe = Phrase("pipe it in with {}", Setting("data.source", "-"))
            raise DataError(name, "not a regular file", pipe)
    return [path]


def _globbed(name: str) -> list[Path]:
    if not glob.has_magic(name):
        known = [*EMBEDDED, *DATASETS]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        mend = f"{hint}named texts: {', '.join(known)} (charlm data list)"
        raise DataError(name, "no such file or named text", mend)
    files = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
    if not files:
        folder = Path(re.split(r"[*?[]", name)[0] or ".")
        folder = folder if folder.is_dir() else folder.parent
        raise DataError(name, f"matches no file in {folder.resolve()}", "check the pattern")
    return files


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
