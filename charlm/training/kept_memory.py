"""Memory that stays: what a step frees is kept for the next step, where new memory is slow.

A step allocates some hundred MiB and frees them again. The GNU C library (glibc, on most Linux systems)
returns free memory to the system if it is much, and large blocks always. The next step then gets it
back in pages of 4 KiB, each filled with zeros first: up to a quarter of a step (docs/experiments.md).

The settings are those of a whole process, so importing charlm does not change them. The steps of a
training do. All else (evaluating, sampling, saving, what follows training) begins with the usual ones
and with nothing kept: it uses memory in other pieces, and would need new memory beside what was kept.
No result depends on them.
"""

import ctypes
import math
import mmap
import os
import time
from functools import cache

import numpy as np

SIZE = 8 << 20  # bytes that are filled to measure
SLOWER = 1.5  # times as long as filling memory used before: a reason to keep it

# Numbers of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
# Blocks of up to 32 MiB, glibc's largest, come from a heap that never shrinks. What is added to it at a
# time costs nothing until it is used, and has room for some larger blocks too.
KEPT = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: -1, TOP_PAD: 64 << 20}
# glibc raises its two thresholds up to these as large blocks are freed, until one is set.
RETURNED = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10}

_kept = False  # in this process


def keep_memory(keep: bool) -> None:
    """Keep memory that is freed from now on, if that saves time here, or return it again."""
    global _kept
    keep = keep and can_keep_memory() and new_memory_is_slow()
    if keep == _kept:
        return
    libc = ctypes.CDLL(None)
    for name, value in (KEPT if keep else RETURNED).items():
        libc.mallopt(name, value)
    if not keep:
        libc.malloc_trim(0)
    _kept = keep


@cache
def can_keep_memory() -> bool:
    """Tell whether the C library is glibc, and its user has not set up how it allocates."""
    own = any(name.startswith("MALLOC_") for name in os.environ)
    if own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or os.name == "nt":
        return False
    libc = ctypes.CDLL(None)
    return hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt")


def new_memory_is_slow() -> bool:
    """Tell whether a step would notice that memory is new."""
    new, used = fill_times()
    return new > SLOWER * used


@cache
def fill_times() -> tuple[float, float]:
    """Return the seconds that filling new memory takes, and memory that was used before.

    Each is the best of some tries in turn, so that other programs hardly matter. It takes 10 to 50 ms.
    """
    new = used = math.inf
    with mmap.mmap(-1, SIZE, access=mmap.ACCESS_COPY) as before:
        _fill(before)
        for _ in range(6):
            started = time.perf_counter()
            _fill(before)
            used = min(used, time.perf_counter() - started)
            started = time.perf_counter()
            with mmap.mmap(-1, SIZE, access=mmap.ACCESS_COPY) as block:
                _fill(block)
            new = min(new, time.perf_counter() - started)
    return new, used


def _fill(block: mmap.mmap) -> None:
    np.frombuffer(block, np.uint8).fill(1)
