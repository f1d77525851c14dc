"""From rows to heads and back; rotary positions and normalised queries and keys."""

from typing import no_type_check

import numpy as np
from numba import prange, uint64

from charlm.fused.numbers import EPS, ONE, ZERO, Array, Number, narrow, wide
from charlm.models.kernel import inner, parallel_kernel


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
