"""A pickle of dictionaries, numbers and texts, read without running anything in it.

nanoGPT keeps its alphabet in such a file, `meta.pkl`. Python's own reader runs what a pickle says, and
even one that is kept from that can be made to take gigabytes. So this one knows only the operations that
such a file needs, takes its parts from the standard library's `pickletools`, and refuses any other by name.
"""

import io
import pickletools  # nosec B403
from pathlib import Path
from typing import Any

from charlm.errors import CheckpointError, DataError, Phrase, Setting
from charlm.storage import machine_errors

# Of 40,000 symbols: more than texts have.
MOST_BYTES, MOST_OPERATIONS = 4 << 20, 200_000
MOST_NUMBER = 0x110000  # of a key: of larger ones, very many can have the same hash
NUMBERS_AND_TEXTS = (
    "BININT",
    "BININT1",
    "BININT2",
    "INT",
    "LONG1",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "UNICODE",
)
PUT, GET = ("BINPUT", "LONG_BINPUT", "PUT"), ("BINGET", "LONG_BINGET", "GET")
IGNORED = ("PROTO", "FRAME")


def read_plain_pickle(path: Path) -> Any:
    """Return the dictionaries, numbers and texts in a pickle.

    Raises:
        CheckpointError: It holds anything else, is damaged, or has more than 4 MiB.
        MachineError: It cannot be read.
    """
    with machine_errors(path):
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_BYTES else b""
    if size > MOST_BYTES:
        what = f"{size:,} bytes, more than an alphabet needs"
        raise CheckpointError(path, what, "name another file")
    try:
        return _run(data)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"not a pickle of an alphabet ({error})"
        mend = Phrase("name nanoGPT's meta.pkl, or use {}", Setting("text"))
        raise CheckpointError(path, what, mend) from None
    except DataError as error:
        raise error.replace(where=path) from None


def _run(data: bytes) -> Any:
    """Return what a pickle builds, by the operations above; ValueError for any other."""
    stack: list[Any] = []
    marks: list[int] = []  # where in the stack
    memo: dict[Any, Any] = {}
    for count, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
        name = operation.name
        if count > MOST_OPERATIONS:
            raise ValueError("it has more operations than an alphabet needs")
        if name in NUMBERS_AND_TEXTS:
            stack.append(argument)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in PUT:
            memo[argument] = stack[-1]
        elif name in GET:
            stack.append(memo[argument])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][_key(key)] = value
        elif name == "SETITEMS":
            first = marks.pop()
            items = stack[first:]
            del stack[first:]
            for key, value in zip(items[::2], items[1::2], strict=True):
                stack[-1][_key(key)] = value
        elif name == "STOP":
            return stack.pop()
        elif name not in IGNORED:
            raise ValueError(f"it asks for {name}")
    raise ValueError("it is cut off")


def _key(key: Any) -> int | str:
    if not isinstance(key, int | str):
        raise ValueError("a key is no number and no text")
    if isinstance(key, int) and not 0 <= key < MOST_NUMBER:
        raise ValueError("a key is no number of a symbol")
    return key
