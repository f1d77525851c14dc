"""Models trained by gradients that go on learning from the text that they read.

After every N characters, one step of gradient descent is made on the predictions of these N. So the
model learns the names and turns of phrase of this text, which may come again: Krause et al. 2018,
"Dynamic evaluation of neural sequence models". As there (section 3), each step is scaled by a running
mean of the squared gradients. This is Adam without momentum, which would repeat steps for text that is
long past.

Windows of the training part can be mixed in, so that a model does not forget what it knew (Robins 1995,
"Catastrophic forgetting, rehearsal and pseudorehearsal").

A step depends only on the characters, not on the pieces in which they are read. Keys and values of
earlier characters are not computed again with the new weights, which would gain 0.001 nats.
"""

import math
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from torch.optim import Adam, Optimizer, SparseAdam

from charlm.config import AdaptConfig
from charlm.errors import NonFiniteError, Setting
from charlm.models.adaptive import AdaptiveReader, Unchanging
from charlm.models.base import LanguageModel
from charlm.models.loss import next_token_loss
from charlm.models.ngram_embedding import NGramEmbedding
from charlm.text.batches import batches_of
from charlm.text.rows import pieces_of, rows_of
from charlm.text.tokens import Ids

BETAS = (0.0, 0.999)  # no momentum; the mean of squares reaches back about 1,000 updates
OF_NGRAMS = 5.0  # times the learning rate: most n-grams have few updates
LONGEST = 256  # characters between two updates, unless the options say how many
REPLAYED = 0.3  # the share of the training part's windows in the loss
SEED = 0  # for the choice of these windows


class LearningReader(AdaptiveReader):
    """Reads one text with a copy of a model, whose weights it updates after every N characters.

    `trained_on` is the text whose windows are replayed, if any. `go_on` raises NonFiniteError if the
    loss becomes NaN or infinite.
    """

    learned = ("weights",)

    def __init__(
        self, model: LanguageModel, options: AdaptConfig, trained_on: Ids | None = None
    ) -> None:
        self.options = options
        self.every = options.every or min(model.block_size, LONGEST)
        self.replayed, self.steps = None, 0
        self.boundary = None if trained_on is None else trained_on.boundary
        # A text may be too short for a window.
        least = 0 if self.boundary is not None else model.block_size
        if options.replay and trained_on is not None and len(trained_on) > least:
            self.replayed = batches_of(trained_on, model.block_size, options.replay, SEED)
        self.model = deepcopy(model).eval()
        self.optimizers = optimizers_of(self.model, options.learning_rate)
        self.reader = Unchanging(self.model, self.boundary)
        self.read = np.empty(0, np.int64)  # the last characters, not learned from yet

    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters; learn from every N of them once the character after them is known."""
        log_p = []
        while len(ids):
            if len(self.read) == self.every:
                self._learn(np.append(self.read, ids[0]))
                self.read = self.read[:0]
            part, ids = np.split(ids, [self.every - len(self.read)])
            log_p.append(self.reader.go_on(part))
            self.read = np.append(self.read, part)
        return torch.cat(log_p)

    def fork(self) -> AdaptiveReader:
        """Return a reader with the weights as they are now."""
        return self.reader.fork()

    def first(self) -> Float[Tensor, "V"]:
        """Return equal probabilities."""
        return self.reader.first()

    @torch.enable_grad()
    def _learn(self, ids: Int[ndarray, "n"]) -> None:
        """Update the weights once, for the predictions of all characters but the first."""
        length, count = self.model.block_size, len(ids) - 1
        own = 1 - REPLAYED if self.replayed else 1.0
        begins = np.zeros(1, np.int64)
        if self.boundary is not None:
            begins = np.union1d(begins, np.flatnonzero(ids[:-1] == self.boundary))
        pieces = pieces_of(begins, np.append(begins[1:], count), length, length)
        total = sum(
            self._add_gradient(rows.x, rows.y, own / count)
            for rows in rows_of(ids, pieces, int(ids[0]))
        )
        if self.replayed:
            chars = self.replayed.chars(self.steps)
            for x, y in self.replayed.groups(self.steps):
                total += self._add_gradient(x, y, REPLAYED / chars)
        if not math.isfinite(total):
            where = Setting("adapt.learning_rate", self.options.learning_rate)
            raise NonFiniteError(where, "the loss became NaN or infinite while reading", "lower it")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.reader.single = None  # it may hold copies of the weights
        self.steps += 1

    def _add_gradient(self, x: Int[ndarray, "B T"], y: Int[ndarray, "B T"], weight: float) -> float:
        """Add the gradient of the loss of all predictions, each with a weight; return that loss."""
        device = self.model.device
        logits = self.model(torch.from_numpy(x).to(device)).float()
        loss = weight * next_token_loss(logits, torch.from_numpy(y).to(device), "sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()


def optimizers_of(model: LanguageModel, learning_rate: float) -> list[Optimizer]:
    """Return the optimizers of all weights of a model that is in evaluation mode.

    Only those rows of an n-gram table that were looked up are updated: to update the whole table would
    take half as long as everything else. MPS has no sparse gradients.
    """
    embeddings = [part for part in model.modules() if isinstance(part, NGramEmbedding)]
    sparse = model.device.type != "mps"
    for embedding in embeddings:
        embedding.sparse = sparse
    tables = [embedding.table.weight for embedding in embeddings]
    others = [p for p in model.parameters() if all(p is not table for table in tables)]
    optimizers: list[Optimizer] = [Adam(others, learning_rate, BETAS, fused=True)]
    if tables:
        kind = SparseAdam if sparse else Adam
        optimizers.append(kind(tables, OF_NGRAMS * learning_rate, BETAS))
    return optimizers
