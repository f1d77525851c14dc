"""A disk that counts what is asked of it and fails when told to, and a misbehaving server."""

import errno
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from tests.storage.server import server

__all__ = ["server"]


class Crash(BaseException):
    """The machine lost power: nothing after this happens, no tidying up either."""


class Disk:
    """Records durable operations; `fail` makes one of them, or all from one on, raise."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.fail_at = 0
        self.error: BaseException | None = None
        self.sticky = False

    def fail(self, at: int, error: BaseException, *, sticky: bool = False) -> None:
        self.log, self.fail_at, self.error, self.sticky = [], at, error, sticky

    def works_again(self) -> None:
        self.error = None

    def count(self, *entry: Any) -> None:
        self.log.append(entry)
        number = len(self.log)
        if self.error and (number == self.fail_at or (self.sticky and number > self.fail_at)):
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()

    def watched(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            # A file is known by its inode, which stays when it is renamed.
            what = os.fstat(arguments[0]).st_ino if name == "fsync" else str(arguments[0])
            disk.count(name, what)
            return real(*arguments, **options)

        return call

    for module, name in [(os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink")]:
        monkeypatch.setattr(module, name, watched(getattr(module, name), name))
    monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree, "rmtree"))
    return disk


@pytest.fixture(params=["plain", "overlay"])
def file_system(request: pytest.FixtureRequest, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system; an overlay can rename no folder but a new one, as if the image had the others."""
    rename = os.rename

    def refusing(path: Any, target: Any) -> None:
        new = os.path.basename(path).startswith(".tmp-new-")
        if os.path.isdir(path) and not os.path.islink(path) and not new:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))
        rename(path, target)

    if request.param == "overlay":
        monkeypatch.setattr(os, "rename", refusing)
    return str(request.param)
