"""What a GPT's training step does between its matrix products, each in one pass over memory.

Run one by one, as the lessons write them, these operations read and write every activation a dozen
times, and memory is slower than arithmetic. Here each kernel is a loop over rows, compiled by numba
and run on torch's threads: a row is read once, stays in the processor's cache while it is worked on
in float32, and is written once. `charlm.training.fused` calls them; the lessons say what they mean.

Vector instructions need loops that are plain to the compiler: over whole arrays, which it then knows
to be apart, rather than views; and from an unsigned start, as a negative index counts from the end.

Arrays are float32, or uint16 with the bits of bfloat16 (numba knows no bfloat16): its sixteen bits
are the upper half of a float32's.
"""

import math
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from numba import prange, types, uint64
from numba.extending import intrinsic
from torch import Tensor

from charlm.models.kernel import PARALLEL, parallel_kernel

EPS = np.float32(torch.finfo(torch.float32).eps)
ONE, ZERO, HALF = np.float32(1), np.float32(0), np.float32(0.5)
STRIDE = 64  # numbers that one turn of a loop of vector instructions takes, at most

Array = np.ndarray[Any, np.dtype[Any]]
Number = np.float32 | float  # float32, which mypy takes for a float

# Compiled into the kernels that call it.
inner = numba.njit(**{**PARALLEL, "parallel": False, "forceinline": True})


def array(tensor: Tensor) -> Array:
    """Return a tensor's memory as the array that kernels take."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


@intrinsic
@no_type_check
def wide(context: Any, x: Any) -> Any:
    """Return a number of an array as float32; only in kernels."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] == types.float32:
            return args[0]
        bits = builder.zext(args[0], context.get_value_type(types.uint32))
        bits = builder.shl(bits, bits.type(16))
        return builder.bitcast(bits, context.get_value_type(types.float32))

    return types.float32(x), generate


