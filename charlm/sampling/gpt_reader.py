"""Fast readers of one text for GPTs on a CPU, in NumPy.

For one character of one text, most of the time of a model's own `step` is the overhead of torch
calls, microseconds each. NumPy's is a fraction of that, and its matrix-vector product is faster.
Read `charlm.models.gpt2`, `modern` and `cache` first; tests compare these readers with the models.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.models import GPT2, ModernGPT
from charlm.models.cache import BlockCache, KeysValues, SlidingView, band
from charlm.models.ngram_embedding import GOLDEN, PRIME, ROW_BITS, ROWS
from charlm.sampling.reader import Reader, StepReader, Weights, array

Vector = Float[ndarray, "_"]
Rows = Float[ndarray, "n _"]
Linear = Callable[[Float[ndarray, "*n in"]], Float[ndarray, "*n out"]]  # of one vector, or of rows

SERIAL = 2048  # up to this many elements neither torch nor MKL starts threads
EPSILON = np.float32(torch.finfo(torch.float32).eps)


class GPT2Reader(Reader):
    """Reads one text with NumPy alone: torch's threads would slow BLAS's own for milliseconds."""

    def __init__(self, model: GPT2, weights: Weights = "float32") -> None:
        self.tokens = array(model.token_embedding.weight)
        self.positions = array(model.position_embedding.weight)
        self.blocks = [GPT2Block(block, weights) for block in model.blocks]
        self.norm = layer_norm(model.final_norm)
        self.head = linear(model.token_embedding.weight, weights)
        self.block_size = model.block_size
        self.layers = [KeysValues(model.block_size, model.block_size) for _ in model.blocks]
        self.ids: list[int] = []  # in view

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters; when the view is full, read half of it again."""
        new = idx[0].tolist()
        self.ids += new
        while len(self.ids) > self.block_size:
            del self.ids[: max(1, self.block_size // 2)]
            new = self.ids
            for layer in self.layers:
                layer.used = 0
        x = self.tokens[new] + self.positions[len(self.ids) - len(new) : len(self.ids)]
        for block, layer in zip(self.blocks, self.layers, strict=True):
            x = block(x, layer)
        return self.head(self.norm(x[-1:]))

    def copy(self) -> "GPT2Reader":
        """Return a copy that shares the weights."""
        other = copy(self)
        other.ids = [*self.ids]
        other.layers = [layer.repeat(1) for layer in self.layers]
        return other


class GPTBlock:
    """The matrices that the blocks of both styles have."""

    def __init__(self, block: Any, weights: Weights) -> None:
        self.n_head = block.attention.n_head
        self.qkv = linear(block.attention.qkv.weight, weights)
        self.projection = linear(block.attention.projection.weight, weights)
        self.expand = linear(block.mlp.expand.weight, weights)
        self.contract = linear(block.mlp.contract.weight, weights)


class GPT2Block(GPTBlock):
    """A block of `gpt2`: `charlm.models.gpt2.Block`."""

    def __init__(self, block: Any, weights: Weights) -> None:
        super().__init__(block, weights)
        self.attention_norm = layer_norm(block.attention_norm)
        self.mlp_norm = layer_norm(block.mlp_norm)

    def __call__(self, x: Rows, past: KeysValues) -> Rows:
        """Apply attention, then the MLP."""
        qkv = self.qkv(self.attention_norm(x)).reshape(len(x), 3, self.n_head, -1)
        query, key, value = qkv.transpose(1, 2, 0, 3)  # (H, n, D) each
        x = x + self.projection(attend(query, key, value, past))
        return x + self.contract(gelu(self.expand(self.mlp_norm(x))))


class ModernReader(Reader):
    """Reads one text: the prompt with the model, the rest with NumPy."""

    def __init__(self, model: ModernGPT, weights: Weights = "float32") -> None:
        self.model = model
        self.tokens = array(model.token_embedding.weight)
        self.blocks = [ModernBlock(block, weights) for block in model.blocks]
        self.head = linear(model.head.weight, weights)
        ngrams = model.ngram_embedding
        self.ngrams = None if ngrams is None else array(ngrams.table.weight)  # (N, C)
        self.longest = 1 if ngrams is None else ngrams.longest
        numbering = None if ngrams is None else ngrams.numbering
        self.numbering = None if numbering is None else numbering.tolist()
        self.state: SlidingView = model.start(1)

    @classmethod
    def sharing(cls, model: ModernGPT, state: SlidingView) -> "ModernReader":
        """Return a reader that goes on with a state, which the model may also go on with."""
        reader = cls(model)
        reader.state = state
        return reader

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""
        state = self.state
        if idx.shape[1] > 1 or not state.length:
            return StepReader(self.model, state).read(idx)  # updates the state in place
        x = self.tokens[idx[0, 0]]
        if self.ngrams is not None:
            vocab_size = self.model.vocab_size
            recent = [*state.ids[0].tolist(), int(idx[0, 0])]
            rows = ngram_rows(recent, self.longest, vocab_size, self.numbering)
            x = x + self.ngrams[rows].sum(axis=0)
            state.ids = torch.tensor([recent[1 - self.longest :]])
        x = rms_norm(x)
        cos, sin = state.angles(1)[:, 0].numpy()
        state.length += 1
        for block, past in zip(self.blocks, state.layers, strict=True):
            x = block(x, past, cos, sin)
        return self.head(rms_norm(x))[None]

    def copy(self) -> "ModernReader":
        """Return a copy that shares the weights."""
        other = copy(self)
        other.state = self.state.repeat(1)
        return other


class ModernBlock(GPTBlock):
    """A block of `modern` for one character: `charlm.models.modern.ModernBlock`."""

    def __call__(self, x: Vector, past: BlockCache, cos: Vector, sin: Vector) -> Vector:
        """Apply attention, then the MLP; `cos` and `sin` are of the position's angles."""
        shifted = token_shift(rms_norm(x), past.attention_input)
        qkv = self.qkv(shifted).reshape(3, self.n_head, -1)
        query, key = rotate(rms_norm(qkv[:2]), cos, sin)[:, :, None]  # (H, 1, D) each
        x = x + self.projection(attend(query, key, qkv[2, :, None], past)[0])
        hidden = self.expand(token_shift(rms_norm(x), past.mlp_input))
        np.maximum(hidden, 0, out=hidden)
        hidden *= hidden
        return x + self.contract(hidden)


def linear(weight: Float[Tensor, "out in"], weights: Weights) -> Linear:
    """Return the function x -> weight x, for vectors or rows of them."""
    weight = weight.detach()
    if weights == "int8":
        return int8_linear(weight)
    wide = weight.shape[0] < weight.shape[1]  # BLAS is up to twice as fast on long rows
    columns = weight.numpy().T if wide else weight.t().contiguous().numpy()
    return lambda x: x @ columns


def int8_linear(weight: Float[Tensor, "out in"]) -> Linear:
    """Return x -> weight x with weights of 8 bits, a quarter of the memory, a single x of bfloat16.

    Each row has its own scale, its largest weight over 127, and no zero point.
    """
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).bfloat16()
    rounded = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    # The kernels read 16 or 32 at a time, even beyond the end.
    lacking = -rounded.shape[1] % 32
    packed = F.pad(rounded, (0, lacking))
    weights, scales = rounded.numpy(), scale.float().numpy()[:, None]

    def product(x: Float[ndarray, "*n in"]) -> Float[ndarray, "*n out"]:
        if x.ndim > 1 and len(x) > 1:  # many rows are faster in float32
            return x @ (weights * scales).T  # type: ignore[no-any-return]
        # The kernel of torch's weight-only quantisation, which has no public name.
        row = F.pad(torch.from_numpy(x.reshape(1, -1)), (0, lacking)).bfloat16()
        found = torch._weight_int8pack_mm(row, packed, scale).float().numpy()
        return found.reshape(*x.shape[:-1], -1)

    return product


def layer_norm(norm: nn.LayerNorm) -> Callable[[Rows], Rows]:
    """Return LayerNorm without bias."""
    gain, epsilon = array(norm.weight), norm.eps
    mean = np.full(len(gain), 1 / len(gain), gain.dtype)

    def normalized(x: Rows) -> Rows:
        centred = x - (x @ mean)[:, None]
        variance = (centred * centred) @ mean
        return centred / np.sqrt(variance + epsilon)[:, None] * gain  # type: ignore[no-any-return]

    return normalized


def gelu(x: Rows) -> Rows:
    """Return x times the normal distribution function at x."""
    # NumPy has no erf. `F.gelu` would start threads, which then slow BLAS's own down.
    share = torch.from_numpy(x * math.sqrt(0.5))
    for part in torch.split(share.view(-1), SERIAL):
        part.erf_()
    return x * (0.5 + 0.5 * share.numpy())


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


def rotate(
    x: Float[ndarray, "*batch D"], cos: Float[ndarray, "D_half"], sin: Float[ndarray, "D_half"]
) -> Float[ndarray, "*batch D"]:
    """Rotate each pair (x[i], x[i + D/2]) by its angle."""
    half = len(cos)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def attend(
    query: Float[ndarray, "H n D"],
    key: Float[ndarray, "H n D"],
    value: Float[ndarray, "H n D"],
    past: KeysValues,
) -> Float[ndarray, "n C"]:
    """Add n keys and values; average all values in view by how well queries match keys."""
    heads, n, head_size = query.shape
    if past.held is None:
        past.held = torch.empty(2, 1, heads, past.slots, head_size)
    first, at, end = past.make_room(n)
    keys, values = past.held[:, 0].numpy()
    keys[:, at:end], values[:, at:end] = key, value
    query = query / math.sqrt(head_size)
    scores = query @ keys[:, first:end].transpose(0, 2, 1)  # (H, n, S)
    if n > 1:
        unseen = ~band(n, at - first, past.window, past.held.device).numpy()
        scores[:, unseen] = -math.inf
    scores -= scores.max(axis=-1, keepdims=True)  # otherwise exp overflows
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    averages: Rows = (scores @ values[:, first:end]).transpose(1, 0, 2).reshape(n, -1)
    return averages


def ngram_rows(
    recent: Sequence[int], longest: int, vocab_size: int, numbering: list[int] | None = None
) -> list[int]:
    """Like `charlm.models.ngram_embedding.ngram_rows`, for the end of a text."""
    base, numbers = vocab_size + 1, [i + 1 for i in recent]
    if numbering is not None:
        base, numbers = numbering[0], [numbering[number] for number in numbers]
    numbers = [0] * (longest - len(recent)) + numbers
    key, rows = numbers[-1], []
    for n in range(2, longest + 1):
        key = (key * base + numbers[-n]) % PRIME
        rows.append((n - 2) * ROWS + ((key * GOLDEN) % 2**32 >> 32 - ROW_BITS))
    return rows
