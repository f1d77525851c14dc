"""Loops over single characters, compiled by numba.

Each compiled function also carries `@no_type_check`: numba compiles the plain function, which the
run-time checks of the tests would wrap otherwise.
"""

import os
from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled; it runs without Python's lock, and rounds as written.

    The machine code is kept beside the source, or in the user's cache. Where neither can be written,
    each process compiles again.
    """
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available"
        return numba.njit(nogil=True)(function)
    # numba compiles again when the function's own file has changed, but not when a function that it
    # calls has, if that is in another file: so here the stamp of the file is one of all of them.
    stamp = _stamp(function)
    compiled.charlm_stamp = stamp  # type: ignore[attr-defined]
    compiled._cache._cache_file._source_stamp = stamp  # type: ignore[attr-defined]
    return compiled


def _stamp(function: Callable[..., Any]) -> tuple[Any, ...]:
    """Return what machine code depends on: the file, the constants, and the functions that are called."""
    state = os.stat(function.__code__.co_filename)
    found: list[Any] = [state.st_mtime_ns, state.st_size]
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, int | float | tuple):
            found.append((name, value))
        elif stamp := getattr(value, "charlm_stamp", None):
            found.append((name, stamp))
    return tuple(found)
