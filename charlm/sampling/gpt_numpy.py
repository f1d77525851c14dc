"""The blocks of a GPT for the next character of one text, in NumPy.

Its calls take a fraction of the time of torch's, and its matrix-vector product is faster. Read
`charlm.models.gpt2`, `modern` and `cache` first.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.models.cache import BlockCache, KeysValues
from charlm.models.gpt2 import GELUS
from charlm.sampling.reader import Weights, array

Vector = Float[ndarray, "_"]
Linear = Callable[[Float[ndarray, "in"]], Float[ndarray, "out"]]

SERIAL = 2048  # up to this many elements neither torch nor MKL starts threads
EPSILON = np.float32(torch.finfo(torch.float32).eps)


class GPTBlock:
    """The matrices that the blocks of both styles have."""

    def __init__(self, block: Any, weights: Weights) -> None:
        self.n_head = block.attention.n_head
        self.qkv = layer(block.attention.qkv, weights)
        self.projection = layer(block.attention.projection, weights)
        self.expand = layer(block.mlp.expand, weights)
        self.contract = layer(block.mlp.contract, weights)


class GPT2Block(GPTBlock):
    """A block of `gpt2`: `charlm.models.gpt2.Block`."""

    def __init__(self, block: Any, weights: Weights) -> None:
        super().__init__(block, weights)
        self.attention_norm = layer_norm(block.attention_norm)
        self.mlp_norm = layer_norm(block.mlp_norm)
        self.gelu = gelu if block.mlp.activation is GELUS["exact"] else tanh_gelu

    def __call__(self, x: Vector, past: KeysValues, angles: None) -> Vector:
        """Apply attention, then the MLP."""
        query, key, value = self.qkv(self.attention_norm(x)).reshape(3, self.n_head, -1)
        x = x + self.projection(attend(query, key, value, past))
        return x + self.contract(self.gelu(self.expand(self.mlp_norm(x))))


class ModernBlock(GPTBlock):
    """A block of `modern`: `charlm.models.modern.ModernBlock`."""

    def __init__(self, block: Any, weights: Weights) -> None:
        super().__init__(block, weights)
        self.shifted = token_shift if block.shift else unshifted

    def __call__(self, x: Vector, past: BlockCache, angles: Float[ndarray, "2 D_half"]) -> Vector:
        """Apply attention, then the MLP; `angles` are cosines and sines of the position's."""
        shifted = self.shifted(rms_norm(x), past.attention_input)
        qkv = self.qkv(shifted).reshape(3, self.n_head, -1)
        query, key = rotate(rms_norm(qkv[:2]), *angles)
        x = x + self.projection(attend(query, key, qkv[2], past))
        hidden = self.expand(self.shifted(rms_norm(x), past.mlp_input))
        np.maximum(hidden, 0, out=hidden)
        hidden *= hidden
        return x + self.contract(hidden)


def layer(of: nn.Linear, weights: Weights) -> Linear:
    """Return the function x -> weight x + bias, if there is a bias."""
    product = linear(of.weight, weights)
    if of.bias is None:
        return product
    bias = array(of.bias)
    return lambda x: product(x) + bias


def linear(weight: Float[Tensor, "out in"], weights: Weights) -> Linear:
    """Return the function x -> weight x."""
    weight = weight.detach()
    if weights == "int8":
        return int8_linear(weight)
    wide = weight.shape[0] < weight.shape[1]  # BLAS is up to twice as fast on long rows
    columns = weight.numpy().T if wide else weight.t().contiguous().numpy()
    return lambda x: x @ columns


