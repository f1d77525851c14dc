"""Small models whose context can be seen in what they predict, and the slow way to score."""

import numpy as np
import torch

from charlm.models import LanguageModel


class Window(LanguageModel):
    """A model whose every prediction depends on every character it is shown, and on their order."""

    def __init__(self, vocab_size=7, block_size=12):
        super().__init__(vocab_size, block_size)
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("table", torch.randn(vocab_size, vocab_size, generator=generator))
        self.shown = []

    @property
    def device(self):
        return self.table.device

    def forward(self, idx):
        self.shown += idx.tolist()
        x = self.table[idx]  # (B, T, V)
        read = torch.zeros(len(idx), self.vocab_size)
        logits = []
        for t in range(idx.shape[1]):
            read = 0.9 * read + x[:, t]
            logits.append(read)
        return torch.stack(logits, dim=1)


class Remembers(LanguageModel):
    """A model that looks back on a fixed number of characters, however many it is shown."""

    any_length = True

    def __init__(self, memory, vocab_size=7):
        super().__init__(vocab_size, block_size=5)
        self.memory = memory
        generator = torch.Generator().manual_seed(1)
        self.register_buffer(
            "table", torch.randn(memory, vocab_size, vocab_size, generator=generator)
        )

    @property
    def device(self):
        return self.table.device

    def forward(self, idx):
        logits = torch.zeros(*idx.shape, self.vocab_size)
        for back in range(min(self.memory, idx.shape[1])):
            logits[:, back:] += self.table[back][idx[:, : idx.shape[1] - back]]
        return logits


def one_by_one(model, text, begins):
    """Score the slow way, one prediction at a time; target i is shown the text from begins(i)."""
    nats = []
    for i in range(1, len(text)):
        idx = torch.from_numpy(text[begins(i) : i].astype(np.int64))[None]
        nats.append(-model(idx)[0, -1].log_softmax(dim=-1)[text[i]].item())
    return np.array(nats)
