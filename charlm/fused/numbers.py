"""Numbers in arrays: float32, or uint16 with the bits of bfloat16, which numba does not know.

The sixteen bits of bfloat16 are the upper half of a float32's. Kernels compute in float32.
"""

import math
from typing import Any, no_type_check

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from charlm.models.kernel import inner, stamped

EPS = np.float32(torch.finfo(torch.float32).eps)
ONE, ZERO, HALF = np.float32(1), np.float32(0), np.float32(0.5)

Array = np.ndarray[Any, np.dtype[Any]]
Number = np.float32 | float  # float32, which mypy takes for a float


def _instruction(function: Any) -> Any:
    return stamped(intrinsic(function), function)


def array(tensor: Tensor) -> Array:
    """Return a tensor's memory as the array that kernels take."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


@_instruction
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


@_instruction
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


# 2^f = e^(f ln 2), by its series: for |f| <= 1/2 the first term left out is below 1e-8.
_P = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
P1, P2, P3, P4, P5, P6, P7 = _P[1:]
LOWEST = np.float32(-127)  # from here on down 2^x is 0: no normal number is as small
HIGHEST = np.float32(127)  # from 128 on 2^x is infinite


@inner
@no_type_check
def exp2(x: Number) -> Number:
    """Return 2^x."""
    if x < LOWEST:  # NaN stays
        x = LOWEST
    whole = np.floor(x + HALF)
    f = x - whole
    power = (((((P7 * f + P6) * f + P5) * f + P4) * f + P3) * f + P2) * f + P1
    exponent = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return (power * f + ONE) * exponent.view(np.float32)


TO_POWER_OF_2 = np.float32(math.log2(math.e))


@inner
@no_type_check
def sigmoid(x: Number) -> Number:
    """Return 1 / (1 + e^-x)."""
    return ONE / (ONE + exp2(min(-x * TO_POWER_OF_2, HIGHEST)))


@inner
@no_type_check
def tanh(x: Number) -> Number:
    """Return the hyperbolic tangent, which is 2 sigmoid(2 x) - 1, within 1e-7."""
    return (ONE + ONE) * sigmoid(x + x) - ONE
