"""JSON that someone else may have written: an object of bounded size, or a ValueError."""

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeGuard

from pydantic import Field, ValidationError

MAX_BYTES = 1 << 20
Count = Annotated[int, Field(ge=0, lt=2**63)]  # such as a size or a step


def read_object(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than `most`, or holds something else.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")  # a pipe would be waited for
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return parse_object(data)


def parse_object(data: bytes) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        ValueError: It is something else.
    """
    try:
        content = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def is_count(value: Any) -> TypeGuard[int]:
    """Tell whether a value from JSON is a whole number from 0 on, such as a size or a step."""
    return type(value) is int and 0 <= value < 2**63


def reason(error: Exception) -> str:
    """Say in a few words why JSON is not what was expected."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} is {reprlib.repr(first['input'])}"
    return str(error)[:60]
