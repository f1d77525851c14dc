"""Choose how to code a text, with a run or without; and find out how a file was coded.

The header of a file says how: `{"model": "portable", ...}` or `{"model": "run", ...}`, with all that
decoding depends on.
"""

import io
import reprlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from charlm.coding.bits import ENGINE
from charlm.coding.coder import Coder
from charlm.coding.container import GET_ANOTHER
from charlm.coding.portable import PortableCoder, check_tree, tree_of
from charlm.errors import DataError, Setting, UsageError

if TYPE_CHECKING:
    from charlm.models import LanguageModel

START = 1 << 20  # bytes at the start of a text, from which its tree is made

Read = Callable[[int], bytes]  # returns so many bytes of a text, the next; fewer only at its end


@dataclass(frozen=True)
class Method:
    """A way to code a text.

    Args:
        header: What decoding depends on.
        make: Returns a new coder.
        working: Returns a context in which coders are made and used.
    """

    header: Mapping[str, Any]
    make: Callable[[], Coder]
    working: Callable[[], AbstractContextManager[None]] = nullcontext


def without_run(source: IO[bytes]) -> tuple[Method, Read]:
    """Return the method whose model starts empty and learns while it reads; and how to read the text.

    The model must know which bytes occur. So a file is read once to find out, and then rewound; in a
    stream that is longer than its start, any byte may occur.
    """
    begin = source.tell() if source.seekable() else None
    start = source.read(START)
    found = set(start)
    if begin is None:
        found = found if len(start) < START else set(range(256))
        read = _after(start, source)
    else:
        while len(found) < 256 and (chunk := source.read(START)):
            found |= set(chunk)
        source.seek(begin)
        read = source.read
    return _portable(tree_of(start, bytes(sorted(found)))), read


def _after(start: bytes, rest: IO[bytes]) -> Read:
    """Return what reads a text whose start was read already."""
    waiting = io.BytesIO(start)

    def read(size: int) -> bytes:
        data = waiting.read(size)
        return data if len(data) == size else data + rest.read(size - len(data))

    return read


def _portable(tree: str) -> Method:
    header = {"model": "portable", "engine": ENGINE, "tree": tree}
    return Method(header, lambda: PortableCoder(tree))


def method_of(
    header: Mapping[str, Any],
    name: str,
    run: Path | None,
    prepare: "Callable[[LanguageModel], None]" = lambda model: None,
) -> Method:
    """Return the method that a file was written with.

    Args:
        header: Of the file.
        name: What messages call the file.
        run: The run that it was compressed with; None: the one of the same name.
        prepare: Called with the model of the run before it is used.

    Raises:
        CheckpointError: It was compressed with another run, or the run is missing or damaged.
        DataError: The header is damaged, or of another version of charlm.
        MachineError: This machine computes other bits than the one that wrote it.
        UsageError: A run is given, and it was compressed without one.
    """
    if header.get("model") == "run":
        from charlm.coding.of_run import method_of_run  # which imports torch

        return method_of_run(header, name, run, prepare)
    if run is not None:
        raise UsageError(
            Setting("run", str(run)), f"{name} was compressed without a run", "leave it out"
        )
    if header.get("engine") != ENGINE:
        found = reprlib.repr(header.get("engine"))
        what = f"was compressed with the model {found}, but this charlm has {ENGINE!r}"
        raise DataError(name, what, "use the version of charlm that wrote it")
    try:
        check_tree(tree := str(header.get("tree")))
    except ValueError:
        raise DataError(name, "is damaged in its header", GET_ANOTHER) from None
    return _portable(tree)
