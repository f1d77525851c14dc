"""The blocks of a GPT in training, forward and back: products by torch, kernels between them.

`fused_forward(model)` returns a function with the model's weights and its results. The blocks are one
function to autograd: their backward pass is spelled out here, in the order of the forward pass
reversed. `charlm.backprop.rules` derives each of its parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.fused.attention import Tape, gather, gather_backward
from charlm.fused.dropout import SEEDS, dropout
from charlm.fused.heads import from_heads, to_heads
from charlm.fused.numbers import array
from charlm.models import LanguageModel
from charlm.models.kernel import share_threads
from charlm.models.registry import kind_of

Forward = Callable[[Tensor], Tensor]
Weights = Iterator[Tensor]  # those still to be used, in the precision of products
Found = list[Tensor]  # gradients of the weights, the last weight's first


class Fused(ABC):
    """A GPT's forward pass in training and its derivative: a function from ids to logits.

    N = B * T rows. The output of a branch (attention or MLP) is added to the residual path by the
    next norm, which reads both anyway. Each `..._backward` takes from the end of the tape what its
    forward pass put there, and returns the gradient of its first argument.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.heads: int = model.blocks[0].attention.n_head
        self.weights = self.find_weights()  # to look for them takes as long as a small product
        self.dropout: float = model.dropout.p
        self.threshold = np.uint32(0)  # of dropout: see `charlm.fused.dropout`
        self.windows = self.length = 0

    def __call__(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position."""
        self.model.check_length(idx)
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        x = self.embed(idx)
        out: Tensor = _Run.apply(self, low or x.dtype, x, *self.weights)  # type: ignore[no-untyped-call]
        return F.linear(out, self.head())

    def find_weights(self) -> list[nn.Parameter]:
        """Return the weights in the order in which `run` uses them."""
        return list(self.model.blocks.parameters())

    def run(
        self, x: Float[Tensor, "B T C"], weights: Weights, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "N C"], Tape]:
        """Return the output of the last norm, and the tape for the backward pass."""
        share_threads()
        self.windows, self.length, channels = x.shape
        tape: Tape = []
        seeds = self._seeds()
        x, branch, seed = (
            x.reshape(-1, channels),
            x.new_empty(0, channels, dtype=dtype),
            next(seeds),
        )
        x = self.drop(x, seed)
        tape.append((seed,))
        for _ in self.model.blocks:
            x, out = self.add_norm(x, branch, seed, weights, tape)
            branch, seed = self.attention(out, next(seeds), weights, tape), next(seeds)
            x, out = self.add_norm(x, branch, seed, weights, tape)
            hidden = self.activation(linear(out, weights, tape), tape)
            branch, seed = linear(hidden, weights, tape), next(seeds)
        return self.add_norm(x, branch, seed, weights, tape, last=True)[1], tape

    def run_back(
        self, d_out: Float[Tensor, "N C"], tape: Tape
    ) -> tuple[Float[Tensor, "B T C"], Found]:
        """Return the gradient of x and those of the weights."""
        share_threads()
        found: Found = []
        d_x = torch.zeros(d_out.shape)  # the sum of the gradients from all later uses
        d_branch = self.add_norm_backward(d_out, d_x, found, tape, last=True)
        for _ in self.model.blocks:
            d_hidden = self.activation_backward(linear_backward(d_branch, found, tape), tape)
            d_out = linear_backward(d_hidden, found, tape)
            d_branch = self.add_norm_backward(d_out, d_x, found, tape)
            d_out = self.attention_backward(d_branch, found, tape)
            d_branch = self.add_norm_backward(d_out, d_x, found, tape)
        d_x = self.drop(d_x, *tape.pop())
        return d_x.view(self.windows, self.length, -1), found

    def _seeds(self) -> Iterator[np.uint32]:
        """Yield the seeds of dropout, of the embedding and three in each block.

        They come from torch's generator, which is seeded for each micro-batch.
        """
        dropout = self.dropout if self.model.training else 0.0
        self.threshold = np.uint32(round(dropout * SEEDS))
        drawn = torch.randint(SEEDS, (1 + 3 * len(self.model.blocks),)) if dropout else None
        while drawn is None:
            yield np.uint32(0)
        yield from map(np.uint32, drawn.tolist())

    def drop(self, x: Float[Tensor, "N C"], seed: np.uint32) -> Float[Tensor, "N C"]:
        """Return x after dropout, and so also its gradient from that of the result."""
        if not self.threshold:
            return x
        out = torch.empty_like(x)
        dropout(array(x), array(out), seed, self.threshold)
        return out

    @abstractmethod
    def embed(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Return the input of the first block."""

    @abstractmethod
    def head(self) -> Float[Tensor, "V C"]:
        """Return the matrix that makes logits."""

    @abstractmethod
    def add_norm(
        self,
        x: Tensor,
        branch: Tensor,
        seed: np.uint32,
        weights: Weights,
        tape: Tape,
        last: bool = False,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
        """Return x + branch, after its dropout, and their norm, as the next branch reads it."""

    @abstractmethod
    def add_norm_backward(
        self, d_out: Tensor, d_x: Tensor, found: Found, tape: Tape, last: bool = False
    ) -> Float[Tensor, "N C"]:
        """Add the gradient of x to `d_x`; return it in the precision of products."""

    @abstractmethod
    def split(self, qkv: Float[Tensor, "N Q"], tape: Tape) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B*H, T, D)."""

    @abstractmethod
    def split_backward(
        self,
        d_query: Tensor,
        d_key: Tensor,
        d_value: Tensor,
        query: Tensor,
        key: Tensor,
        tape: Tape,
    ) -> Float[Tensor, "N Q"]:
        """Go back through `split`."""

    @abstractmethod
    def activation(self, x: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Apply the MLP's activation; it may overwrite x."""

    @abstractmethod
    def activation_backward(self, d_out: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Go back through `activation`."""

    def attention(
        self, x: Float[Tensor, "N C"], seed: np.uint32, weights: Weights, tape: Tape
    ) -> Float[Tensor, "N C"]:
        """Let each position gather, in every head, from itself and all before it."""
        parts = self.split(linear(x, weights, tape), tape)
        return linear(self.join(gather(*parts, seed, self.threshold, tape)), weights, tape)

    def attention_backward(
        self, d_out: Float[Tensor, "N C"], found: Found, tape: Tape
    ) -> Float[Tensor, "N C"]:
        """Go back through `attention`."""
        d = linear_backward(d_out, found, tape)
        heads = self.new_heads(d)
        to_heads(array(d), (array(heads),))
        d_qkv = self.split_backward(*gather_backward(heads.flatten(0, 1), tape), tape)
        return linear_backward(d_qkv, found, tape)

    def new_heads(self, x: Float[Tensor, "N C"], parts: int = 1) -> Float[Tensor, "B H T D"]:
        """Return room for one of the parts of x, apart for each head."""
        d = x.shape[1] // parts // self.heads
        return x.new_empty(self.windows, self.heads, self.length, d)

    def join(self, *parts: Float[Tensor, "BH T D"]) -> Float[Tensor, "N C"]:
        """Return the heads of all parts side by side."""
        apart = [x.view(self.windows, self.heads, self.length, -1) for x in parts]
        x = parts[0].new_empty(
            self.windows * self.length, len(parts) * self.heads * parts[0].shape[-1]
        )
        from_heads(tuple(map(array, apart)), array(x))
        return x


def linear(x: Float[Tensor, "N I"], weights: Weights, tape: Tape) -> Float[Tensor, "N O"]:
    """Multiply by the next weight."""
    weight = next(weights)
    tape.append((x, weight))
    return x @ weight.T


def linear_backward(d_out: Float[Tensor, "N O"], found: Found, tape: Tape) -> Float[Tensor, "N I"]:
    """Go back through `linear`."""
    x: Tensor
    weight: Tensor
    x, weight = tape.pop()
    found.append(d_out.T @ x)
    return d_out @ weight


class _Run(torch.autograd.Function):
    """The blocks as one function of the residual path and the weights."""

    @staticmethod
    def forward(ctx: Any, blocks: Fused, dtype: torch.dtype, x: Tensor, *weights: Tensor) -> Tensor:
        """Run the blocks, with products in `dtype`."""
        low = (w if w.ndim < 2 else w.to(dtype) for w in weights)  # gains stay in float32
        ctx.blocks = blocks
        out, ctx.tape = blocks.run(x, low, dtype)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """Run them back."""
        d_x, found = ctx.blocks.run_back(d_out.flatten(0, 1).contiguous(), ctx.tape)
        return None, None, d_x, *(d.float() for d in reversed(found))


def fused_forward(model: LanguageModel) -> Forward | None:
    """Return a function from ids to logits like the model's, for training; None if there is none."""
    found = kind_of(model).fused_for(model)
    if found is None or model.device.type != "cpu":
        return None
    forward: Forward = found(model)
    return forward
