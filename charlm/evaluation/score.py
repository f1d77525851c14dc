"""The loss of a model on a text, in several units, and its confidence interval.

The mean loss over a text is one sample: other passages would give another mean. The variance of
single characters understates the difference, because neighbouring characters are correlated: they
are hard or easy together (a name, a quotation, a song), and a million characters are far fewer than
a million independent samples. The block bootstrap keeps neighbours together: cut the text into
blocks of consecutive characters, draw as many blocks with replacement, and take their mean. Repeat;
the middle 95 % of the means is the interval.

The interval does not cover texts of another kind, or other seeds in training. It overstates the
uncertainty of the difference between two models on one text: both meet the same hard passages, so
the difference varies much less than either loss.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# A block must be longer than the correlation, which has no end in prose: a 7-gram model on the
# validation part of Tiny Shakespeare has a standard error of 0.005 nats from single characters, 0.011
# from blocks of 300, 0.017 from 1,000 and 0.022 from 2,000. So blocks are as long as possible while
# 50 remain, which estimate the width to within 1 / sqrt(2 * 50), a tenth.
BLOCK_CHARS = 1_000  # at least
MOST_BLOCKS = 50
# Few blocks give too narrow an interval: with 20, a nominal 95 % covers about 93 %.
FEWEST_BLOCKS = 20
RESAMPLES = 2_000  # the ends of the interval then lie at the 50th mean from either end
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Interval:
    """The range, in nats, for the mean loss of an equal amount of similar text, 95 times in 100."""

    low: float
    high: float
    blocks: int  # how many the text was cut into
    block_chars: int  # characters in each; the last may be shorter


@dataclass(frozen=True)
class Score:
    """How well a text was predicted."""

    chars: int  # scored: all but the first of the text, which has no context
    loss_nats: float  # mean cross-entropy of a character, in nats
    bytes: int | None = None  # their length in UTF-8, if it was counted
    interval: Interval | None = None  # of `loss_nats`, if requested and the text is long enough
    unknown: int = 0  # how many of `chars` the model has no id for (see `unknown`)
    by_position: tuple[float, ...] | None = None  # mean nats after 1, 2, ... characters of context
    records: int | None = None  # how many records these are; `chars` counts the end of each
    escapes: int = 0  # how many of `chars` are rare: see `charlm.text.escapes`

    @property
    def bits_per_symbol(self) -> float:
        """The loss in bits: what an ideal coder with this model needs for a character (or byte)."""
        return self.loss_nats / math.log(2)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits of the whole text over its bytes: comparable between models of characters and bytes."""
        return None if self.bytes is None else self.bits_per_symbol * self.chars / self.bytes

    @property
    def nats_per_record(self) -> float | None:
        """The loss of a whole record, its end included, in nats."""
        return None if self.records is None else self.loss_nats * self.chars / self.records

    @property
    def perplexity(self) -> float:
        """The number of equally likely characters that would give the same loss."""
        return math.exp(self.loss_nats) if self.loss_nats < 700 else math.inf

    def in_units(self, unit: str) -> dict[str, float | None]:
        """Return the loss under the names of its units.

        `unit` is that of the text, `chars` or `bytes`. Of bytes, the number of characters is not
        known; of characters, that of bytes may not have been counted.
        """
        of_bytes = unit == "bytes"
        return {
            "loss_nats": self.loss_nats,
            "bits_per_char": None if of_bytes else self.bits_per_symbol,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_symbol if of_bytes else self.bits_per_byte,
        }


class Tally:
    """Adds up the surprisals of `chars` consecutive characters in at most 50 blocks.

    `records` is how many records these are, which do not depend on each other; None: this is one text.
    """

    def __init__(self, chars: int, records: int | None = None) -> None:
        self.chars = chars
        shortest = BLOCK_CHARS if records is None else math.ceil(chars / max(1, records))
        self.block_chars = max(shortest, math.ceil(chars / MOST_BLOCKS))
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

    Blocks do not overlap (Carlstein 1986; Künsch 1989 lets them overlap), so the sum and the count
    of each block's terms are enough, (b,). None for fewer than 20 blocks, or a sum that is not
    finite. Percentiles: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3;
    blocks in time series, section 8.6. The draws are seeded, from a stream of random words that
    stays the same in all versions of NumPy.
    """
    blocks = len(sums)
    if blocks < FEWEST_BLOCKS or not np.isfinite(sums).all():
        return None
    words = np.random.Philox(key=SEED).random_raw(RESAMPLES * blocks)
    drawn = (words % np.uint64(blocks)).astype(np.intp).reshape(RESAMPLES, blocks)
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