@intrinsic
@no_type_check
def narrow(context: Any, x: Any, like: Any) -> Any:
    """Round a float32 to what an array holds, to the nearest, ties to even; only in kernels."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.return_type == types.float32:
            return args[0]
        # A carry into the exponent is right; NaN stays NaN unless all its lower bits are set.
        bits = builder.bitcast(args[0], context.get_value_type(types.uint32))
        odd = builder.and_(builder.lshr(bits, bits.type(16)), bits.type(1))
        bits = builder.add(bits, builder.add(odd, bits.type(0x7FFF)))
        return builder.trunc(
            builder.lshr(bits, bits.type(16)), context.get_value_type(types.uint16)
        )

    return like.dtype(types.float32, like), generate


# --- Dropout --------------------------------------------------------------------------------------

# Whether a number is kept follows from its index and a seed, so no mask is stored. It is dropped where
# a hash of both is below `threshold`: 2^32 times the probability, or 0 for no dropout.
NO_DROPOUT = np.uint32(0), np.uint32(0)  # a seed and a threshold


@inner
@no_type_check
def _factor_of_kept(threshold: int) -> Number:
    """Return what numbers that are kept are multiplied by, so that their mean stays."""
    return np.float32(4294967296.0 / (4294967296.0 - np.float64(threshold)))


@inner
@no_type_check
def _is_kept(row: int, c: int, i: int, seed: int, threshold: int) -> bool:
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
        factor = _factor_of_kept(threshold)
        for i in range(c):
            kept = _is_kept(r, c, i, seed, threshold)
            out[r, i] = narrow(wide(x[r, i]) * factor if kept else ZERO, out)


@inner
@no_type_check
def _add_branch(x: Array, branch: Array, total: Array, r: int, seed: int, threshold: int) -> None:
    """Compute row r of total = x + branch, after dropout of the branch."""
    c = x.shape[1]
    if branch.shape[0] == 0:
        for i in range(c):
            total[r, i] = x[r, i]
    elif threshold == 0:
        for i in range(c):
            total[r, i] = x[r, i] + wide(branch[r, i])
    else:
        factor = _factor_of_kept(threshold)
        for i in range(c):
            kept = _is_kept(r, c, i, seed, threshold)
            total[r, i] = x[r, i] + (wide(branch[r, i]) * factor if kept else ZERO)


@inner
@no_type_check
def _gradient_of_branch(gradient: Array, low: Array, r: int, seed: int, threshold: int) -> None:
    """Compute row r of the gradient of the branch from that of the total."""
    c = gradient.shape[1]
    if threshold == 0:
        for i in range(c):
            low[r, i] = narrow(gradient[r, i], low)
    else:
        factor = _factor_of_kept(threshold)
        for i in range(c):
            kept = _is_kept(r, c, i, seed, threshold)
            low[r, i] = narrow(gradient[r, i] * factor if kept else ZERO, low)


# --- Norms ----------------------------------------------------------------------------------------


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
        _add_branch(x, branch, total, r, seed, threshold)
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
        _gradient_of_branch(gradient, low, r, seed, threshold)


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
        _add_branch(x, branch, total, r, seed, threshold)
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
            _gradient_of_branch(gradient, low, r, seed, threshold)


# --- Heads ----------------------------------------------------------------------------------------


@inner
@no_type_check
def _normalise_and_rotate(
    x: Array, r: int, at: int, table: Array, out: Array, b: int, h: int, t: int
) -> Number:
    """Normalise and rotate the query or key at x[r, at:]; return 1 over its root mean square."""
    half = table.shape[2]
    low, high = uint64(at), uint64(at + half)
    squares = ZERO
    for i in range(uint64(2 * half)):
        squares += wide(x[r, low + i]) * wide(x[r, low + i])
    k = ONE / np.sqrt(squares / np.float32(2 * half) + EPS)
    for i in range(uint64(half)):
        x1, x2 = wide(x[r, low + i]) * k, wide(x[r, high + i]) * k
        out[b, h, t, i] = narrow(x1 * table[0, t, i] - x2 * table[1, t, i], out)
        out[b, h, t, uint64(half) + i] = narrow(x1 * table[1, t, i] + x2 * table[0, t, i], out)
    return k


@parallel_kernel
@no_type_check
def split_heads(
    qkv: Array, table: Array, query: Array, key: Array, value: Array, scale: Array
) -> None:
    """Split (N, 3C) into heads (B, H, T, D); normalise queries and keys, and rotate them.

    table (2, T, D / 2): cosines and sines; scale (2, N, H): of queries, then of keys.
    """
    batch, heads, length, d = query.shape
    for r in prange(batch * length):
        b, t = r // length, r % length
        for h in range(heads):
            scale[0, r, h] = _normalise_and_rotate(qkv, r, h * d, table, query, b, h, t)
            scale[1, r, h] = _normalise_and_rotate(qkv, r, (heads + h) * d, table, key, b, h, t)
            at = uint64((2 * heads + h) * d)
            for i in range(uint64(d)):
                value[b, h, t, i] = qkv[r, at + i]


@inner
@no_type_check
def _rotate_and_normalise_back(
    d_out: Array,
    out: Array,
    b: int,
    h: int,
    t: int,
    table: Array,
    k: Number,
    d_x: Array,
    r: int,
    at: int,
) -> None:
    """Compute the gradient of what `_normalise_and_rotate` read.

    A rotation keeps products, so the part along the output is removed before rotating back.
    """
    half = uint64(table.shape[2])
    low, high = uint64(at), uint64(at) + half
    along = ZERO
    for i in range(half + half):
        along += wide(d_out[b, h, t, i]) * wide(out[b, h, t, i])
    along /= np.float32(half + half)
    for i in range(half):
        d1 = (wide(d_out[b, h, t, i]) - along * wide(out[b, h, t, i])) * k
        d2 = (wide(d_out[b, h, t, half + i]) - along * wide(out[b, h, t, half + i])) * k
        d_x[r, low + i] = narrow(d1 * table[0, t, i] + d2 * table[1, t, i], d_x)
        d_x[r, high + i] = narrow(d2 * table[0, t, i] - d1 * table[1, t, i], d_x)


@parallel_kernel
@no_type_check
def join_heads(
    d_query: Array,
    d_key: Array,
    d_value: Array,
    query: Array,
    key: Array,
    table: Array,
    scale: Array,
    d_qkv: Array,
) -> None:
    """Compute the gradient of `split_heads`' input, (N, 3C)."""
    batch, heads, length, d = query.shape
    for r in prange(batch * length):
        b, t = r // length, r % length
        for h in range(heads):
            k, at = scale[0, r, h], h * d
            _rotate_and_normalise_back(d_query, query, b, h, t, table, k, d_qkv, r, at)
            k, at = scale[1, r, h], (heads + h) * d
            _rotate_and_normalise_back(d_key, key, b, h, t, table, k, d_qkv, r, at)
            begin = uint64((2 * heads + h) * d)
            for i in range(uint64(d)):
                d_qkv[r, begin + i] = d_value[b, h, t, i]


