"""A block of a GPT for the next character of one text, as loops on all cores.

One character reads every weight once, so memory sets the pace: each core reads its share of a matrix
row by row, and what comes between two matrices is done before a library would have begun it. Loading
the compiled loops takes longer than some hundred characters: see `charlm.sampling.gpt_reader`.
"""

from typing import Any, NamedTuple, no_type_check

import numba
import numpy as np
from numba import prange
from numpy import float32, int32

from charlm.models.kernel import PARALLEL, kernel, parallel_kernel, share_threads
from charlm.sampling.gpt_numpy import Vector, rounded
from charlm.sampling.reader import Weights, array

Array = Any

CHUNK = 64  # rows of a matrix that a thread multiplies at a time
FEW = 1 << 15  # weights that one thread has read before a second one would have woken up
LEAST = float32(-87)  # its exponential is about the least float32
PLAIN, ADD, GELU, SQUARED_RELU = range(4)  # kinds of product: set, added, or put through a function
ZERO, HALF, ONE = float32(0), float32(0.5), float32(1)

inner = numba.njit(**{**PARALLEL, "parallel": False})  # called in kernels, compiled into them


class Matrix(NamedTuple):
    """A matrix of float32, which shares the model's memory, or int8; each row has its scale."""

    rows: Any
    scale: Any
    kind: int  # what becomes of a product


class Block(NamedTuple):
    """The weights of a block of `gpt2` or, without gains, of `modern`."""

    attention_gain: Any
    qkv: Matrix
    projection: Matrix
    mlp_gain: Any
    expand: Matrix
    contract: Matrix
    epsilon: Any


class FastBlock:
    """Applies a block of either style, like the classes in `charlm.sampling.gpt_numpy`."""

    def __init__(self, block: Any, weights: Weights) -> None:
        share_threads()
        norms = [getattr(block, f"{part}_norm", None) for part in ("attention", "mlp")]
        gains = [None if norm is None else array(norm.weight) for norm in norms]
        attention, mlp = block.attention, block.mlp
        self.block = Block(
            gains[0],
            matrix(attention.qkv.weight, weights, PLAIN),
            matrix(attention.projection.weight, weights, ADD),
            gains[1],
            matrix(mlp.expand.weight, weights, SQUARED_RELU if norms[0] is None else GELU),
            matrix(mlp.contract.weight, weights, ADD),
            np.finfo(float32).eps if norms[0] is None else float32(norms[0].eps),
        )

    def __call__(self, x: Vector, past: Any, angles: Any) -> Vector:
        """Apply attention, then the MLP; x is overwritten."""
        held = past.held.numpy()[:, 0]  # (2, H, slots, D)
        first, at, _ = past.make_room(1)
        hidden, qkv, wide = (np.empty(n * len(x), float32) for n in (1, 3, 4))
        work = (hidden, qkv, wide, np.empty((held.shape[1], past.window), float32))
        if angles is None:
            gpt2_block(x, self.block, held, first, at, work)
        else:
            before = (past.attention_input.numpy()[0, 0], past.mlp_input.numpy()[0, 0])
            modern_block(x, self.block, before, angles, held, first, at, work)
        return x


class FastLinear:
    """Multiplies a vector by a matrix."""

    def __init__(self, weight: Any, weights: Weights) -> None:
        self.matrix = matrix(weight, weights, PLAIN)

    def __call__(self, x: Vector) -> Vector:
        """Return the product."""
        y = np.empty(len(self.matrix.rows), float32)
        product(self.matrix, x, y)
        return y


def matrix(weight: Any, weights: Weights, kind: int) -> Matrix:
    """Return a matrix in float32 or rounded to int8."""
    if weights == "int8":
        rows, scale = rounded(weight.detach())
        return Matrix(rows.numpy(), scale.float().numpy(), kind)
    return Matrix(array(weight), np.ones(len(weight), float32), kind)


