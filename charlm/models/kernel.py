"""Loops over single characters, compiled by numba.

Each compiled function also carries `@no_type_check`: numba compiles the plain function, which the
run-time checks of the tests would wrap otherwise.
"""

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled; it runs without Python's lock, and rounds as written.

    The machine code is kept beside the source, or in the user's cache. Where neither can be written,
    each process compiles again.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available"
        return numba.njit(nogil=True)(function)
