"""Dropout in kernels, and the addition of a branch after its dropout."""

from typing import no_type_check

import numpy as np
from numba import prange

from charlm.fused.numbers import ZERO, Array, Number, narrow, wide
from charlm.models.kernel import inner, parallel_kernel

# Whether a number is kept follows from its index and a seed, so no mask is stored. It is dropped where
# a hash of both is below `threshold`: 2^32 times the probability, or 0 for no dropout.
SEEDS = 2**32  # how many seeds there are, and how many hashes
NO_DROPOUT = np.uint32(0), np.uint32(0)  # a seed and a threshold


@inner
@no_type_check
def factor_of_kept(threshold: int) -> Number:
    """Return what numbers that are kept are multiplied by, so that their mean stays."""
    return np.float32(4294967296.0 / (4294967296.0 - np.float64(threshold)))


@inner
@no_type_check
def is_kept(row: int, c: int, i: int, seed: int, threshold: int) -> bool:
    """Say whether number i of a row of c is kept: by two rounds of the hash `lowbias32`."""
    x = np.uint32(np.uint32(np.uint32(row) * np.uint32(c)) + np.uint32(i)) ^ seed
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    # The seed once more: else two seeds would give one sequence in another order.
    x = np.uint32((x ^ (x >> np.uint32(15)) ^ seed) * np.uint32(0x846CA68B))
    return x >= threshold


@parallel_kernel
@no_type_check
def dropout(x: Array, out: Array, seed: int, threshold: int) -> None:
    """Drop numbers of x (N, C): out = x or 0, over the share that is kept."""
    c = x.shape[1]
    for r in prange(x.shape[0]):
        factor = factor_of_kept(threshold)
        for i in range(c):
            kept = is_kept(r, c, i, seed, threshold)
            out[r, i] = narrow(wide(x[r, i]) * factor if kept else ZERO, out)


@inner
@no_type_check
def add_branch(x: Array, branch: Array, total: Array, r: int, seed: int, threshold: int) -> None:
    """Compute row r of total = x + branch, after dropout of the branch."""
    c = x.shape[1]
    if branch.shape[0] == 0:
        for i in range(c):
            total[r, i] = x[r, i]
    elif threshold == 0:
        for i in range(c):
            total[r, i] = x[r, i] + wide(branch[r, i])
    else:
        factor = factor_of_kept(threshold)
        for i in range(c):
            kept = is_kept(r, c, i, seed, threshold)
            total[r, i] = x[r, i] + (wide(branch[r, i]) * factor if kept else ZERO)


@inner
@no_type_check
def gradient_of_branch(gradient: Array, low: Array, r: int, seed: int, threshold: int) -> None:
    """Compute row r of the gradient of the branch from that of the total."""
    c = gradient.shape[1]
    if threshold == 0:
        for i in range(c):
            low[r, i] = narrow(gradient[r, i], low)
    else:
        factor = factor_of_kept(threshold)
        for i in range(c):
            kept = is_kept(r, c, i, seed, threshold)
            low[r, i] = narrow(gradient[r, i] * factor if kept else ZERO, low)
