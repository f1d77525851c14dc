"""Every operation that is to last, seen before it happens and after."""

import builtins
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from charlm.runs import weights

Hook = Callable[[str, Path | None], None]  # what is done, and to which path where that is known

_CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir")
_WRITING = set("wax+")


def nothing(what: str, path: Path | None) -> None:
    """Do nothing."""


@contextlib.contextmanager
def watched(root: Path, before: Hook = nothing, after: Hook = nothing) -> Iterator[None]:
    """Call `before` and `after` around each operation while the block runs.

    Operations are those of the system that `charlm.storage` calls, writes to files below `root`,
    and the writing of a safetensors file, which happens outside of Python: before it, and as its
    first half is there. What `before` raises takes the operation's place.
    """
    root = root.resolve()

    def call(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            first = arguments[0]
            path = Path(os.fsdecode(first)) if not isinstance(first, int) else None
            before(name, path)
            result = real(*arguments, **options)
            after(name, path)
            return result

        return instead

    def opened(real: Callable[..., Any]) -> Callable[..., Any]:
        def instead(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            result = real(file, mode, *arguments, **options)
            if isinstance(file, int) or not _WRITING & set(mode):
                return result
            path = Path(os.fsdecode(file)).resolve()
            return _File(result, path, before, after) if path.is_relative_to(root) else result

        return instead

    def save_file(tensors: Any, path: Path, facts: Any) -> None:
        before("write", path)
        real_save(tensors, path, facts)
        whole = path.read_bytes()
        os.truncate(path, len(whole) // 2)
        before("write", path)
        with real_open(path, "r+b") as file:
            file.write(whole)
        after("write", path)

    real_save, real_open = weights.save_file, builtins.open
    with contextlib.ExitStack() as patches:
        for name in _CALLS:
            patches.enter_context(mock.patch.object(os, name, call(name, getattr(os, name))))
        for module in (builtins, io):
            patches.enter_context(mock.patch.object(module, "open", opened(module.open)))
        patches.enter_context(mock.patch.object(weights, "save_file", save_file))
        yield


class _File:
    """A file that is written to, each write seen."""

    def __init__(self, file: Any, path: Path, before: Hook, after: Hook) -> None:
        self._file, self._path, self._before, self._after = file, path, before, after

    def write(self, data: Any) -> int:
        self._before("write", self._path)
        count: int = self._file.write(data)
        self._after("write", self._path)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
