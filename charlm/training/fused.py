"""A GPT's training step on a CPU in few passes over memory: the same function as the lessons.

`fused_forward(model)` returns a function with the model's weights and its results. torch multiplies
matrices. All that lies between two products is one kernel (`charlm.training.kernels`), and so is its
derivative. Results agree with the lessons' up to rounding.

The blocks are one function to autograd: their backward pass is spelled out here, in the order of
the forward pass reversed. `charlm.backprop.rules` derives each of its parts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.config import Config
from charlm.models import LanguageModel
from charlm.models.attention import longest_plain
from charlm.models.device import choose_device, choose_dtype, precision
from charlm.models.kernel import share_threads
from charlm.models.modern import norm
from charlm.models.registry import Kind, kind_for, kind_of
from charlm.training import adamw, kernels
from charlm.training.kernels import array

Forward = Callable[[Tensor], Tensor]
Tape = list[tuple[Any, ...]]  # what the backward pass needs, in the order of the forward pass
Weights = Iterator[Tensor]  # those still to be used, in the precision of products
Found = list[Tensor]  # gradients of the weights, the last weight's first

ALL = 2**32  # numbers that a seed, or a hash of the kernels, may be
PARTS = 16  # of the rows, whose gradients of a gain are summed apart


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
        self.threshold = np.uint32(0)  # of dropout: see `charlm.training.kernels`
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
        self.threshold = np.uint32(round(dropout * ALL))
        drawn = torch.randint(ALL, (1 + 3 * len(self.model.blocks),)) if dropout else None
        while drawn is None:
            yield np.uint32(0)
        yield from map(np.uint32, drawn.tolist())

    def drop(self, x: Float[Tensor, "N C"], seed: np.uint32) -> Float[Tensor, "N C"]:
        """Return x after dropout, and so also its gradient from that of the result."""
        if not self.threshold:
            return x
        out = torch.empty_like(x)
        kernels.dropout(array(x), array(out), seed, self.threshold)
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
        kernels.to_heads(array(d), (array(heads),))
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
        kernels.from_heads(tuple(map(array, apart)), array(x))
        return x


class FusedModernGPT(Fused):
    """Lesson 6."""

    def embed(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Return the input of the first block."""
        x: Tensor = self.model.token_embedding(idx)
        if self.model.ngram_embedding is not None:
            x = x + self.model.ngram_embedding(idx)
        return norm(x)

    def head(self) -> Float[Tensor, "V C"]:
        """Return the matrix that makes logits."""
        return self.model.head.weight  # type: ignore[no-any-return]

    def add_norm(
        self,
        x: Tensor,
        branch: Tensor,
        seed: np.uint32,
        weights: Weights,
        tape: Tape,
        last: bool = False,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
        """Return x + branch, and its norm, shifted unless it is the last."""
        total, out = torch.empty_like(x), torch.empty_like(x, dtype=branch.dtype)
        scale = torch.empty(len(x))
        own = self._own(x, last)
        arrays = map(array, (x, branch, total, out, scale))
        kernels.add_rms_norm(*arrays, self.length, own, seed, self.threshold)
        tape.append((total, scale, seed))
        return total, out

    def add_norm_backward(
        self, d_out: Tensor, d_x: Tensor, found: Found, tape: Tape, last: bool = False
    ) -> Float[Tensor, "N C"]:
        """Add the gradient of x to `d_x`; return it in the precision of products."""
        low = torch.empty_like(d_out)
        total, scale, seed = tape.pop()
        arrays = map(array, (d_out, total, scale, d_x, low))
        own = self._own(total, last)
        kernels.rms_norm_backward(*arrays, self.length, own, seed, self.threshold)
        return low

    def split(self, qkv: Float[Tensor, "N Q"], tape: Tape) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, normalised and rotated, and values."""
        query, key, value = (self.new_heads(qkv, 3) for _ in range(3))
        scale = torch.empty(2, len(qkv), self.heads)
        kernels.split_heads(*map(array, (qkv, self._table(), query, key, value, scale)))
        tape.append((scale,))
        return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)

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
        (scale,) = tape.pop()
        heads = (
            x.view(self.windows, self.heads, self.length, -1)
            for x in (d_query, d_key, d_value, query, key)
        )
        d_qkv = query.new_empty(scale.shape[1], 3 * self.heads * query.shape[-1])
        kernels.join_heads(*map(array, (*heads, self._table(), scale, d_qkv)))
        return d_qkv

    def activation(self, x: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Return the squared ReLU of x, which it overwrites."""
        kernels.squared_relu(array(x))
        tape.append((x,))
        return x

    def activation_backward(self, d_out: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Go back through `activation`."""
        (out,) = tape.pop()
        kernels.squared_relu_backward(array(out), array(d_out))
        return d_out

    def _own(self, x: Tensor, last: bool) -> int:
        """Return how many channels stay where they are: `token_shift` moves the second half."""
        return x.shape[1] if last else (x.shape[1] + 1) // 2

    def _table(self) -> Float[Tensor, "2 T D_half"]:
        table: Tensor = self.model.blocks[0].attention.rotary
        return table[:, : self.length].contiguous()


class FusedGPT2(Fused):
    """Lesson 5."""

    def embed(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Return the input of the first block."""
        positions: Tensor = self.model.position_embedding.weight
        return self.model.token_embedding(idx) + positions[: idx.shape[1]]  # type: ignore[no-any-return]

    def head(self) -> Float[Tensor, "V C"]:
        """Return the matrix that makes logits: the embedding's, whose gradients add up."""
        return self.model.token_embedding.weight  # type: ignore[no-any-return]

    def find_weights(self) -> list[nn.Parameter]:
        """Return the weights in the order in which `run` uses them."""
        return [*super().find_weights(), self.model.final_norm.weight]

    def add_norm(
        self,
        x: Tensor,
        branch: Tensor,
        seed: np.uint32,
        weights: Weights,
        tape: Tape,
        last: bool = False,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
        """Return x + branch, and its norm."""
        total, out = torch.empty_like(x), torch.empty_like(x, dtype=branch.dtype)
        mean, scale, gain = torch.empty(len(x)), torch.empty(len(x)), next(weights)
        arrays = map(array, (x, branch, total, gain, out, mean, scale))
        eps = np.float32(self.model.final_norm.eps)
        kernels.add_layer_norm(*arrays, eps, seed, self.threshold)
        tape.append((total, gain, mean, scale, seed))
        return total, out

    def add_norm_backward(
        self, d_out: Tensor, d_x: Tensor, found: Found, tape: Tape, last: bool = False
    ) -> Float[Tensor, "N C"]:
        """Add the gradient of x to `d_x`; return it in the precision of products."""
        low, d_gains = torch.empty_like(d_out), torch.empty(PARTS, d_out.shape[1])
        *kept, seed = tape.pop()
        arrays = map(array, (d_out, *kept, d_x, low, d_gains))
        kernels.layer_norm_backward(*arrays, seed, self.threshold)
        found.append(d_gains.sum(0))
        return low

    def split(self, qkv: Float[Tensor, "N Q"], tape: Tape) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values."""
        query, key, value = (self.new_heads(qkv, 3) for _ in range(3))
        kernels.to_heads(array(qkv), tuple(map(array, (query, key, value))))
        return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)

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
        return self.join(d_query, d_key, d_value)

    def activation(self, x: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Return the GELU of x, which it overwrites by the slope."""
        out = torch.empty_like(x)
        kernels.gelu(array(x), array(out))
        tape.append((x,))
        return out

    def activation_backward(self, d_out: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Go back through `activation`."""
        (slope,) = tape.pop()
        kernels.gelu_backward(array(slope), array(d_out))
        return d_out


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
            dropout = int(threshold) / ALL
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
    kernels.causal_softmax(*arrays, seed, threshold)
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
    kernels.causal_softmax_backward(array(weights), array(dropped), array(d_scores), factor)
    return d_scores @ key, d_scores.mT @ query, d_value, query, key


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
    found = kind_of(model).find("fused")
    if found is None or model.device.type != "cpu":
        return None
    forward: Forward = found(model)
    return forward


def load_kernels(config: Config) -> Iterator[None]:
    """Load what `fused_forward` and AdamW need for a run's models.

    If it must be compiled, which takes some ten seconds on its first use on a machine, yield once
    before that.
    """
    if choose_device(config.run.device).type != "cpu":
        return
    for one in config.training_runs().values():
        kind = kind_for(one.model)
        if one.run.fused and kind.fused and one.train.gradients == "autograd":
            yield from _load(kind, choose_dtype(one.run.dtype, torch.device("cpu")))
        if getattr(one.model, "n_gram", 1) > 1:
            adamw.load_kernel()


def _load(kind: Kind, dtype: torch.dtype) -> Iterator[None]:
    if (kind, dtype) in _loaded:
        return
    share_threads()
    one = torch.zeros(1, 1, 1, dtype=dtype)
    none = array(one[:0])
    arrays = array(one), array(torch.zeros(1, 1)), np.float32(1), none
    kernels.causal_softmax(*arrays, *kernels.NO_DROPOUT)
    if kernels.causal_softmax.stats.cache_misses:
        yield
    model = kind.find("model")(2, 2, n_layer=1, n_head=1, n_embd=2, dropout=0.5)
    with precision(model.device, dtype), torch.random.fork_rng(devices=[]):
        logits = kind.find("fused")(model)(torch.zeros(1, 2, dtype=torch.int64))
    logits.float().sum().backward()
    _loaded.add((kind, dtype))


_loaded: set[tuple[Kind, torch.dtype]] = set()
