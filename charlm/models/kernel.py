"""Loops over single characters, compiled by numba.

Each compiled function also carries `@no_type_check`: numba compiles the plain function, which the
run-time checks of the tests would wrap otherwise.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

Compiled = Callable[..., Any]


def lean_kernel(function: Compiled) -> Compiled:
    """Return the function compiled as `kernel` does, for one that makes no arrays.

    It does not count references. Where it passes a tuple of many arrays on, counting each of them would
    take as long as the work itself.
    """
    return kernel(function, _nrt=False)


def kernel(function: Compiled, **options: Any) -> Compiled:
    """Return the function compiled; it runs without Python's lock, and rounds as written.

    The machine code is kept beside the source, or in the user's cache. Where neither can be written,
    each process compiles again.
    """
    try:
        compiled: Compiled = numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # "no locator available"
        alone: Compiled = numba.njit(nogil=True, **options)(function)
        return alone
    # numba compiles again when the function's own file has changed, but not when a function that it
    # calls has, if that is in another file: so here the stamp of the file is one of all of them.
    stamp = _stamp(function)
    compiled.charlm_stamp = stamp  # type: ignore[attr-defined]
    compiled._cache._cache_file._source_stamp = stamp  # type: ignore[attr-defined]
    return compiled


def _stamp(function: Callable[..., Any]) -> str:
    """Return a hash of what machine code depends on: the file, and all that it has imported so far.

    Not only what the function names itself: it may call functions that are defined below it.
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
