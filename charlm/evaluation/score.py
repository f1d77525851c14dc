"""What a text costs a model, and how sure that figure is.

A mean over a text is one draw: other passages would give another mean. How far it would move cannot
be read off the spread of single characters, since neighbours are hard or easy together (a name, a
quotation, a song) and a million characters then hold far fewer than a million independent pieces of
news. The block bootstrap keeps neighbours together: cut the text into blocks of consecutive
characters, draw as many blocks as there are with replacement, take the mean; do that often; the
middle 95 % of those means is the interval.

What it does not cover: a text of another kind than any passage here, and another seed in training.
Nor is it the measure for two models on one text: both meet the same hard passages, so that their
difference is far surer than either figure.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# A block must outlast the correlation, and in prose that reaches as far as one looks: a 7-gram on the
# validation part of Tiny Shakespeare has a standard error of 0.005 nats by single characters, 0.011
# by blocks of 300, 0.017 by 1,000 and 0.022 by 2,000. So blocks are as long as
# leaves enough of them: 50 give the width to within 1 / sqrt(2 * 50), a tenth.
BLOCK_CHARS = 1_000  # at least
MOST_BLOCKS = 50
# Percentiles of few blocks are too narrow: with 20, what is called 95 % is some 93 %.
FEWEST_BLOCKS = 20
RESAMPLES = 2_000  # the ends of the interval then lie at the 50th mean from either end
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Interval:
    """Where the mean over as much other text of this kind would lie, 95 times in 100.

    Args:
        low: In nats a character.
        high: In nats a character.
        blocks: How many blocks were drawn from.
        block_chars: Characters in each; the last may be shorter.
    """

    low: float
    high: float
    blocks: int
    block_chars: int


@dataclass(frozen=True)
class Score:
    """How well a text was predicted.

    Args:
        chars: Characters scored. The first of a text has nothing before it and is not among them.
        loss_nats: Mean cross-entropy of a character, in nats.
        bytes: How many bytes those characters take in UTF-8, where that was counted.
        interval: Of `loss_nats`; None if the text is too short for one, or it was not asked for.
        unknown: How many of `chars` the model has no id for (see `unknown`).
        by_position: Mean nats of the characters with 1, 2, ... characters of context, if asked for.
    """

    chars: int
    loss_nats: float
    bytes: int | None = None
    interval: Interval | None = None
    unknown: int = 0
    by_position: tuple[float, ...] | None = None

    @property
    def bits_per_char(self) -> float:
        """The same in bits: what an ideal coder with this model would spend on a character."""
        return self.loss_nats / math.log(2)

    @property
    def bits_per_byte(self) -> float | None:
        """The bits of the whole text over its bytes: comparable whatever the unit of the model."""
        return None if self.bytes is None else self.bits_per_char * self.chars / self.bytes

    @property
    def perplexity(self) -> float:
        """How many equally likely characters would be as hard to guess among."""
        return math.exp(self.loss_nats) if self.loss_nats < 700 else math.inf


class Tally:
    """Adds up the surprisals of consecutive characters, block by block.

    A sum for each of at most 50 blocks is all it keeps, however long the text.

    Args:
        chars: How many characters there will be.
    """

    def __init__(self, chars: int) -> None:
        self.chars = chars
        self.block_chars = max(BLOCK_CHARS, math.ceil(chars / MOST_BLOCKS))
        self.sums = np.zeros(math.ceil(chars / self.block_chars))
        self._added = 0

    def add(self, nats: Floats) -> None:
        """Add the next characters of the text, (N,)."""
        first = self._added // self.block_chars
        block = np.arange(self._added, self._added + len(nats)) // self.block_chars - first
        sums = np.bincount(block, weights=nats)
        self.sums[first : first + len(sums)] += sums
        self._added += len(nats)

    def mean(self) -> float:
        """Return the mean of a character, in nats."""
        return float(self.sums.sum()) / self.chars

    def interval(self) -> Interval | None:
        """Return the 95 % interval of the mean; None for fewer than 20 blocks."""
        counts = np.full(len(self.sums), self.block_chars)
        counts[-1] = self.chars - counts[:-1].sum()
        ends = block_bootstrap(self.sums, counts)
        return None if ends is None else Interval(*ends, len(self.sums), self.block_chars)


def block_bootstrap(sums: Floats, counts: npt.NDArray[Any]) -> tuple[float, float] | None:
    """Return a 95 % percentile interval of a mean whose terms are correlated with their neighbours.

    Blocks do not overlap (Carlstein 1986; Künsch 1989 lets them), so that one sum a block is
    enough. Percentiles as in Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
    section 13.3; blocks in time series, section 8.6. The drawing is seeded and its stream of
    random words is promised not to change between NumPy's versions.

    Args:
        sums: Of the terms in each block, (b,).
        counts: How many terms each block has, (b,).

    Returns:
        Both ends; None for fewer than 20 blocks, or if a sum is not finite.
    """
    blocks = len(sums)
    if blocks < FEWEST_BLOCKS or not np.isfinite(sums).all():
        return None
    words = np.random.Philox(key=SEED).random_raw(RESAMPLES * blocks)
    drawn = (words % np.uint64(blocks)).astype(np.intp).reshape(RESAMPLES, blocks)
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
