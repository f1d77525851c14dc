"""What a step has to do, whoever does it. Torch-free, from the configuration."""

import math
from dataclasses import dataclass

from charlm.config import Config, Part

FLOAT = 4  # bytes of a weight, a gradient, a moment
ROUNDS = 3  # of products, in which Muon orthogonalises a matrix (`charlm.training.muon`)


@dataclass(frozen=True)
class Work:
    """A training step of a model.

    Attributes:
        windows: In a batch.
        chars: In a window.
        flops: To train on a character: 6 for each weight that multiplies and 12 T C for each layer of
            attention (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, PaLM, appendix B).
        weights: Their number, N.
        in_blocks: How many of them are in blocks, which FSDP2 gathers one after another.
        blocks: How many blocks there are; 0: the model is not made of blocks.
        hidden: How many of them Muon updates; 0: AdamW updates all.
        muon_flops: To orthogonalise them once.
        table: Weights of which a step on a CPU has gradients only for the rows that it looked up.
        width: Of a row of that table.
        lookups: Rows that a character looks up.
        kept: Bytes that a window leaves in memory for the backward pass.
        constants: Bytes of buffers.
    """

    windows: int
    chars: int
    flops: int
    weights: int
    in_blocks: int
    blocks: int
    hidden: int
    muon_flops: int
    table: int
    width: int
    lookups: int
    kept: int
    constants: int

    @property
    def batch_chars(self) -> int:
        """Characters in a batch."""
        return self.windows * self.chars

    @property
    def dense(self) -> int:
        """Weights whose gradient is dense on a CPU."""
        return self.weights - self.table

    def rows(self, windows: float) -> float:
        """Return how many different rows of the table so many windows look up, about.

        Rows are chosen by a hash, so k look-ups of R rows meet R (1 - (1 - 1/R)^k) of them. Texts
        repeat themselves, so this is an upper estimate.
        """
        if not self.table:
            return 0.0
        count = self.table / self.width
        looked_up = windows * self.chars * self.lookups
        return count * (1 - math.pow(1 - 1 / count, looked_up))


def work_of(config: Config, vocab_size: int) -> Work:
    """Return the step of a model that is trained by gradients, with its own `train` section."""
    model, train = config.model, config.train
    parts = model.parts(vocab_size)
    muon = train.optimizer == "muon"
    hidden = [part for part in parts if part.hidden and muon]
    tables = [part for part in parts if part.looked_up]
    blocks = [part for part in parts if model.has_blocks and part.name.startswith("blocks.")]
    return Work(
        windows=train.batch_size,
        chars=model.block_size,
        flops=model.flops_per_char(vocab_size),
        weights=sum(part.parameters for part in parts),
        in_blocks=sum(part.parameters for part in blocks),
        blocks=max((part.copies for part in blocks), default=0),
        hidden=sum(part.parameters for part in hidden),
        muon_flops=sum(map(_muon_flops, hidden)),
        table=sum(part.parameters for part in tables),
        width=max((part.shape[1] for part in tables), default=0),
        lookups=sum(part.looked_up for part in tables),
        kept=FLOAT
        * model.block_size
        * model.activation_floats(vocab_size, train.gradients == "by_hand"),
        constants=model.buffer_bytes(),
    )


def _muon_flops(part: Part) -> int:
    """Return the operations of three products in each round, of matrices (R, C) with R <= C.

    x x^T takes 2 R^2 C, its square 2 R^3, and the product with x again 2 R^2 C.
    """
    r, c = sorted(part.shape)
    return part.copies * ROUNDS * (4 * r * r * c + 2 * r**3)
