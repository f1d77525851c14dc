"""The activations of an MLP, and back."""

import math
from typing import no_type_check

import numpy as np
from numba import prange

from charlm.fused.numbers import ONE, ZERO, Array, exp2, narrow, wide
from charlm.models.kernel import parallel_kernel


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
            bell = exp2(value * value * TO_POWER_OF_2)
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
