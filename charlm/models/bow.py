"""Beside lesson 2: average the past, then look at the average with a hidden layer.

    x = character + position              each (C,), learned
    x = x + mean of x up to here          the triangular product of lesson 2
    x = x + contract(tanh(expand(x)))     what the average says, seen by H channels

It sees a bag of characters: the mean of characters and positions is the mean of the characters plus that
of the positions, so their order is lost. This is makemore's model `bow`.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.models.averaging import averaging_matrix
from charlm.models.base import LanguageModel


class BowModel(LanguageModel):
    """The mean of the past, a hidden layer of `n_hidden` channels, and a head."""

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
        n_hidden: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.expand = nn.Linear(n_embd, n_hidden)
        self.contract = nn.Linear(n_hidden, n_embd)
        self.head = nn.Linear(n_embd, vocab_size)
        self.register_buffer("averaging", averaging_matrix(block_size), persistent=False)
        nn.init.normal_(self.token_embedding.weight, generator=generator)
        nn.init.normal_(self.position_embedding.weight, std=0.1, generator=generator)
        for layer in (self.expand, self.contract):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.head.weight)  # so the first loss is ln V
        nn.init.zeros_(self.head.bias)

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return logits from the last character and the average of all so far."""
        self.check_length(idx)
        time = idx.shape[1]
        positions = torch.arange(time, device=idx.device)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C)
        x = x + self.averaging[:time, :time] @ x  # (T, T) @ (B, T, C) -> (B, T, C)
        x = x + self.contract(torch.tanh(self.expand(x)))
        return self.head(x)  # type: ignore[no-any-return]