def int8_linear(weight: Float[Tensor, "out in"]) -> Linear:
    """Return x -> weight x with weights of 8 bits, a quarter of the memory, and x of bfloat16."""
    rows, scale = rounded(weight)
    # The kernels read 16 or 32 at a time, even beyond the end.
    lacking = -rows.shape[1] % 32
    packed = F.pad(rows, (0, lacking))

    def product(x: Float[ndarray, "in"]) -> Float[ndarray, "out"]:
        # The kernel of torch's weight-only quantisation, which has no public name.
        row = F.pad(torch.from_numpy(x[None]), (0, lacking)).bfloat16()
        return torch._weight_int8pack_mm(row, packed, scale).float().numpy()[0]  # type: ignore[no-any-return]

    return product


def rounded(weight: Float[Tensor, "out in"]) -> tuple[Int8[Tensor, "out in"], Tensor]:
    """Round each row to 8 bits and a scale of bfloat16, its largest weight over 127; no zero point."""
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).bfloat16()
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def layer_norm(norm: nn.LayerNorm) -> Callable[[Vector], Vector]:
    """Return LayerNorm."""
    gain, epsilon = array(norm.weight), norm.eps
    bias = None if norm.bias is None else array(norm.bias)
    mean = np.full(len(gain), 1 / len(gain), gain.dtype)

    def normalized(x: Vector) -> Vector:
        centred = x - x @ mean
        out = centred * (gain / np.sqrt((centred * centred) @ mean + epsilon))
        return out if bias is None else out + bias  # type: ignore[no-any-return]

    return normalized


def gelu(x: Vector) -> Vector:
    """Return x times the normal distribution function at x."""
    # NumPy has no erf. `F.gelu` would start threads, which then slow BLAS's own down.
    share = torch.from_numpy(x * math.sqrt(0.5))
    for part in torch.split(share, SERIAL):
        part.erf_()
    return x * (0.5 + 0.5 * share.numpy())


def tanh_gelu(x: Vector) -> Vector:
    """Return GELU by tanh: `charlm.backprop.rules.TanhGELU`."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
    return x * (0.5 + 0.5 * np.tanh(inner))  # type: ignore[no-any-return]


def rms_norm(x: Float[ndarray, "*batch C"]) -> Float[ndarray, "*batch C"]:
    """Divide by the root of the mean square over the last dimension."""
    if x.ndim == 1:
        return x * (1 / math.sqrt(x @ x / len(x) + EPSILON))
    squares = np.einsum("...c,...c->...", x, x)[..., None]
    return x / np.sqrt(squares / x.shape[-1] + EPSILON)  # type: ignore[no-any-return]


def token_shift(own: Vector, before: Float[Tensor, "1 1 C"] | None) -> Vector:
    """Return own with the second half of its channels from `before`; write own to `before`."""
    assert before is not None, "the model itself reads the first character"
    half = len(own) - len(own) // 2
    held = before.numpy()[0, 0]
    shifted = np.concatenate([own[:half], held[half:]])
    held[:] = own
    return shifted


def unshifted(own: Vector, before: Float[Tensor, "1 1 C"] | None) -> Vector:
    """Return own: for blocks that do not shift."""
    return own


def rotate(
    x: Float[ndarray, "*batch D"], cos: Float[ndarray, "D_half"], sin: Float[ndarray, "D_half"]
) -> Float[ndarray, "*batch D"]:
    """Rotate each pair (x[i], x[i + D/2]) by its angle."""
    half = len(cos)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def attend(
    query: Float[ndarray, "H D"],
    key: Float[ndarray, "H D"],
    value: Float[ndarray, "H D"],
    past: KeysValues,
) -> Vector:
    """Add a key and a value; average all values in view by how well the query matches the keys."""
    assert past.held is not None, "the model itself reads the first character"
    first, at, end = past.make_room(1)
    keys, values = past.held[:, 0].numpy()
    keys[:, at], values[:, at] = key, value
    query = query[:, None] / math.sqrt(query.shape[1])
    scores = query @ keys[:, first:end].transpose(0, 2, 1)  # (H, 1, S)
    scores -= scores.max(axis=-1, keepdims=True)  # otherwise exp overflows
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return (scores @ values[:, first:end]).reshape(-1)  # type: ignore[no-any-return]
