"""JSON that someone else may have written: an object of bounded size, or a ValueError."""

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from charlm.storage.regular import open_regular

MAX_BYTES = 1 << 20
Count = Annotated[int, Field(ge=0, lt=2**63)]  # such as a size or a step


def read_object(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file of one JSON object; see `read_bytes`. ValueError if it is none."""
    return parse_object(read_bytes(path, most))


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read a regular file; raise ValueError if it has more than `most` bytes; see `open_regular`."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return data


def parse_object(data: bytes) -> dict[str, Any]:
    """Read one JSON object, or raise ValueError."""
    try:
        content = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def reason(error: Exception) -> str:
    """Return a short reason why a file is not as expected, however long the wrong value is."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} is {reprlib.repr(first['input'])}"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text if len(text) <= 60 else f"{text[:57]}..."
