"""Lesson 6: the same GPT with the small improvements of a decade that proved useful.

rotary positions           queries and keys are rotated by an angle that grows with position, so
                           their product depends on the distance: Su et al. 2021, RoFormer, 3.2
RMSNorm without weights    Zhang and Sennrich 2019; the next matrix can learn what its gains
                           would learn
normalised queries, keys   keep attention from saturating: Dehghani et al. 2023, ViT-22B, 2.1
token shift                half of what attention and MLP read comes from the character before:
                           Peng et al. 2023, RWKV, 3.1
squared ReLU               So et al. 2021, Primer, 3.1
zero-initialised           each block starts as the identity, and the first loss is exactly
projections and head       ln V: Yang et al. 2022, Tensor Programs V, D.2, for the head
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.models.attention import AttentiveModel, Cache, MultiHeadAttention
from charlm.models.base import LanguageModel
from charlm.models.gpt2 import MLP
from charlm.models.ngram_embedding import NGramEmbedding, check_numbering

ROTARY_BASE = 10_000.0  # RoFormer, section 3.3
NUMBERING = "ngram_embedding.numbering"


class RMSNorm(torch.autograd.Function):
    """x over the root of its mean square, along the last dimension, with its derivative by hand.

    `F.rms_norm` gives the same, but on a CPU autograd splits it into squares and powers.
    `charlm.backprop.rules.RMSNorm` derives the derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return x / r, with r = sqrt(mean(x^2) + eps)."""
        exact = torch.promote_types(x.dtype, torch.float32)  # for x in bfloat16
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = length.square().div_(x.shape[-1]).add_(torch.finfo(exact).eps).rsqrt_()
        out: Tensor = (x * scale).to(x.dtype)
        ctx.save_for_backward(out, scale)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Remove the part of the gradient along the output, whose length is fixed."""
        out: Tensor
        scale: Tensor
        out, scale = ctx.saved_tensors
        along = (gradient * out).mean(-1, keepdim=True)
        return torch.addcmul(gradient, out, along, value=-1).mul(scale).to(out.dtype)


def norm(x: Tensor) -> Tensor:
    """Divide by the root of the mean square over the last dimension."""
    return RMSNorm.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def token_shift(
    x: Float[Tensor, "B T C"], last: Float[Tensor, "B 1 C"] | None = None
) -> Float[Tensor, "B T C"]:
    """Take the second half of the channels from the position before: pairs of characters for free.

    `last` is the position before the first one; None: zeros.
    """
    own, before = x.chunk(2, dim=-1)
    if last is None:
        return torch.cat([own, F.pad(before, (0, 0, 1, -1))], dim=-1)
    before = torch.cat([last.chunk(2, dim=-1)[1], before[:, :-1]], dim=1)
    return torch.cat([own, before], dim=-1)


