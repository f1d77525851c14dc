"""Lessons 3 and 4: a weighted average whose weights depend on the characters.

Each position computes a query (what do I look for), a key (what do I contain) and a value (what do
I pass on). The products of a query with all keys are scaled, masked so that no position sees the
future, and put through a softmax. That gives a row of weights that sum to 1: the averaging matrix
of lesson 2, but learned. Vaswani et al. 2017, "Attention is all you need", section 3.2.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.models.base import LanguageModel

Mask = Bool[Tensor, "*rows T S"] | Literal["causal"] | None


def weights_of(
    query: Float[Tensor, "B H T D"], key: Float[Tensor, "B H S D"], mask: Mask
) -> Float[Tensor, "B H T S"]:
    """Return how much each query takes from each key; each row sums to 1. See `attend`."""
    # A sum of D products has variance D; without scaling, the softmax would pick almost one key.
    query = query / math.sqrt(query.shape[-1])
    scores = query @ key.transpose(-2, -1)  # (B, H, T, S): how well each query matches each key
    if mask == "causal":
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        hidden = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
        scores = scores + hidden  # exp(-inf) = 0: no weight at all
    return scores.softmax(dim=-1)


def attend_plainly(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S D"],
    mask: Mask,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """Compute the same as `attend` in plain steps; this is the version to read."""
    weights = weights_of(query, key, mask)
    return F.dropout(weights, dropout) @ value if dropout else weights @ value


def attend(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S D"],
    mask: Mask,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """Average the values, weighted by how well each query matches each key.

    In self-attention all three are computed from the same x. In cross-attention the keys and values
    come from another sequence, and S may differ from T. The mask is True where query t may see key
    s; "causal" lets t see 0 to t; None, everything. `dropout` drops weights.

    A fused kernel never stores the (T, S) weights; `attend_plainly` is used where it is faster.
    Both agree up to rounding.
    """
    if torch.is_grad_enabled() and key.shape[-2] <= longest_plain(value):
        return attend_plainly(query, key, value, mask, dropout)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask if isinstance(mask, Tensor) else None,
        is_causal=mask == "causal",
        dropout_p=dropout,
    )


def longest_plain(value: Tensor) -> int:
    """Return the number of keys up to which `attend_plainly` trains faster than the fused kernel.

    Measured on two cores (docs/experiments.md): on a CPU the kernel's backward pass in bfloat16 is
    four times as slow at 64 keys, and still twice as slow at 512.
    """
    if value.device.type != "cpu":
        return 0
    return 512 if value.dtype == torch.bfloat16 else 128


@runtime_checkable
class Cache(Protocol):
    """An attention layer's memory of the text read so far (see `charlm.models.cache`)."""

    used: int  # how many characters it holds

    def add(
        self, key: Float[Tensor, "B H n D"], value: Float[Tensor, "B H n D"]
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"], Bool[Tensor, "n S"] | None]:
        """Add n keys and values; return all in view, and the mask of which query sees which key."""
        ...


class Head(nn.Module):
    """One head of causal self-attention, with its three projections spelled out."""

    def __init__(self, n_embd: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)

    def forward(
        self, x: Float[Tensor, "B T C"], past: Cache | None = None
    ) -> Float[Tensor, "B T D"]:
        """Let each position gather from itself and all before it, also from earlier calls."""
        query, key, value = (f(x).unsqueeze(1) for f in (self.query, self.key, self.value))
        mask: Mask = "causal"
        if past is not None:
            key, value, mask = past.add(key, value)
        return attend(query, key, value, mask).squeeze(1)

    def weights(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 T T"]:
        """Return how much each position gathers from each."""
        return weights_of(self.query(x).unsqueeze(1), self.key(x).unsqueeze(1), "causal")


class MultiHeadAttention(nn.Module):
    """Many heads at once: one projection makes all queries, keys and values.

    Each head works in D = C / H channels and can look for something different. The last projection
    mixes the results of the heads. In training, `dropout` drops weights.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = False) -> None:
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f"n_head {n_head} does not divide n_embd {n_embd}")
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.projection = nn.Linear(n_embd, n_embd, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T C"], past: Cache | None = None
    ) -> Float[Tensor, "B T C"]:
        """Let each position gather, in every head, from itself and all before it."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, H, D)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        (query, key), value = self.prepare(qkv[:2], past), qkv[2]
        mask: Mask = "causal"
        if past is not None:
            key, value, mask = past.add(key, value)
        dropout = self.dropout if self.training else 0.0
        gathered = attend(query, key, value, mask, dropout)
        return self.projection(gathered.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]

    def weights(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B H T T"]:
        """Return how much each position gathers, in every head, from each."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.prepare(qkv[:2], None)
        return weights_of(query, key, "causal")

    def prepare(
        self, query_key: Float[Tensor, "2 B H T D"], past: Cache | None
    ) -> Float[Tensor, "2 B H T D"]:
        """Return queries and keys unchanged; the modern style normalises and rotates them."""
        return query_key


class AttentiveModel(LanguageModel):
    """A model whose layers remember the text read so far, so that `go_on` reads only new characters.

    `charlm.models.cache`, which comes after the lessons, explains how.
    """

    depth: int  # how many layers of attention it has

    def start(self, batch_size: int) -> Any:
        """Return the state of `batch_size` texts of which nothing has been read."""
        from charlm.models.cache import HalvedView

        return HalvedView(self, super().start(batch_size))

    def go_on(self, idx: Int[Tensor, "B n"], state: Any) -> tuple[Float[Tensor, "B n V"], Any]:
        """Read n more characters of each text, under `torch.no_grad`: the state is overwritten."""
        return state.go_on(self, idx), state

    def repeat(self, state: Any, count: int) -> Any:
        """Return the state of `count` texts that all continue one text."""
        return state.repeat(count)


class AttentionModel(AttentiveModel):
    """Lesson 3: the output of one head (or another attention layer) is added to each embedding."""

    per_character: ClassVar = {
        "token_embedding.weight": (0,),
        "head.weight": (0,),
        "head.bias": (0,),
    }

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_embd: int,
        *,
        attention: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.depth = 1
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.attention = attention or Head(n_embd, n_embd)
        self.head = nn.Linear(n_embd, vocab_size)
        nn.init.normal_(self.token_embedding.weight, generator=generator)
        nn.init.normal_(self.position_embedding.weight, std=0.1, generator=generator)
        for projection in self.attention.parameters():
            nn.init.normal_(projection, std=1 / math.sqrt(n_embd), generator=generator)
        nn.init.zeros_(self.head.weight)  # so the first loss is ln V
        nn.init.zeros_(self.head.bias)

    def forward(
        self, idx: Int[Tensor, "B T"], past: Sequence[Cache] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Return logits from each character and the values that attention gathered for it."""
        self.check_length(idx)
        first = past[0].used if past else 0
        positions = torch.arange(first, first + idx.shape[1], device=idx.device)
        # Attention alone ignores order; the embedding of the position adds it.
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C)
        x = x + self.attention(x, past[0] if past else None)
        return self.head(x)  # type: ignore[no-any-return]


class MultiHeadModel(AttentionModel):
    """Lesson 4: the same, with many heads; `n_head` divides `n_embd`."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_embd: int,
        n_head: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        attention = MultiHeadAttention(n_embd, n_head)
        super().__init__(vocab_size, block_size, n_embd, attention=attention, generator=generator)