@parallel_kernel
@no_type_check
def product(matrix: Any, x: Array, y: Array) -> None:
    """Set y to the matrix times x, or do what its kind says."""
    n = len(matrix.rows)
    if matrix.rows.size < FEW:
        multiply(matrix, x, y, 0, n)
    else:
        for chunk in prange((n + CHUNK - 1) // CHUNK):
            multiply(matrix, x, y, chunk * CHUNK, min(n, (chunk + 1) * CHUNK))


@parallel_kernel
@no_type_check
def attend(qkv: Array, held: Array, first: int, at: int, scores: Array, out: Array) -> None:
    """Add a key and a value; average all values from `first` on by how well keys match."""
    heads, size = held.shape[1], held.shape[3]
    keys, values, width = held[0], held[1], heads * size
    for h in prange(heads):
        c = h * size
        query, key, value = qkv[c : c + size], qkv[width + c :], qkv[2 * width + c :]
        for d in range(size):
            keys[h, at, d], values[h, at, d] = key[d], value[d]
        seen = slice(first, at + 1)
        average(query, keys[h, seen], values[h, seen], scores[h], out[c : c + size])


@inner
@no_type_check
def multiply(matrix: Any, x: Array, y: Array, begin: int, end: int) -> None:
    """Compute y from `begin` to `end`: four rows at a time, which read x once."""
    rows, scale, kind = matrix.rows, matrix.scale, matrix.kind
    whole = end - (end - begin) % 4
    for o in range(begin, whole, 4):
        a, b, c, d = ZERO, ZERO, ZERO, ZERO
        for i in range(len(x)):
            a += float32(rows[o, i]) * x[i]
            b += float32(rows[o + 1, i]) * x[i]
            c += float32(rows[o + 2, i]) * x[i]
            d += float32(rows[o + 3, i]) * x[i]
        put(y, o, a * scale[o], kind)
        put(y, o + 1, b * scale[o + 1], kind)
        put(y, o + 2, c * scale[o + 2], kind)
        put(y, o + 3, d * scale[o + 3], kind)
    for o in range(whole, end):
        a = ZERO
        for i in range(len(x)):
            a += float32(rows[o, i]) * x[i]
        put(y, o, a * scale[o], kind)
    if kind == GELU:
        for o in range(begin, end):
            y[o] = gelu(y[o])


@inner
@no_type_check
def put(y: Array, o: int, total: Any, kind: int) -> None:
    """Write a product to its place."""
    if kind == ADD:
        y[o] += total
    elif kind == SQUARED_RELU:
        y[o] = max(total, ZERO) * max(total, ZERO)
    else:
        y[o] = total


@inner
@no_type_check
def average(query: Array, keys: Array, values: Array, scores: Array, out: Array) -> None:
    """Average the values (S, D) of one head by how well the query matches the keys (S, D)."""
    n, size = keys.shape
    scale, highest, total = ONE / np.sqrt(float32(size)), float32(-np.inf), ZERO
    for s in range(n):
        score = ZERO
        for d in range(size):
            score += query[d] * keys[s, d]
        scores[s] = score * scale
        highest = max(highest, scores[s])
    for s in range(n):
        scores[s] = exp(max(scores[s] - highest, LEAST))
        total += scores[s]
    for d in range(size):
        out[d] = ZERO
    for s in range(n):
        weight = scores[s]
        for d in range(size):
            out[d] += weight * values[s, d]
    for d in range(size):
        out[d] /= total


@inner
@no_type_check
def exp(x: Any) -> Any:
    """Return e^x for x from LEAST to 0, up to a rounding; the library's uses no vector instructions.

    x = n ln 2 + r, and e^r by the polynomial of Cephes' `expf`.
    """
    n = np.floor(x * float32(1.44269504) + HALF)
    r = x - n * float32(0.693359375) + n * float32(2.12194440e-4)
    p = float32(1.9875691500e-4) * r + float32(1.3981999507e-3)
    p = (p * r + float32(8.3334519073e-3)) * r + float32(4.1665795894e-2)
    p = (p * r + float32(1.6666665459e-1)) * r + float32(5.0000001201e-1)
    power = int32((int32(n) + int32(127)) << int32(23)).view(float32)  # 2^n
    return (p * r * r + r + ONE) * power


@inner
@no_type_check
def gelu(x: Any) -> Any:
    """Return x times the normal distribution function: Abramowitz and Stegun, 7.1.26, to 2e-7."""
    a = abs(x) * float32(0.70710678)
    t = ONE / (ONE + float32(0.3275911) * a)
    p = (float32(1.061405429) * t - float32(1.453152027)) * t + float32(1.421413741)
    p = (p * t - float32(0.284496736)) * t + float32(0.254829592)
    beyond = HALF * p * t * exp(max(-a * a, LEAST))  # the probability of being farther from 0
    return x * (beyond if x < ZERO else ONE - beyond)


@inner
@no_type_check
def layer_norm(x: Array, gain: Array, epsilon: Any, out: Array) -> None:
    """Normalise x, without bias."""
    n, mean, squares = float32(len(x)), ZERO, ZERO
    for i in range(len(x)):
        mean += x[i]
    mean /= n
    for i in range(len(x)):
        squares += (x[i] - mean) * (x[i] - mean)
    scale = ONE / np.sqrt(squares / n + epsilon)
    for i in range(len(x)):
        out[i] = (x[i] - mean) * scale * gain[i]


@inner
@no_type_check
def rms_scale(x: Array, begin: int, end: int, epsilon: Any) -> Any:
    """Return 1 over the root of the mean square of x from `begin` to `end`."""
    squares = ZERO
    for i in range(begin, end):
        squares += x[i] * x[i]
    return ONE / np.sqrt(squares / float32(end - begin) + epsilon)


@inner
@no_type_check
def shifted_norm(x: Array, epsilon: Any, before: Any, out: Array) -> None:
    """Normalise x; the second half of the channels is from `before`, which becomes own."""
    scale, own = rms_scale(x, 0, len(x), epsilon), len(x) - len(x) // 2
    for i in range(len(x)):
        out[i] = x[i] * scale if i < own else before[i]
    for i in range(len(x)):
        before[i] = x[i] * scale


@inner
@no_type_check
def normalise_and_rotate(x: Array, angles: Array, epsilon: Any, heads: int) -> None:
    """Normalise each head of x, then rotate its pairs (x[i], x[i + D/2])."""
    half = len(angles[0])
    for h in range(heads):
        begin = 2 * half * h
        scale = rms_scale(x, begin, begin + 2 * half, epsilon)
        for i in range(begin, begin + half):
            cos, sin = angles[0, i - begin] * scale, angles[1, i - begin] * scale
            x[i], x[i + half] = x[i] * cos - x[i + half] * sin, x[i] * sin + x[i + half] * cos


@kernel
@no_type_check
def gpt2_block(x: Array, block: Any, held: Array, first: int, at: int, work: Any) -> None:
    """Apply `charlm.models.gpt2.Block` to x."""
    hidden, qkv, wide, scores = work
    layer_norm(x, block.attention_gain, block.epsilon, hidden)
    product(block.qkv, hidden, qkv)
    attend(qkv, held, first, at, scores, hidden)
    product(block.projection, hidden, x)
    layer_norm(x, block.mlp_gain, block.epsilon, hidden)
    product(block.expand, hidden, wide)
    product(block.contract, wide, x)


@kernel
@no_type_check
def modern_block(
    x: Array, block: Any, before: Any, angles: Array, held: Array, first: int, at: int, work: Any
) -> None:
    """Apply `charlm.models.modern.ModernBlock` to x; `before`: what its parts read last."""
    hidden, qkv, wide, scores = work
    shifted_norm(x, block.epsilon, before[0], hidden)
    product(block.qkv, hidden, qkv)
    normalise_and_rotate(qkv, angles, block.epsilon, 2 * len(scores))
    attend(qkv, held, first, at, scores, hidden)
    product(block.projection, hidden, x)
    shifted_norm(x, block.epsilon, before[1], hidden)
    product(block.expand, hidden, wide)
    product(block.contract, wide, x)
