"""Lesson 2: use the past in the simplest way: average it.

Multiply the embeddings by a lower-triangular matrix whose rows sum to 1. One product gives, at each
position, the mean of everything up to it, without looking ahead:

    [1   0   0  ]   [x0]   [x0              ]
    [1/2 1/2 0  ] @ [x1] = [(x0 + x1) / 2   ]
    [1/3 1/3 1/3]   [x2]   [(x0 + x1 + x2)/3]

The order of the characters is lost. Attention (lesson 3) is this same product with weights that
depend on the characters.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.models.base import LanguageModel


def averaging_matrix(size: int) -> Float[Tensor, "T T"]:
    """Return the matrix whose row t averages positions 0 to t."""
    ones = torch.tril(torch.ones(size, size))
    return ones / ones.sum(dim=1, keepdim=True)


class AveragingModel(LanguageModel):
    """The character's own embedding next to the mean of the past, then one linear layer."""

    averaging: Tensor
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
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.head = nn.Linear(2 * n_embd, vocab_size)
        self.register_buffer("averaging", averaging_matrix(block_size), persistent=False)
        nn.init.normal_(self.token_embedding.weight, generator=generator)
        nn.init.zeros_(self.head.weight)  # so the first loss is ln V
        nn.init.zeros_(self.head.bias)

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return logits from the last character and the average of all so far."""
        self.check_length(idx)
        time = idx.shape[1]
        x = self.token_embedding(idx)  # (B, T, C)
        mean = self.averaging[:time, :time] @ x  # (T, T) @ (B, T, C) -> (B, T, C)
        return self.head(torch.cat([x, mean], dim=-1))  # type: ignore[no-any-return]
