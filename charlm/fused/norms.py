"""A residual addition and the norm after it, and back."""

from typing import no_type_check

import numpy as np
from numba import prange, uint64

from charlm.fused.dropout import add_branch, gradient_of_branch
from charlm.fused.numbers import EPS, ONE, ZERO, Array, Number, narrow, wide
from charlm.models.kernel import parallel_kernel


@parallel_kernel
@no_type_check
def add_rms_norm(
    x: Array,
    branch: Array,
    total: Array,
    out: Array,
    scale: Array,
    length: int,
    own: int,
    seed: int,
    threshold: int,
) -> None:
    """Add a branch to x, and divide the total by its root mean square, shifted by `token_shift`.

    x, total (N, C), branch (N, C), or (0, C) for none; scale (N,): 1 over the root. Windows have
    `length` rows. The channels from `own` on go to the next row of the window.
    """
    n, c = x.shape
    for r in prange(n):
        add_branch(x, branch, total, r, seed, threshold)
        squares = ZERO
        for i in range(c):
            squares += total[r, i] * total[r, i]
        k = ONE / np.sqrt(squares / np.float32(c) + EPS)
        scale[r] = k
        for i in range(own):
            out[r, i] = narrow(total[r, i] * k, out)
        if r % length == 0:
            for i in range(uint64(own), uint64(c)):
                out[r, i] = narrow(ZERO, out)
        if (r + 1) % length != 0:
            for i in range(uint64(own), uint64(c)):
                out[r + 1, i] = narrow(total[r, i] * k, out)


@parallel_kernel
@no_type_check
def rms_norm_backward(
    d_out: Array,
    x: Array,
    scale: Array,
    gradient: Array,
    low: Array,
    length: int,
    own: int,
    seed: int,
    threshold: int,
) -> None:
    """Add the gradient through norm and shift to `gradient`; `low` is the branch's part of it."""
    n, c = x.shape
    for r in prange(n):
        last = (r + 1) % length == 0  # what it shifts on leaves the window
        following, kept = (uint64(r), ZERO) if last else (uint64(r + 1), ONE)
        k, along = scale[r], ZERO
        for i in range(own):
            along += wide(d_out[r, i]) * x[r, i]
        for i in range(uint64(own), uint64(c)):
            along += wide(d_out[following, i]) * kept * x[r, i]
        along = along * k * k / np.float32(c)
        for i in range(own):
            gradient[r, i] += (wide(d_out[r, i]) - x[r, i] * along) * k
        for i in range(uint64(own), uint64(c)):
            gradient[r, i] += (wide(d_out[following, i]) * kept - x[r, i] * along) * k
        gradient_of_branch(gradient, low, r, seed, threshold)


@parallel_kernel
@no_type_check
def add_layer_norm(
    x: Array,
    branch: Array,
    total: Array,
    gain: Array,
    out: Array,
    mean: Array,
    scale: Array,
    eps: Number,
    seed: int,
    threshold: int,
) -> None:
    """Add a branch to x, and normalise the total to mean 0 and deviation 1, times `gain`.

    mean, scale (N,): 1 over the deviation. Other shapes as in `add_rms_norm`.
    """
    n, c = x.shape
    width = np.float32(c)
    for r in prange(n):
        add_branch(x, branch, total, r, seed, threshold)
        m, squares = ZERO, ZERO
        for i in range(c):
            m += total[r, i]
        m /= width
        for i in range(c):
            squares += (total[r, i] - m) * (total[r, i] - m)
        k = ONE / np.sqrt(squares / width + eps)
        mean[r], scale[r] = m, k
        for i in range(c):
            out[r, i] = narrow((total[r, i] - m) * k * gain[i], out)


@parallel_kernel
@no_type_check
def layer_norm_backward(
    d_out: Array,
    x: Array,
    gain: Array,
    mean: Array,
    scale: Array,
    gradient: Array,
    low: Array,
    d_gains: Array,
    seed: int,
    threshold: int,
) -> None:
    """Add the gradient through the norm to `gradient`; `low` is the branch's part of it.

    d_gains (P, C): sums of the gradient of the gain, over each of P parts of the rows.
    """
    n, c = x.shape
    parts = d_gains.shape[0]
    width = np.float32(c)
    for part in prange(parts):
        for i in range(c):
            d_gains[part, i] = ZERO
        for r in range(n * part // parts, n * (part + 1) // parts):
            m, k = mean[r], scale[r]
            along, level = ZERO, ZERO
            for i in range(c):
                d = wide(d_out[r, i]) * gain[i]
                level += d
                along += d * (x[r, i] - m)
            along = along * k * k / width
            level /= width
            for i in range(c):
                d_gains[part, i] += wide(d_out[r, i]) * (x[r, i] - m) * k
            for i in range(c):
                d = wide(d_out[r, i]) * gain[i]
                gradient[r, i] += (d - level - (x[r, i] - m) * along) * k
            gradient_of_branch(gradient, low, r, seed, threshold)
