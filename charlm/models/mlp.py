"""After the bigram: predict from the last n characters, with one hidden layer.

A table of n characters would have V^n rows, most of which no text fills. Here each character has an
embedding, the embeddings of the last n lie side by side, and a hidden layer reads them all. Contexts
that were never seen get predictions from similar ones. Bengio et al. 2003, "A neural probabilistic
language model", without the direct connections from embeddings to logits.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.models.base import LanguageModel


class MLPModel(LanguageModel):
    """A hidden layer over the embeddings of the last `context` characters.

    Places before the text have an embedding of their own, `before`. `dropout` is the probability of
    dropping a channel of the hidden layer in training.
    """

    any_length = True
    per_character: ClassVar = {
        "token_embedding.weight": (0,),
        "head.weight": (0,),
        "head.bias": (0,),
    }

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        context: int,
        n_embd: int,
        n_hidden: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.memory = context
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.before = nn.Parameter(torch.empty(n_embd))
        self.hidden = nn.Linear(context * n_embd, n_hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(n_hidden, vocab_size)
        for embedding in (self.token_embedding.weight, self.before):
            nn.init.normal_(embedding, generator=generator)
        draw_linear(self.hidden, generator)
        draw_head(self.head, generator)

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position."""
        x = side_by_side(self.token_embedding(idx), self.before, self.context)  # (B, T, n C)
        x = torch.tanh(self.hidden(x))  # (B, T, H)
        return self.head(self.dropout(x))  # type: ignore[no-any-return]


def side_by_side(
    x: Float[Tensor, "B T C"], before: Float[Tensor, "C"], context: int
) -> Float[Tensor, "B T nC"]:
    """Put the last `context` vectors at each position side by side, the oldest first."""
    missing = before.expand(x.shape[0], context - 1, -1)  # (B, n - 1, C)
    x = torch.cat([missing, x], dim=1)  # (B, n - 1 + T, C)
    return x.unfold(1, context, 1).transpose(2, 3).flatten(2)  # windows: (B, T, C, n), turned


def draw_head(head: nn.Linear, generator: torch.Generator | None) -> None:
    """Draw small weights, so that the first loss is near ln V; zeros would let nothing below learn."""
    nn.init.normal_(head.weight, std=0.1 * head.in_features**-0.5, generator=generator)
    nn.init.zeros_(head.bias)


def draw_linear(layer: nn.Linear, generator: torch.Generator | None) -> None:
    """Draw weights that keep the variance of inputs of variance 1; biases begin at 0."""
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
