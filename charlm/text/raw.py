"""Bytes that are not UTF-8: in a Python string, in a file, and in JSON.

In a string, the characters U+DC80 to U+DCFF stand for the bytes 80 to FF, as in Python's names of
files (PEP 383). A file gets the bytes themselves; JSON gets U+FFFD, and all bytes in base64.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

from charlm.errors import DataError, Words

_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs
_WITHOUT_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def decoded(data: bytes, unit: str, where: Words) -> str:
    """Return the text of a prompt or stop text: any bytes for a model of `bytes`, else UTF-8.

    Raises DataError, which names `where`, if it is not UTF-8 but must be.
    """
    try:
        return data.decode("utf-8", "surrogateescape" if unit == "bytes" else "strict")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 at byte {error.start} (0x{data[error.start]:02x})"
        raise DataError(where, what, "write it in UTF-8") from None


def as_bytes(text: str) -> bytes:
    """Return the bytes of a text; a half of a surrogate pair that stands for no byte becomes `?`."""
    return _WITHOUT_BYTE.sub("?", text).encode("utf-8", "surrogateescape")


def as_unicode(text: str) -> str:
    """Return a text with U+FFFD for each byte that is not UTF-8 and each half of a pair, so that it can be printed."""
    return _HALVES.sub("\ufffd", text)


def for_json(key: str, text: str) -> dict[str, str]:
    """Return a text for JSON under `key`, and if it is not UTF-8, its bytes under `key_base64`."""
    fields = {key: as_unicode(text)}
    if fields[key] != text:
        fields[f"{key}_base64"] = base64.b64encode(as_bytes(text)).decode()
    return fields


def from_json(key: str, fields: Mapping[str, Any]) -> str:
    """Return the text that `for_json` wrote."""
    exact = fields.get(f"{key}_base64")
    text: str = fields[key]
    return text if exact is None else decoded(base64.b64decode(exact), "bytes", key)
