"""Lesson 5: a GPT, in the style of GPT-2 as nanoGPT trains it.

Blocks of communication (attention) and computation (an MLP), each added to a residual path, so that
gradients reach the first layer undiminished. Learned positions, LayerNorm before each part, GELU,
no biases, and one matrix for both the embedding and the head. Radford et al. 2019, "Language models
are unsupervised multitask learners", section 2.3; the recipe is nanoGPT's.

Three options make it the model of other programs: `bias` adds a vector after each matrix and norm,
`gelu: tanh` is an older form of GELU, and without `tied` the head has a matrix of its own.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.models.attention import AttentiveModel, Cache, MultiHeadAttention

Gelu = Literal["exact", "tanh"]
# "tanh" is the approximation that GPT-2's own code uses: Hendrycks and Gimpel 2016, section 2.
GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": F.gelu,
    "tanh": partial(F.gelu, approximate="tanh"),
}


class MLP(nn.Module):
    """Process each position by itself: expand four times, GELU, contract."""

    def __init__(
        self, n_embd: int, activation: Callable[[Tensor], Tensor] = F.gelu, bias: bool = False
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.activation = activation
        self.contract = nn.Linear(4 * n_embd, n_embd, bias=bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Process each position by itself."""
        return self.contract(self.activation(self.expand(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then an MLP; the input of each is normalised, its output added back."""

    def __init__(
        self, n_embd: int, n_head: int, dropout: float, bias: bool = False, gelu: Gelu = "exact"
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(n_embd, bias=bias)
        self.attention = MultiHeadAttention(n_embd, n_head, dropout, bias)
        self.mlp_norm = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = MLP(n_embd, GELUS[gelu], bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B T C"], past: Cache | None = None
    ) -> Float[Tensor, "B T C"]:
        """Apply attention, then the MLP."""
        x = x + self.dropout(self.attention(self.attention_norm(x), past))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


class GPT2(AttentiveModel):
    """A stack of `n_layer` blocks between an embedding and the same matrix as a head.

    Positions beyond `block_size` have no embedding. `n_head` divides `n_embd`. `dropout` is the
    probability of dropping an activation in training. For `bias`, `gelu` and `tied` see above.
    """

    per_character: ClassVar = {"token_embedding.weight": (0,)}  # the head is the same matrix

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float = 0.0,
        bias: bool = False,
        gelu: Gelu = "exact",
        tied: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.bias, self.gelu = bias, gelu
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.depth = n_layer
        self.blocks = nn.ModuleList(
            Block(n_embd, n_head, dropout, bias, gelu) for _ in range(n_layer)
        )
        self.final_norm = nn.LayerNorm(n_embd, bias=bias)
        self.head = None if tied else nn.Linear(n_embd, vocab_size, bias=False)
        if not tied:
            rows = {**self.per_character, "head.weight": (0,)}
            self.per_character = rows  # type: ignore[misc]  # of this one only
        self._draw_weights(generator)

    def forward(
        self, idx: Int[Tensor, "B T"], past: Sequence[Cache] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position."""
        self.check_length(idx)
        first = past[0].used if past else 0
        positions = torch.arange(first, first + idx.shape[1], device=idx.device)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C)
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(x, past[i] if past else None)
        x = self.final_norm(x)
        if self.head is not None:
            return self.head(x)  # type: ignore[no-any-return]
        # Tied weights (Press and Wolf 2017): a character's logit is how similar x is to it.
        return F.linear(x, self.token_embedding.weight)  # (B, T, V)

    def _draw_weights(self, generator: torch.Generator | None) -> None:
        """Draw from N(0, 0.02); scale the last layer of each residual branch by 1/sqrt(2 n_layer).

        Each block adds two branches to the residual path. The scale keeps the variance there from
        growing with depth (GPT-2, section 2.3).
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:  # LayerNorm's gains, and biases
                nn.init.constant_(parameter, float(name.endswith("norm.weight")))
                continue
            into_residual = name.endswith(("projection.weight", "contract.weight"))
            std = 0.02 / math.sqrt(2 * len(self.blocks)) if into_residual else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)
