"""What a GPT's training step does between its matrix products, each in one pass over memory.

Run one by one, as the lessons write them, these operations read and write every activation a dozen
times, and memory is slower than arithmetic. Here each kernel is a loop over rows, compiled by numba
and run on torch's threads: a row is read once, stays in the processor's cache while it is worked on
in float32, and is written once. `charlm.training.fused` calls them; the lessons say what they mean.

Arrays are float32, or uint16 with the bits of bfloat16 (numba knows no bfloat16): its sixteen bits
are the upper half of a float32's.
"""

import math
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from numba import prange
from numba.extending import overload
from torch import Tensor

from charlm.models.kernel import PARALLEL, parallel_kernel

EPS = np.float32(torch.finfo(torch.float32).eps)
ONE, ZERO, HALF = np.float32(1), np.float32(0), np.float32(0.5)

inner = numba.njit(**{**PARALLEL, "parallel": False})  # called in kernels, compiled into them


def array(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a tensor's memory as the array that kernels take."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def wide(x: Any) -> Any:
    """Return a number of an array as float32; only in kernels."""
    raise NotImplementedError


def narrow(x: Any, like: Any) -> Any:
    """Round a float32 to what an array holds, to the nearest, ties to even; only in kernels."""
    raise NotImplementedError


@overload(wide)
@no_type_check
def _wide(x):
    if isinstance(x, numba.types.Integer):
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@overload(narrow)
@no_type_check
def _narrow(x, like):
    if not isinstance(like.dtype, numba.types.Integer):
        return lambda x, like: x

    def rounded(x, like):
        # A carry into the exponent is right; NaN stays NaN unless all its lower bits are set.
        bits = np.float32(x).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return rounded


# --- Norms ----------------------------------------------------------------------------------------


@parallel_kernel
@no_type_check
def add_rms_norm(x, branch, total, out, scale, length, own):
    """total = x + branch; out = total over its root mean square, shifted by `token_shift`.

    x, total (N, C), branch (N, C), or (0, C) for none; scale (N,): 1 over the root. Windows have
    `length` rows. The channels from `own` on go to the next row of the window.
    """
    n, c = x.shape
    width = np.float32(c)
    for r in prange(n):
        if branch.shape[0]:
            for i in range(c):
                total[r, i] = x[r, i] + wide(branch[r, i])
        else:
            for i in range(c):
                total[r, i] = x[r, i]
        squares = ZERO
        for i in range(c):
            squares += total[r, i] * total[r, i]
        k = ONE / np.sqrt(squares / width + EPS)
        scale[r] = k
        for i in range(own):
            out[r, i] = narrow(total[r, i] * k, out)
        if own < c:
            if r % length == 0:
                for i in range(own, c):
                    out[r, i] = narrow(ZERO, out)
            if (r + 1) % length != 0:
                for i in range(own, c):
                    out[r + 1, i] = narrow(total[r, i] * k, out)


@parallel_kernel
@no_type_check
def rms_norm_backward(d_out, x, scale, gradient, low, length, own):
    """Add the gradient through norm and shift to `gradient`; `low` is the sum, rounded."""
    n, c = x.shape
    width = np.float32(c)
    for r in prange(n):
        k = scale[r]
        along = ZERO
        for i in range(own):
            along += wide(d_out[r, i]) * x[r, i]
        last = (r + 1) % length == 0  # what it shifts on leaves the window
        if own < c and not last:
            for i in range(own, c):
                along += wide(d_out[r + 1, i]) * x[r, i]
        along = along * k * k / width
        for i in range(own):
            value = gradient[r, i] + (wide(d_out[r, i]) - x[r, i] * along) * k
            gradient[r, i] = value
            low[r, i] = narrow(value, low)
        if own < c and last:
            for i in range(own, c):
                value = gradient[r, i] - x[r, i] * along * k
                gradient[r, i] = value
                low[r, i] = narrow(value, low)
        elif own < c:
            for i in range(own, c):
                value = gradient[r, i] + (wide(d_out[r + 1, i]) - x[r, i] * along) * k
                gradient[r, i] = value
                low[r, i] = narrow(value, low)


@parallel_kernel
@no_type_check
def add_layer_norm(x, branch, total, gain, out, mean, scale, eps):
    """total = x + branch; out = gain * (total - its mean) / its standard deviation.

    mean, scale (N,): 1 over the deviation. Other shapes as in `add_rms_norm`.
    """
    n, c = x.shape
    width = np.float32(c)
    for r in prange(n):
        if branch.shape[0]:
            for i in range(c):
                total[r, i] = x[r, i] + wide(branch[r, i])
        else:
            for i in range(c):
                total[r, i] = x[r, i]
        m = ZERO
        for i in range(c):
            m += total[r, i]
        m /= width
        squares = ZERO
        for i in range(c):
            squares += (total[r, i] - m) * (total[r, i] - m)
        k = ONE / np.sqrt(squares / width + eps)
        mean[r], scale[r] = m, k
        for i in range(c):
            out[r, i] = narrow((total[r, i] - m) * k * gain[i], out)


@parallel_kernel
@no_type_check
def layer_norm_backward(d_out, x, gain, mean, scale, gradient, low, d_gains):
    """Add the gradient through the norm to `gradient`; `low` is the sum, rounded.

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
                value = gradient[r, i] + (d - level - (x[r, i] - m) * along) * k
                gradient[r, i] = value
                low[r, i] = narrow(value, low)


# --- Heads ----------------------------------------------------------------------------------------


@inner
@no_type_check
def _normalise_and_rotate(low, high, cos, sin, out):
    """Normalise one head's query or key and rotate it; return 1 over its root mean square."""
    half = low.shape[0]
    squares = ZERO
    for i in range(half):
        squares += wide(low[i]) * wide(low[i]) + wide(high[i]) * wide(high[i])
    k = ONE / np.sqrt(squares / np.float32(2 * half) + EPS)
    for i in range(half):
        out[i] = narrow((wide(low[i]) * cos[i] - wide(high[i]) * sin[i]) * k, out)
    for i in range(half):
        out[half + i] = narrow((wide(low[i]) * sin[i] + wide(high[i]) * cos[i]) * k, out)
    return k


@parallel_kernel
@no_type_check
def split_heads(qkv, table, query, key, value, scale):
    """Split (N, 3C) into heads (B, H, T, D); normalise queries and keys, and rotate them.

    table (2, T, D / 2): cosines and sines; scale (2, N, H): of queries, then of keys.
    """
    batch, heads, length, d = query.shape
    half = d // 2
    for r in prange(batch * length):
        b, t = r // length, r % length
        cos, sin = table[0, t], table[1, t]
        for h in range(heads):
            q, k, v = qkv[r, h * d :], qkv[r, (heads + h) * d :], qkv[r, (2 * heads + h) * d :]
            scale[0, r, h] = _normalise_and_rotate(q[:half], q[half:d], cos, sin, query[b, h, t])
            scale[1, r, h] = _normalise_and_rotate(k[:half], k[half:d], cos, sin, key[b, h, t])
            to = value[b, h, t]
            for i in range(d):
                to[i] = v[i]


@inner
@no_type_check
def _rotate_and_normalise_back(d_out, out, cos, sin, k, d_low, d_high):
    """Compute the gradient of what `_normalise_and_rotate` read.

    A rotation keeps products, so the part along the output is removed before rotating back.
    """
    half = d_low.shape[0]
    along = ZERO
    for i in range(2 * half):
        along += wide(d_out[i]) * wide(out[i])
    along /= np.float32(2 * half)
    for i in range(half):
        low = wide(d_out[i]) - along * wide(out[i])
        high = wide(d_out[half + i]) - along * wide(out[half + i])
        d_low[i] = narrow((low * cos[i] + high * sin[i]) * k, d_low)
        d_high[i] = narrow((high * cos[i] - low * sin[i]) * k, d_high)


@parallel_kernel
@no_type_check
def join_heads(d_query, d_key, d_value, query, key, table, scale, d_qkv):
    """Compute the gradient of `split_heads`' input, (N, 3C)."""
    batch, heads, length, d = query.shape
    half = d // 2
    for r in prange(batch * length):
        b, t = r // length, r % length
        cos, sin = table[0, t], table[1, t]
        for h in range(heads):
            q, k = d_qkv[r, h * d :], d_qkv[r, (heads + h) * d :]
            _rotate_and_normalise_back(
                d_query[b, h, t], query[b, h, t], cos, sin, scale[0, r, h], q[:half], q[half:d]
            )
            _rotate_and_normalise_back(
                d_key[b, h, t], key[b, h, t], cos, sin, scale[1, r, h], k[:half], k[half:d]
            )
            v, source = d_qkv[r, (2 * heads + h) * d :], d_value[b, h, t]
            for i in range(d):
                v[i] = source[i]


# --- Attention ------------------------------------------------------------------------------------

# 2^f = e^(f ln 2), by its series: for |f| <= 1/2 the first term left out is below 1e-8.
_P = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
P1, P2, P3, P4, P5, P6, P7 = _P[1:]
LOWEST = np.float32(-126)  # 2^-126 is the smallest normal number


@inner
@no_type_check
def _exp2(x):
    if x < LOWEST:  # NaN stays
        x = LOWEST
    whole = np.floor(x + HALF)
    f = x - whole
    power = (((((P7 * f + P6) * f + P5) * f + P4) * f + P3) * f + P2) * f + P1
    exponent = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return (power * f + ONE) * exponent.view(np.float32)


@numba.njit(
    fastmath=True, nogil=True
)  # a maximum uses vector instructions only if NaN is ruled out
@no_type_check
def _largest(row):
    most = wide(row[0])
    for i in range(1, row.shape[0]):
        most = max(most, wide(row[i]))
    return most


@parallel_kernel
@no_type_check
def causal_softmax(scores, scratch, factor):
    """Replace scores (N, T, T) by the weights of each query: their softmax up to its own position.

    `factor` multiplies scores; it includes log2 e, for powers of 2. scratch (N, T) in float32.
    """
    for n in prange(scores.shape[0]):
        for t in range(scores.shape[1]):
            row, powers = scores[n, t], scratch[n]
            most = _largest(row[: t + 1]) * factor
            total = ZERO
            for i in range(t + 1):
                power = _exp2(wide(row[i]) * factor - most)
                powers[i] = power
                total += power
            share = ONE / total
            for i in range(t + 1):
                row[i] = narrow(powers[i] * share, row)
            for i in range(t + 1, row.shape[0]):
                row[i] = narrow(ZERO, row)


@parallel_kernel
@no_type_check
def causal_softmax_backward(weights, gradient, factor):
    """Replace the gradient of the weights (N, T, T) by that of the scores; `factor` as it was."""
    for n in prange(weights.shape[0]):
        for t in range(weights.shape[1]):
            w, d = weights[n, t], gradient[n, t]
            mean = ZERO
            for i in range(t + 1):
                mean += wide(w[i]) * wide(d[i])
            for i in range(t + 1):
                d[i] = narrow(wide(w[i]) * (wide(d[i]) - mean) * factor, d)
            for i in range(t + 1, d.shape[0]):
                d[i] = narrow(ZERO, d)


# --- Activation -----------------------------------------------------------------------------------


@parallel_kernel
@no_type_check
def squared_relu(x):
    """Replace x (N, C) by max(x, 0)^2."""
    for r in prange(x.shape[0]):
        for i in range(x.shape[1]):
            positive = max(wide(x[r, i]), ZERO)
            x[r, i] = narrow(positive * positive, x)


@parallel_kernel
@no_type_check
def squared_relu_backward(out, gradient):
    """Replace the gradient of the output by that of the input: it is 2 sqrt(out) times as large."""
    two = np.float32(2)
    for r in prange(out.shape[0]):
        for i in range(out.shape[1]):
            slope = two * np.sqrt(wide(out[r, i]))
            gradient[r, i] = narrow(slope * wide(gradient[r, i]), gradient)
