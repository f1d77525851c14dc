"""The files that a folder or a pattern stands for: each real file once, p2 before p10.

Files and folders whose names begin with a dot are left out, and so are folders of runs, whose
records are no text and change while charlm trains. A note names what else was left out.
"""

import glob
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from charlm.errors import DataError

_A_RUN = {"config.yaml", "tokenizer.json", "checkpoints"}  # the names in a folder of a run
_NUMBER = re.compile(r"(\d+)")


def files_in(folder: str) -> tuple[list[str], list[str]]:
    """Return the files in a folder and the folders inside it, in order, and notes for the user.

    Links to folders are not followed, as they could lead anywhere.

    Raises DataError if the folder is that of a run, OSError if it cannot be read.
    """
    if _is_run(os.listdir(folder)):
        raise DataError(folder, "is the folder of a run, not a text", "name the run's text instead")
    walk = _Walk(follow=False)
    inside = (path for _, paths in walk.folders(folder) for path in paths)
    return _each_once(inside, walk)


def files_like(pattern: str) -> tuple[list[str], list[str]]:
    """Return the files that match a pattern, as `glob` reads it, in order, and notes for the user.

    `**` follows links to folders, but enters each real folder only once.
    """
    walk = _Walk(follow=True)
    return _each_once(dict.fromkeys(_matches(Path(pattern).parts, walk)), walk)


def plain_order(name: str) -> list[str]:
    """Return the files of a folder or a pattern as charlm listed them before it wrote `joiner`.

    Runs that were begun then have their text in this order.
    """
    folder = Path(name)
    if folder.is_dir():
        inside = ((path, path.relative_to(folder).parts) for path in folder.rglob("*"))
        files = [path for path, parts in inside if not any(p.startswith(".") for p in parts)]
    else:
        files = [Path(path) for path in glob.glob(name, recursive=True)]
    return [str(path) for path in sorted(files) if path.is_file()]


class _Walk:
    """A walk through folders. It enters each real folder once and remembers what it left out."""

    def __init__(self, *, follow: bool) -> None:
        self.follow = follow  # links to folders
        self.left_out: dict[str, list[str]] = {}  # paths, by what they are

    def folders(self, root: str) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder from `root` on with what else is in it, those behind links last."""
        seen: set[tuple[int, int]] = set()
        waiting, links = deque([root]), deque[str]()
        while waiting or links:
            folder = (waiting or links).popleft()
            try:
                status = os.stat(folder)
                with os.scandir(folder) as listing:
                    entries = [entry for entry in listing if not entry.name.startswith(".")]
            except OSError:
                if folder == root:
                    raise
                self.leave_out("a folder that may not be read", folder)
                continue
            if (status.st_dev, status.st_ino) in seen:
                self.leave_out("a path to a folder that is read already", folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            if folder != root and _is_run(entry.name for entry in entries):
                self.leave_out("the folder of a run", folder)
                continue
            rest = []
            for entry in entries:
                path = entry.name if folder == "." else entry.path
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif not (entry.is_symlink() and os.path.isdir(path)):
                    rest.append(path)
                elif self.follow:
                    links.append(path)
                else:
                    self.leave_out("a link to a folder, which only a pattern follows", path)
            yield folder, rest

    def leave_out(self, what: str, path: str) -> None:
        """Remember a path for the notes, and what it is."""
        self.left_out.setdefault(what, []).append(path)


def _is_run(names: Iterable[str]) -> bool:
    return _A_RUN.issubset(names)


def _matches(parts: tuple[str, ...], walk: _Walk) -> Iterator[str]:
    """Yield the paths that match the parts of a pattern; some perhaps by more than one way."""
    if "**" not in parts:
        yield from glob.iglob(os.path.join(*parts))
        return
    at = parts.index("**")
    before, after = parts[:at], parts[at + 1 :] or ("*",)
    for start in glob.iglob(os.path.join(*before)) if before else ["."]:
        if not os.path.isdir(start):
            continue
        for folder, _ in walk.folders(start):
            here = () if folder == "." else (glob.escape(folder),)
            yield from _matches((*here, *after), walk)


def _each_once(paths: Iterable[str], walk: _Walk) -> tuple[list[str], list[str]]:
    """Return the regular files in order, each by one path, preferably no link, and the notes."""
    known: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # a link to nowhere or in a circle
            continue
        if not stat.S_ISREG(status.st_mode):
            continue
        identity = status.st_dev, status.st_ino
        if (other := known.setdefault(identity, path)) != path:
            first, second = sorted((other, path), key=lambda p: (os.path.islink(p), _natural(p)))
            known[identity] = first
            walk.leave_out("a path to a file that is read already", second)
    notes = [_note(what, found) for what, found in walk.left_out.items()]
    return sorted(known.values(), key=_natural), notes


def _note(what: str, paths: list[str]) -> str:
    more = f" (and {len(paths) - 1:,} more like it)" if len(paths) > 1 else ""
    return f"{min(paths, key=_natural)}: {what}, left out{more}"


def _natural(path: str) -> tuple[list[object], str]:
    """Return a key that sorts by folders, then numbers by their value: p1, p2, p10."""
    return [_numbers(name) for name in path.split(os.sep)], path


@lru_cache(maxsize=1 << 14)
def _numbers(name: str) -> list[object]:
    return [int(part) if part.isdecimal() else part for part in _NUMBER.split(name)]