@parallel_kernel
@no_type_check
def to_heads(x: Array, parts: tuple[Array, ...]) -> None:
    """Copy x (N, PC) to P arrays of heads (B, H, T, D), as `split_heads` but unchanged."""
    batch, heads, length, d = parts[0].shape
    for r in prange(batch * length):
        b, t = r // length, r % length
        for p in range(len(parts)):
            for h in range(heads):
                at = uint64((p * heads + h) * d)
                for i in range(uint64(d)):
                    parts[p][b, h, t, i] = x[r, at + i]


@parallel_kernel
@no_type_check
def from_heads(parts: tuple[Array, ...], x: Array) -> None:
    """Do the reverse of `to_heads`."""
    batch, heads, length, d = parts[0].shape
    for r in prange(batch * length):
        b, t = r // length, r % length
        for p in range(len(parts)):
            for h in range(heads):
                at = uint64((p * heads + h) * d)
                for i in range(uint64(d)):
                    x[r, at + i] = parts[p][b, h, t, i]


# --- Attention ------------------------------------------------------------------------------------

# 2^f = e^(f ln 2), by its series: for |f| <= 1/2 the first term left out is below 1e-8.
_P = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
P1, P2, P3, P4, P5, P6, P7 = _P[1:]
LOWEST = np.float32(-127)  # from here on down 2^x is 0: no normal number is as small
MINUS_INFINITY = np.float32(-np.inf)


@inner
@no_type_check
def _exp2(x: Number) -> Number:
    if x < LOWEST:  # NaN stays
        x = LOWEST
    whole = np.floor(x + HALF)
    f = x - whole
    power = (((((P7 * f + P6) * f + P5) * f + P4) * f + P3) * f + P2) * f + P1
    exponent = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return (power * f + ONE) * exponent.view(np.float32)


# Of float32, a maximum does not vectorise: NaN is in the way. Of whole numbers, it does.


