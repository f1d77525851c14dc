"""Limits of the machine, measured."""

import statistics

from benches.common import seconds

GEMM_SIDE = 2048
GEMM_FLOPS = 2 * GEMM_SIDE**3


def gemm_seconds(onednn: bool = False) -> float:
    """Return the median seconds of a large product in float32."""
    import torch

    from charlm.models.onednn import Linear

    product = torch.nn.Linear(GEMM_SIDE, GEMM_SIDE, bias=False)
    if onednn:
        product = Linear(product)
    x = torch.ones(GEMM_SIDE, GEMM_SIDE)
    with torch.no_grad():
        return statistics.median(seconds(lambda: product(x)) for _ in range(5))


def seconds_a_gigabyte() -> float:
    """Return the least seconds that reading a gigabyte of memory takes, of some tries."""
    import torch

    numbers = torch.ones(1 << 26)
    numbers.sum()
    return min(seconds(numbers.sum) for _ in range(10)) / (4 * len(numbers) / 1e9)
