"""Limits of the machine, measured."""

import mmap
import statistics

import numpy as np

from benches.common import seconds

GEMM_SIDE = 2048
GEMM_FLOPS = 2 * GEMM_SIDE**3


def gemm_seconds(onednn: bool = False, dtype: str = "float32") -> float:
    """Return the median seconds of a large product."""
    import torch

    product = torch.nn.Linear(GEMM_SIDE, GEMM_SIDE, bias=False, dtype=getattr(torch, dtype))
    if onednn:
        from charlm.models.onednn import Linear

        product = Linear(product)
    x = torch.ones(GEMM_SIDE, GEMM_SIDE, dtype=getattr(torch, dtype))
    with torch.no_grad():
        return statistics.median(seconds(lambda: product(x)) for _ in range(5))


def seconds_a_gigabyte() -> float:
    """Return the least seconds that reading a gigabyte of memory takes, of some tries."""
    import torch

    numbers = torch.ones(1 << 26)
    numbers.sum()
    return min(seconds(numbers.sum) for _ in range(10)) / (4 * len(numbers) / 1e9)


def limits() -> dict[str, float]:
    """Return what bounds a training step: products, memory, and the cost of fresh memory."""
    figures = {}
    for dtype in ("float32", "bfloat16"):
        gemm_seconds(dtype=dtype)
        figures[f"{dtype} GEMM peak (GFLOP/s)"] = GEMM_FLOPS / gemm_seconds(dtype=dtype) / 1e9
    figures["memory, read (GB/s)"] = 1 / seconds_a_gigabyte()
    figures["memory, copied (GB/s)"] = 1 / _seconds_to_copy_a_gigabyte()
    figures["a page fault (us)"] = fault_seconds() * 1e6
    return figures


def _seconds_to_copy_a_gigabyte() -> float:
    """Return the least seconds that copying a gigabyte takes, of some tries."""
    import torch

    numbers = torch.ones(1 << 26)
    copy = torch.empty_like(numbers)
    copy.copy_(numbers)
    return min(seconds(lambda: copy.copy_(numbers)) for _ in range(10)) / (4 * len(numbers) / 1e9)


def fault_seconds(mib: int = 64) -> float:
    """Return how much longer the first write to a page of fresh memory takes than the second.

    The pages are small ones: the kernel gives a huge one in a single fault.
    """
    with mmap.mmap(-1, mib << 20) as fresh:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            fresh.madvise(mmap.MADV_NOHUGEPAGE)
        pages = np.frombuffer(fresh, np.uint8)[:: mmap.PAGESIZE]
        first, second = (seconds(lambda: pages.fill(1)) for _ in range(2))
        count = len(pages)
        del pages
    return max(first - second, 0.0) / count
