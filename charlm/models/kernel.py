"""Loops over single characters, compiled by numba.

Each compiled function also carries `@no_type_check`: otherwise, the run-time type checks of the tests
would wrap it before numba compiles it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

Compiled = Callable[..., Any]

OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False}  # without the lock and reference counts


def kernel(function: Compiled) -> Compiled:
    """Compile a function that makes no arrays; it runs without Python's lock, and rounds as written.

    References are not counted: where a function passes on a tuple of many arrays, to count those to
    each would take as long as the work itself.

    The machine code is cached beside the source, or in the user's cache. Where neither can be written,
    each process compiles again.
    """
    try:
        compiled: Compiled = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # "no locator available"
        alone: Compiled = numba.njit(**OPTIONS)(function)
        return alone
    # numba compiles again when the file of the function has changed, but not when the file of a
    # function that it calls has. So the stamp of the file is replaced by one of all these files.
    stamp = _stamp(function)
    compiled.charlm_stamp = stamp  # type: ignore[attr-defined]
    compiled._cache._cache_file._source_stamp = stamp  # type: ignore[attr-defined]
    return compiled


def _stamp(function: Callable[..., Any]) -> str:
    """Return a hash of what the machine code depends on: its file, and all that it has imported so far.

    This is more than what the function itself names: it may call functions that are defined below it.
    """
    # By its content: two versions of a file can have the same time, and the same size.
    found: list[Any] = [hashlib.sha256(Path(function.__code__.co_filename).read_bytes()).digest()]
    for name, value in function.__globals__.items():
        if isinstance(value, np.ndarray):  # its numbers become part of the code
            found.append((name, value.dtype, value.tobytes()))
        elif isinstance(value, int | float | tuple):
            found.append((name, value))
        elif stamp := getattr(value, "charlm_stamp", None):
            found.append((name, stamp))
    return hashlib.sha256(repr(found).encode()).hexdigest()
