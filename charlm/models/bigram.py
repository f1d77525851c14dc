"""Lesson 1: one table that gives, for each character, the logits of the next.

Row i of a V x V table holds the logits of the character after i, so the embedding look-up *is* the
model. With enough training, softmax(row i) approaches the relative counts of what followed i in the
text. No model with one character of context can do better on that text.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.models.base import LanguageModel


class BigramModel(LanguageModel):
    """A table of next-character logits.

    Args:
        block_size: Characters in a training window; the model itself looks at the last one only.
        generator: Ignored: the table starts at zero.
    """

    any_length = True
    per_character: ClassVar = {"table.weight": (0, 1)}

    def __init__(
        self, vocab_size: int, block_size: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.memory = 1
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)  # every character equally likely: a loss of exactly ln V

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the table's row for each character."""
        return self.table(idx)  # type: ignore[no-any-return]
