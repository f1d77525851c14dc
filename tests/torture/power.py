"""What a power cut leaves: each moment of a block of code, with what was not flushed lost or torn.

A file's content lasts once the file was flushed (fsync), a name once its folder was. Between those
points a disk may have kept any of it. Simulated here, since a killed process loses nothing that it
handed to the system: after a kill all is there, flushed or not.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.disk import watched

Tree = dict[str, bytes | None]  # files by their paths, folders with None, parents first
LEFT = ("all", "names", "contents", "flushed", "torn")  # what of the unflushed a cut leaves


@dataclass
class State:
    """Folders and files by a number of their own: what names they hold, what content.

    Args:
        names: Of each folder, the entries and their numbers.
        contents: Of each file, the bytes.
    """

    names: dict[int, dict[str, int]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Moment:
    """Just before an operation: what a reader would see, and what is certain to last.

    Args:
        what: The operation.
        seen: The tree as it is.
        lasting: What was flushed of it.
    """

    what: str
    seen: State
    lasting: State

    def left(self, how: str) -> Tree:
        """Return the tree that a power cut at this moment leaves.

        Args:
            how: `all`: everything was written though it was not flushed; `names`: names, but no
                content; `contents`: content, but no names; `flushed`: no more than was promised;
                `torn`: of unflushed content, or of what was appended, the first half, then zeros.
        """
        names = self.lasting.names if how in ("contents", "flushed") else self.seen.names

        def content(number: int) -> bytes:
            seen = self.seen.contents.get(number)
            lasting = self.lasting.contents.get(number, b"")
            if seen is None or seen == lasting or how in ("names", "flushed"):
                return lasting
            if lasting.startswith(seen):  # it was cut off, which does not touch what stays
                return seen
            kept = len(lasting) if seen.startswith(lasting) else 0
            half = (kept + len(seen)) // 2 if how == "torn" else len(seen)
            return seen[:half] + bytes(len(seen) - half)

        def walk(number: int, path: str) -> Iterator[tuple[str, bytes | None]]:
            for name, child in names.get(number, {}).items():
                if child in self.seen.names or child in self.lasting.names:
                    yield path + name, None
                    yield from walk(child, f"{path}{name}/")
                else:
                    yield path + name, content(child)

        return dict(walk(0, ""))


def lay(tree: Tree, target: Path) -> None:
    """Write a tree into a new folder."""
    target.mkdir()
    for name, content in tree.items():
        if content is None:
            (target / name).mkdir()
        else:
            (target / name).write_bytes(content)


def same(tree: Tree) -> frozenset[tuple[str, bytes | None]]:
    """Return what makes a tree different from others: not the random part of temporary names."""
    return frozenset(
        (re.sub(r"(\.tmp-\w+)-[0-9a-f]{8}", r"\1", name), content) for name, content in tree.items()
    )


class Recorder:
    """The moments of a block of code that writes below `root`."""

    def __init__(self, root: Path, moments: list[Moment]) -> None:
        self.root = root
        self.moments = moments
        self._numbers: dict[int, int] = {}  # of inodes that are there: the system uses them again
        self._next = 0
        self._lasting = deepcopy(self._look())  # what was there before has been flushed

    @contextmanager
    def recording(self) -> Iterator["Recorder"]:
        """Record while the block runs; its end is a moment too."""
        with watched(self.root, self._before, self._after):
            yield self
        self._before("end", None)

    def _before(self, what: str, path: Path | None) -> None:
        self.moments.append(Moment(what, self._look(), deepcopy(self._lasting)))

    def _after(self, what: str, path: Path | None) -> None:
        self._look()  # so that a number that becomes free is noticed before it is used again

    def flushed(self, descriptor: int) -> None:
        """Note that a file or folder was flushed."""
        status, seen = os.fstat(descriptor), self._look()
        number = self._numbers.get(status.st_ino)
        if number is None:
            return
        if stat.S_ISDIR(status.st_mode):
            self._lasting.names[number] = dict(seen.names[number])
        else:
            self._lasting.contents[number] = seen.contents[number]

    def _look(self) -> State:
        """Return the tree as it is now."""
        state, present = State(), set()

        def number(status: os.stat_result) -> int:
            present.add(status.st_ino)
            if status.st_ino not in self._numbers:
                self._numbers[status.st_ino] = self._next
                self._next += 1
            return self._numbers[status.st_ino]

        def look(path: str, own: int) -> None:
            state.names[own] = {}
            with os.scandir(path) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    child = state.names[own][entry.name] = number(status)
                    if entry.is_dir(follow_symlinks=False):
                        look(entry.path, child)
                    else:
                        state.contents[child] = Path(entry.path).read_bytes()

        look(str(self.root), number(os.stat(self.root)))
        for inode in self._numbers.keys() - present:
            del self._numbers[inode]
        return state


def moments(
    root: Path, work: Callable[[], object], found: list[Moment] | None = None
) -> list[Moment]:
    """Return the moments of some work that writes below `root`; `found` takes them as they come."""
    recorder = Recorder(root, [] if found is None else found)
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        recorder.flushed(descriptor)

    os.fsync = flush
    try:
        with recorder.recording():
            work()
    finally:
        os.fsync = fsync
    return recorder.moments
