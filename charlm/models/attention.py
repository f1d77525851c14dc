"""Lessons 3 and 4: a weighted average whose weights depend on the characters.

Each position emits a query (what do I look for), a key (what do I contain) and a value (what do I
hand over). The scaled product of a query with all keys, masked so that nobody sees the future and
put through a softmax, is a row of weights that sums to 1: the averaging matrix of lesson 2, but
learned. Vaswani et al. 2017, "Attention is all you need", section 3.2.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.models.base import LanguageModel

Mask = Bool[Tensor, "T S"] | Literal["causal"] | None


def attend_plainly(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S D"],
    mask: Mask,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """Do what `attend` does, one idea a line: this is the form to read."""
    # A sum of D products has a variance of D; unscaled, the softmax would all but pick one key.
    query = query / math.sqrt(query.shape[-1])
    scores = query @ key.transpose(-2, -1)  # (B, H, T, S): how well each query fits each key
    if mask == "causal":
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        hidden = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
        scores = scores + hidden  # exp(-inf) = 0: no weight at all
    weights = scores.softmax(dim=-1)  # each row sums to 1
    return F.dropout(weights, dropout) @ value if dropout else weights @ value


def attend(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S D"],
    mask: Mask,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """Average the values, weighted by how well each query fits each key.

    In self-attention all three come from the same x. In cross-attention the keys and values come
    from elsewhere, and S may differ from T.

    Args:
        query: What each of T positions looks for.
        key: What each of S positions contains.
        value: What each of S positions hands over.
        mask: True where query t may see key s; "causal" lets t see 0 to t; None, everything.
        dropout: Probability of dropping a weight.

    Returns:
        The weighted averages. By a fused kernel that never stores the (T, S) weights, or by
        `attend_plainly` where that is faster; they are equal up to rounding.
    """
    if torch.is_grad_enabled() and key.shape[-2] <= _longest_plain(value):
        return attend_plainly(query, key, value, mask, dropout)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask if isinstance(mask, Tensor) else None,
        is_causal=mask == "causal",
        dropout_p=dropout,
    )


def _longest_plain(value: Tensor) -> int:
    """Return up to how many keys plain products train faster than the fused kernel.

    Measured on two cores (docs/experiments.md): its backward pass on a CPU is four times as slow in
    bfloat16 at 64 keys, and still twice as slow at 512.
    """
    if value.device.type != "cpu":
        return 0
    return 512 if value.dtype == torch.bfloat16 else 128


@runtime_checkable
class Cache(Protocol):
    """What a layer of attention keeps of a text that it reads on (`charlm.models.cache`).

    Attributes:
        used: How many characters it holds.
    """

    used: int

    def add(
        self, key: Float[Tensor, "B H n D"], value: Float[Tensor, "B H n D"]
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"], Bool[Tensor, "n S"] | None]:
        """Keep n more keys and values; return all that are in view, and who sees which."""
        ...


class Head(nn.Module):
    """One head of causal self-attention, with its three projections spelled out.

    Args:
        n_embd: Channels that come in (C).
        head_size: Channels of a query, a key and a value (D).
    """

    def __init__(self, n_embd: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)

    def forward(
        self, x: Float[Tensor, "B T C"], past: Cache | None = None
    ) -> Float[Tensor, "B T D"]:
        """Let each position gather from those up to it, those that were read before included."""
        query, key, value = (f(x).unsqueeze(1) for f in (self.query, self.key, self.value))
        mask: Mask = "causal"
        if past is not None:
            key, value, mask = past.add(key, value)
        return attend(query, key, value, mask).squeeze(1)


class MultiHeadAttention(nn.Module):
    """Many heads at once: one projection makes all queries, keys and values.

    Each head works in D = C / H channels and can look for something of its own; the last
    projection mixes what they found.

    Args:
        n_embd: Channels (C).
        n_head: Heads (H), a divisor of C.
        dropout: Probability of dropping a weight in training.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.projection = nn.Linear(n_embd, n_embd, bias=False)

    def forward(
        self, x: Float[Tensor, "B T C"], past: Cache | None = None
    ) -> Float[Tensor, "B T C"]:
        """Let each position gather, in every head, from those up to it, read before or now."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, H, D)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        (query, key), value = self.prepare(qkv[:2], past), qkv[2]
        mask: Mask = "causal"
        if past is not None:
            key, value, mask = past.add(key, value)
        dropout = self.dropout if self.training else 0.0
        gathered = attend(query, key, value, mask, dropout)
        return self.projection(gathered.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]

    def prepare(
        self, query_key: Float[Tensor, "2 B H T D"], past: Cache | None
    ) -> Float[Tensor, "2 B H T D"]:
        """Return queries and keys as they are; the modern style normalises and turns them."""
        return query_key


class AttentiveModel(LanguageModel):
    """A model that reads on without reading again what is in view.

    How is told after the lessons, in `charlm.models.cache`.

    Attributes:
        depth: How many layers of attention it has.
    """

    depth: int

    def start(self, batch_size: int) -> Any:
        """Return the state of `batch_size` texts of which nothing has been read."""
        from charlm.models.cache import HalvedView

        return HalvedView(self, super().start(batch_size))

    def go_on(self, idx: Int[Tensor, "B n"], state: Any) -> tuple[Float[Tensor, "B n V"], Any]:
        """Read n more characters of each text."""
        return state.go_on(self, idx), state

    def repeat(self, state: Any, count: int) -> Any:
        """Return the state of `count` texts that all go on from one."""
        return state.repeat(count)


class OneLayerModel(AttentiveModel):
    """What one layer of attention finds joins the character's own embedding.

    Args:
        vocab_size: Number of distinct characters (V).
        block_size: Longest context, in characters.
        attention: The layer, of n_embd channels.
        n_embd: Channels of an embedding (C).
        generator: What draws the first weights; None: PyTorch's default generator.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        attention: nn.Module,
        n_embd: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.depth = 1
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.attention = attention
        self.head = nn.Linear(n_embd, vocab_size)
        nn.init.normal_(self.token_embedding.weight, generator=generator)
        nn.init.normal_(self.position_embedding.weight, std=0.1, generator=generator)
        for projection in self.attention.parameters():
            std = 1 / math.sqrt(n_embd)
            nn.init.normal_(projection, std=std, generator=generator)
        nn.init.zeros_(self.head.weight)  # so the first loss is ln V
        nn.init.zeros_(self.head.bias)

    def forward(
        self, idx: Int[Tensor, "B T"], past: Sequence[Cache] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Return logits from each character and what attention gathered for it."""
        self.check_length(idx)
        first = past[0].used if past else 0
        positions = torch.arange(first, first + idx.shape[1], device=idx.device)
        # Attention alone sees a bag of characters; the position's embedding gives them an order.
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C)
        x = x + self.attention(x, past[0] if past else None)
        return self.head(x)  # type: ignore[no-any-return]


class AttentionModel(OneLayerModel):
    """Lesson 3: one head of attention.

    Args:
        vocab_size: Number of distinct characters (V).
        block_size: Longest context, in characters.
        n_embd: Channels of an embedding (C) and of the head.
        generator: What draws the first weights; None: PyTorch's default generator.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_embd: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size, Head(n_embd, n_embd), n_embd, generator)


class MultiHeadModel(OneLayerModel):
    """Lesson 4: many heads.

    Args:
        vocab_size: Number of distinct characters (V).
        block_size: Longest context, in characters.
        n_embd: Channels of an embedding (C).
        n_head: Heads (H), a divisor of C.
        generator: What draws the first weights; None: PyTorch's default generator.
    """

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
        super().__init__(vocab_size, block_size, attention, n_embd, generator)
