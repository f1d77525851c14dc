"""JSON that someone else may have written: an object of bounded size, or a ValueError."""

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

MAX_BYTES = 1 << 20
Count = Annotated[int, Field(ge=0, lt=2**63)]  # such as a size or a step


def read_object(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file of one JSON object, or raise OSError or ValueError; see `read_bytes`."""
    return parse_object(read_bytes(path, most))


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read a file, or raise OSError, or ValueError if it has more than `most` bytes."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")  # a pipe would be waited for
    with path.open("rb") as file:
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