def rotary_table(
    length: int, head_size: int, first: int = 0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "2 T D_half"]:
    """Return the cosines and sines of the angles position x base^(-2i / D), i < D / 2, in float32.

    There are `length` positions (T) from `first` on. `dtype` is the precision of the angles:
    float32 is exact to 1e-4 up to some thousand positions.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_size, 2) / head_size)
    positions = torch.arange(first, first + length, dtype=dtype)
    angles = torch.outer(positions, frequencies.to(dtype))
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(
    x: Float[Tensor, "*batch T D"], table: Float[Tensor, "2 T D_half"]
) -> Float[Tensor, "*batch T D"]:
    """Rotate each pair (x[i], x[i + D/2]) of each position by its angle."""
    cos, sin = table.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Rotary(torch.autograd.Function):
    """`rotate`, with its derivative by hand: the gradient is rotated back by the same angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        """Rotate."""
        ctx.save_for_backward(table)
        return rotate(x, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Rotate back: the inverse of a rotation is its transpose."""
        cos, sin = ctx.saved_tensors[0]
        return rotate(gradient, torch.stack([cos, -sin])), None


@runtime_checkable
class BlockCache(Cache, Protocol):
    """A block's memory of the text read so far (see `charlm.models.cache`)."""

    table: Float[Tensor, "2 T D_half"]  # the rotary table from the next position on
    attention_input: Float[Tensor, "B 1 C"] | None  # at the last position, before the shift
    mlp_input: Float[Tensor, "B 1 C"] | None  # there


class RotaryAttention(MultiHeadAttention):
    """Multi-head attention whose queries and keys are normalised, then rotated by position."""

    rotary: Tensor

    def __init__(self, n_embd: int, n_head: int, dropout: float, block_size: int) -> None:
        super().__init__(n_embd, n_head, dropout)
        if n_embd // n_head % 2:
            raise ValueError(f"heads of {n_embd // n_head} channels: rotary positions turn pairs")
        table = rotary_table(block_size, n_embd // n_head)
        self.register_buffer("rotary", table, persistent=False)

    def prepare(
        self, query_key: Float[Tensor, "2 B H T D"], past: Cache | None
    ) -> Float[Tensor, "2 B H T D"]:
        """Normalise, then rotate."""
        table = self.rotary if past is None else cast(BlockCache, past).table
        table = table[:, : query_key.shape[-2]]
        return Rotary.apply(norm(query_key), table)  # type: ignore[no-any-return, no-untyped-call]


class SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2, with its derivative by hand: 2 max(x, 0).

    Autograd chains the derivatives of square and ReLU, which takes six times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the square of the positive part."""
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return d loss / d x = d loss / d y * 2 max(x, 0)."""
        positive: Tensor
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    """Square the positive part."""
    return SquaredReLU.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class ModernBlock(nn.Module):
    """Attention, then an MLP; the input of each is normalised, its output added back."""

    def __init__(
        self, n_embd: int, n_head: int, dropout: float, block_size: int, shift: bool = True
    ) -> None:
        super().__init__()
        self.shift = shift
        self.attention = RotaryAttention(n_embd, n_head, dropout, block_size)
        self.mlp = MLP(n_embd, squared_relu)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B T C"], past: BlockCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """Apply attention, then the MLP."""
        own = norm(x)
        shifted = token_shift(own, past.attention_input if past else None) if self.shift else own
        x = x + self.dropout(self.attention(shifted, past))
        if past and self.shift:
            past.attention_input = own[:, -1:]
        own = norm(x)
        shifted = token_shift(own, past.mlp_input if past else None) if self.shift else own
        if past and self.shift:
            past.mlp_input = own[:, -1:]
        return x + self.dropout(self.mlp(shifted))  # type: ignore[no-any-return]


class ModernGPT(AttentiveModel):
    """A stack of modern blocks between an embedding and a head of its own; sizes as in `GPT2`.

    N-grams of up to `n_gram` characters have an embedding of their own; 1: none has. `token_shift`
    False: no block shifts.
    """

    per_character: ClassVar = {"token_embedding.weight": (0,), "head.weight": (0,)}
    version = "2"  # 1 had no token shift

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float = 0.0,
        n_gram: int = 1,
        token_shift: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.depth = n_layer
        self.head_size = n_embd // n_head
        self.shift = token_shift
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.ngram_embedding: NGramEmbedding | None = None
        if n_gram > 1:
            self.ngram_embedding = NGramEmbedding(vocab_size, n_gram, n_embd)
            self.optional = frozenset([NUMBERING])
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ModernBlock(n_embd, n_head, dropout, block_size, token_shift) for _ in range(n_layer)
        )
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self._draw_weights(generator)

    def forward(self, idx: Int[Tensor, "B T"], past: Any = None) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position.

        `past` is the state of the earlier text: a `charlm.models.cache.SlidingView`.
        """
        self.check_length(idx)
        x = self.token_embedding(idx)  # (B, T, C)
        if self.ngram_embedding is not None:
            x = x + self.ngram_embedding(idx, past.ids if past else None)
        x = self.dropout(norm(x))
        for i, block in enumerate(self.blocks):
            x = block(x, past.layers[i] if past else None)
        return self.head(norm(x))  # type: ignore[no-any-return]

    def start(self, batch_size: int) -> Any:
        """Return the state of `batch_size` texts of which nothing has been read."""
        from charlm.models.cache import SlidingView

        return SlidingView(self, LanguageModel.start(self, batch_size))

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check that weights fit; see `load_state_dict`."""
        super().check_state(state_dict)
        if NUMBERING in state_dict:
            check_numbering(NUMBERING, state_dict[NUMBERING], self.vocab_size)

    def take_over(self, other: LanguageModel, known: Int[Tensor, "V"]) -> None:
        """Take the weights of the same model over another alphabet."""
        assert isinstance(other, ModernGPT)
        super().take_over(other, known)
        if self.ngram_embedding is not None and other.ngram_embedding is not None:
            self.ngram_embedding.take_numbering(other.ngram_embedding, known)

    def _draw_weights(self, generator: torch.Generator | None) -> None:
        """Zero the layers that write to the residual path or the logits; draw the rest from N(0, 1/C).

        n-gram embeddings are zero too, so that n-grams never seen in training have no effect.
        """
        zeroed = ("projection", "contract", "head", "ngram_embedding.table")
        for name, parameter in self.named_parameters():
            if name.removesuffix(".weight").endswith(zeroed):
                nn.init.zeros_(parameter)
            else:
                std = 1 / math.sqrt(parameter.shape[-1])
                nn.init.normal_(parameter, std=std, generator=generator)
