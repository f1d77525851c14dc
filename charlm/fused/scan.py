"""The scan of minGRU in training on a CPU: one pass over memory, forward and back.

A processor with two cores gains nothing from a scan that does all positions at once; it gains from
reading each number once. `charlm.models.mingru` says what is computed, and
`charlm.backprop.recurrence` derives the way back.
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Float
from numba import prange
from torch import Tensor

from charlm.fused.numbers import HALF, ONE, ZERO, Array, sigmoid
from charlm.fused.recurrent import FusedStateful
from charlm.models.kernel import parallel_kernel


def scan(x: Float[Tensor, "B T two_H"], h: Float[Tensor, "B H"]) -> Float[Tensor, "B T H"]:
    """Return the states after each position, as `charlm.models.mingru.scan` does, in float32."""
    return _Scan.apply(x.float(), h)  # type: ignore[no-untyped-call, no-any-return]


class FusedMinGRU(FusedStateful):
    """A stack of minGRU blocks."""

    form = staticmethod(scan)


class _Scan(torch.autograd.Function):
    """`charlm.models.mingru.scan`."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "B T two_H"], h: Float[Tensor, "B H"]) -> Tensor:
        """Return the states, (B, T, H); x is overwritten."""
        x = x.detach().view(*x.shape[:2], 2, -1)
        states = h.new_empty(x.shape[0], x.shape[1], x.shape[3])
        h = h.contiguous()
        forward(x.numpy(), h.numpy(), states.numpy())
        ctx.save_for_backward(x, h, states)
        return states

    @staticmethod
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and h."""
        x, h, states = ctx.saved_tensors
        d_h = torch.zeros_like(h)
        arrays = (one.numpy() for one in (d_states.contiguous(), x, h, states, d_h))
        backward(*arrays)
        return x.flatten(2), d_h


@parallel_kernel
@no_type_check
def forward(x: Array, before: Array, states: Array) -> None:
    """Replace x, (B, T, 2, H), by the gate z and the candidate c; h = (1 - z) h + z c."""
    for b in prange(x.shape[0]):
        for t in range(x.shape[1]):
            for j in range(x.shape[3]):
                h = before[b, j] if t == 0 else states[b, t - 1, j]
                z, value = sigmoid(x[b, t, 0, j]), x[b, t, 1, j]
                c = value + HALF if value >= ZERO else sigmoid(value)
                x[b, t, 0, j], x[b, t, 1, j] = z, c
                states[b, t, j] = h + z * (c - h)


@parallel_kernel
@no_type_check
def backward(d_states: Array, x: Array, before: Array, states: Array, d_h: Array) -> None:
    """Replace z and c by the gradients of what they were made from; d_h becomes that of `before`."""
    for b in prange(x.shape[0]):
        for back in range(x.shape[1]):
            t = x.shape[1] - 1 - back
            for j in range(x.shape[3]):
                h = before[b, j] if t == 0 else states[b, t - 1, j]
                z, c, d = x[b, t, 0, j], x[b, t, 1, j], d_states[b, t, j] + d_h[b, j]
                slope = ONE if c >= HALF else c * (ONE - c)
                x[b, t, 0, j] = d * (c - h) * z * (ONE - z)
                x[b, t, 1, j] = d * z * slope
                d_h[b, j] = d * (ONE - z)
