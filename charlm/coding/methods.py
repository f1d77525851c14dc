"""How a text is coded: without a run, or with one; and which way a file was.

The header of a file says it: `{"model": "portable", ...}` or `{"model": "run", ...}`, with all that
decoding depends on.
"""

import reprlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from charlm.coding import bits
from charlm.coding.coder import Coder
from charlm.coding.container import GET_ANOTHER
from charlm.coding.portable import PortableCoder
from charlm.errors import DataError, Setting, UsageError

CHUNK = 1 << 20


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


def without_run(alphabet: bytes) -> Method:
    """Return the method of texts of these bytes that begins with nothing and learns while it reads."""
    header = {"model": "portable", "engine": bits.NAME, "alphabet": _as_bitmap(alphabet)}
    return Method(header, lambda: PortableCoder(alphabet))


def bytes_of(file: IO[bytes]) -> bytes:
    """Return the bytes that occur in a file, increasing; the file is read and wound back.

    All 256 for a stream, which can be read only once.
    """
    if not file.seekable():
        return bytes(range(256))
    found, begin = set[int](), file.tell()
    while len(found) < 256 and (chunk := file.read(CHUNK)):
        found |= set(chunk)
    file.seek(begin)
    return bytes(sorted(found))


def method_of(header: Mapping[str, Any], name: str, run: Path | None) -> Method:
    """Return the method that a file was written with.

    Args:
        header: Of the file.
        name: What messages call the file.
        run: The run that it was compressed with; None: the one of the same name.

    Raises:
        CheckpointError: It was compressed with another run, or the run is missing or damaged.
        DataError: The header is of another charlm.
        MachineError: This machine computes other bits than the one that wrote it.
        UsageError: A run is given, and it was compressed without one.
    """
    if header.get("model") == "run":
        from charlm.coding.of_run import method_of_run  # which imports torch

        return method_of_run(header, name, run)
    if run is not None:
        raise UsageError(
            Setting("run", str(run)), f"{name} was compressed without a run", "leave it out"
        )
    if header.get("engine") != bits.NAME:
        found = reprlib.repr(header.get("engine"))
        what = f"was written with the model {found}, this charlm has {bits.NAME!r}"
        raise DataError(name, what, "use the charlm that wrote it")
    try:
        return without_run(_from_bitmap(str(header.get("alphabet"))))
    except ValueError:
        raise DataError(name, "is damaged in its header", GET_ANOTHER) from None


def _as_bitmap(alphabet: bytes) -> str:
    """Return a set of bytes as 64 hexadecimal digits, a bit for each byte."""
    return f"{sum(1 << byte for byte in alphabet):064x}"


def _from_bitmap(digits: str) -> bytes:
    bitmap = int(digits, 16)
    return bytes(byte for byte in range(256) if bitmap >> byte & 1)