@inner
@no_type_check
def _rank(x: Number) -> int:
    """Return an int32 that orders as x does among float32 numbers."""
    bits = np.float32(x).view(np.int32)
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inner
@no_type_check
def _at_rank(rank: int) -> Number:
    """Return the float32 of a rank."""
    return np.int32(rank ^ ((rank >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@parallel_kernel
@no_type_check
def causal_softmax(
    scores: Array, scratch: Array, factor: Number, dropped: Array, seed: int, threshold: int
) -> None:
    """Replace scores (N, T, T) by the weights of each query: their softmax up to its own position.

    `factor` multiplies scores; it includes log2 e, for powers of 2. scratch (N, T) in float32.
    dropped: the weights after dropout, (N, T, T), or (0, 0, 0) without.
    """
    length = scores.shape[1]
    for n in prange(scores.shape[0]):
        for t in range(length):
            stop = min((t // STRIDE + 1) * STRIDE, length)  # whole turns, where they fit
            most = _rank(MINUS_INFINITY)
            for i in range(stop):
                past = np.int32(i) <= np.int32(t)
                scratch[n, i] = wide(scores[n, t, i]) * factor if past else MINUS_INFINITY
                most = max(most, _rank(scratch[n, i]))
            peak, total = _at_rank(most), ZERO
            for i in range(stop):
                scratch[n, i] = _exp2(scratch[n, i] - peak)
                total += scratch[n, i]
            share = np.float32(np.float64(1) / total)  # of float32, it would divide each number
            for i in range(stop):
                scores[n, t, i] = narrow(scratch[n, i] * share, scores)
            for i in range(uint64(stop), uint64(length)):
                scores[n, t, i] = narrow(ZERO, scores)
            if threshold != 0:
                share *= _factor_of_kept(threshold)
                row = np.uint32(n) * np.uint32(length) + np.uint32(t)
                for i in range(stop):
                    kept = _is_kept(row, length, i, seed, threshold)
                    dropped[n, t, i] = narrow(scratch[n, i] * share if kept else ZERO, dropped)
                for i in range(uint64(stop), uint64(length)):
                    dropped[n, t, i] = narrow(ZERO, dropped)


@parallel_kernel
@no_type_check
def causal_softmax_backward(
    weights: Array, dropped: Array, gradient: Array, factor: Number
) -> None:
    """Replace the gradient of the dropped weights (N, T, T) by that of the scores.

    Without dropout, `dropped` are the weights themselves. `factor` is that of the scores.
    """
    length = weights.shape[1]
    for n in prange(weights.shape[0]):
        for t in range(length):
            stop = min((t // STRIDE + 1) * STRIDE, length)  # weights after t are 0
            mean = ZERO
            for i in range(stop):
                mean += wide(dropped[n, t, i]) * wide(gradient[n, t, i])
            for i in range(stop):
                d = wide(dropped[n, t, i]) * wide(gradient[n, t, i])
                d = (d - wide(weights[n, t, i]) * mean) * factor
                gradient[n, t, i] = narrow(d, gradient)
            for i in range(uint64(stop), uint64(length)):
                gradient[n, t, i] = narrow(ZERO, gradient)


# --- Activation -----------------------------------------------------------------------------------


@parallel_kernel
@no_type_check
def squared_relu(x: Array) -> None:
    """Replace x (N, C) by max(x, 0)^2."""
    for r in prange(x.shape[0]):
        for i in range(x.shape[1]):
            positive = max(wide(x[r, i]), ZERO)
            x[r, i] = narrow(positive * positive, x)


@parallel_kernel
@no_type_check
def squared_relu_backward(out: Array, gradient: Array) -> None:
    """Replace the gradient of the output by that of the input: it is 2 sqrt(out) times as large."""
    two = np.float32(2)
    for r in prange(out.shape[0]):
        for i in range(out.shape[1]):
            slope = two * np.sqrt(wide(out[r, i]))
            gradient[r, i] = narrow(slope * wide(gradient[r, i]), gradient)


# The normal distribution's tail: 1 - Phi(x) = e^(-x^2 / 2) (T1 t + ... + T7 t^7), t = 1 / (1 + x / 4),
# for x >= 0. Fitted by least squares, with weights that even out the error of Phi: it is 4e-9, and
# rounding adds 6e-8.
_T = 0.09891009, 0.11156645, 0.02652208, 0.27879468, -0.26526049, 0.3409878, -0.0915206
T1, T2, T3, T4, T5, T6, T7 = map(np.float32, _T)
QUARTER, TO_POWER_OF_2 = np.float32(0.25), np.float32(-0.5 * math.log2(math.e))
PEAK = np.float32(1 / math.sqrt(2 * math.pi))  # of the normal density


@parallel_kernel
@no_type_check
def gelu(x: Array, out: Array) -> None:
    """Write x Phi(x), where Phi is the normal distribution; replace x (N, C) by the slope there."""
    for r in prange(x.shape[0]):
        for i in range(x.shape[1]):
            value = wide(x[r, i])
            t = ONE / (ONE + QUARTER * abs(value))
            bell = _exp2(value * value * TO_POWER_OF_2)
            tail = ((((((T7 * t + T6) * t + T5) * t + T4) * t + T3) * t + T2) * t + T1) * t * bell
            phi = tail if value < ZERO else ONE - tail
            out[r, i] = narrow(value * phi, out)
            x[r, i] = narrow(phi + value * PEAK * bell, x)


@parallel_kernel
@no_type_check
def gelu_backward(slope: Array, gradient: Array) -> None:
    """Multiply the gradient by the slope."""
    for r in prange(slope.shape[0]):
        for i in range(slope.shape[1]):
            gradient[r, i] = narrow(wide(slope[r, i]) * wide(gradient[r, i]), gradient)
