"""Causal attention in training: mask, softmax and dropout in one kernel, and back."""

import math
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import prange, uint64
from torch import Tensor
from torch.nn import functional as F

from charlm.fused.dropout import SEEDS, factor_of_kept, is_kept
from charlm.fused.numbers import ZERO, Array, Number, array, exp2, narrow, wide
from charlm.models.attention import longest_plain
from charlm.models.kernel import inner, parallel_kernel

Tape = list[tuple[Any, ...]]  # what the backward pass needs, in the order of the forward pass

STRIDE = 64  # numbers that one turn of a loop of vector instructions takes, at most
MINUS_INFINITY = np.float32(-np.inf)

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
                scratch[n, i] = exp2(scratch[n, i] - peak)
                total += scratch[n, i]
            share = np.float32(np.float64(1) / total)  # of float32, it would divide each number
            for i in range(stop):
                scores[n, t, i] = narrow(scratch[n, i] * share, scores)
            for i in range(uint64(stop), uint64(length)):
                scores[n, t, i] = narrow(ZERO, scores)
            if threshold != 0:
                share *= factor_of_kept(threshold)
                row = np.uint32(n) * np.uint32(length) + np.uint32(t)
                for i in range(stop):
                    kept = is_kept(row, length, i, seed, threshold)
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


def gather(
    query: Float[Tensor, "BH T D"],
    key: Float[Tensor, "BH T D"],
    value: Float[Tensor, "BH T D"],
    seed: np.uint32,
    threshold: np.uint32,
    tape: Tape,
) -> Float[Tensor, "BH T D"]:
    """Average the values by causal attention, after dropout of its weights.

    Those of long windows are not kept, but computed again on the way back.
    """
    if query.shape[1] > longest_plain(value):
        with torch.enable_grad():
            query, key, value = (x.detach().requires_grad_() for x in (query, key, value))
            dropout = int(threshold) / SEEDS
            gathered = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=dropout
            )
        tape.append((query, key, value, gathered))
        return gathered.detach()
    weights = query @ key.mT
    scratch = torch.empty(weights.shape[:2])
    dropped = torch.empty_like(weights) if threshold else weights.new_empty(0, 0, 0)
    factor = np.float32(math.log2(math.e) / math.sqrt(query.shape[-1]))
    arrays = array(weights), array(scratch), factor, array(dropped)
    causal_softmax(*arrays, seed, threshold)
    used = dropped if threshold else weights
    tape.append((query, key, value, weights, used))
    return used @ value


def gather_backward(
    d_out: Float[Tensor, "BH T D"], tape: Tape
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Go back through `gather`; also return the queries and keys."""
    query, key, value, *kept = tape.pop()
    if len(kept) == 1:
        (gathered,) = kept
        d_query, d_key, d_value = torch.autograd.grad(gathered, (query, key, value), d_out)
        return d_query.contiguous(), d_key.contiguous(), d_value.contiguous(), query, key
    weights, dropped = kept
    d_value, d_scores = dropped.mT @ d_out, d_out @ value.mT
    factor = np.float32(1 / math.sqrt(query.shape[-1]))
    causal_softmax_backward(array(weights), array(dropped), array(d_scores), factor)
    return d_scores @ key, d_scores.mT @ query, d_value, query, key
