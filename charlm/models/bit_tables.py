"""Tables of context mixing: probabilities and logits as integers, and histories of bits.

Everything is an integer, so that all machines compute the same bits. Units:

    a probability   1/65536, of a 1
    a logit         ln(p / (1 - p)) in 1/4096 nats, from -12 to 12
    a history       0 to 255: which bits were seen in one place; 0 for none

PAQ (M. Mahoney, "Adaptive weighing of context models for lossless data compression", 2005) introduced
mixing logits of bits and predicting by histories; these tables follow its ideas, not its numbers.
They are of few bytes, so that all of them stay in a processor's nearest cache.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
History = tuple[tuple[int, ...], int, int, int]  # the first bits; how many 0s and 1s; the last bit

UNIT = 4096  # of a logit, for each nat
TOP = 12 * UNIT
LIMIT = TOP - 1  # the largest logit
LEAST = 16  # the smallest probability, in 1/65536

ALL_BITS = 4  # a history of so few bits records each of them
# The largest count of the commoner bit that is distinguished, for each count of the rarer one.
MOST = (41, 40, 12, 6, 5, 5)


def _stretched() -> Array:
    """Return the logit of each probability p / 4096 + 1 / 8192, (4096,)."""
    p = (np.arange(4096) + 0.5) / 4096
    logit: Array = np.rint(np.log(p / (1 - p)) * UNIT).clip(-LIMIT, LIMIT)
    return logit.astype(np.int32)


def _squashed() -> Array:
    """Return the probability of each logit -TOP + 16 i + 8, (TOP / 8,)."""
    logit = np.arange(-TOP, TOP, 16) + 8
    p: Array = np.rint(65536 / (1 + np.exp(-logit / UNIT))).clip(LEAST, 65536 - LEAST)
    return p.astype(np.int32)


def _after(history: History, bit: int) -> History:
    """Return a history with one more bit."""
    bits, *counts, _ = history
    counts[bit] += 1
    if sum(counts) <= ALL_BITS:
        return (*bits, bit), counts[0], counts[1], bit
    # A bit that contradicts many others lowers their count, since a text changes.
    other = counts[1 - bit]
    if other > 2:
        counts[1 - bit] = min(other - 1, other.bit_length() + 1)
    while not _is_known(counts):
        fewer = counts.copy()
        fewer[bit] -= 1
        if counts[bit] > 1 and _is_known(fewer):
            counts = fewer
        else:
            counts[1 - bit if counts[1 - bit] else bit] -= 1
    return (), counts[0], counts[1], bit


def _is_known(counts: list[int]) -> bool:
    rarer, commoner = sorted(counts)
    return rarer < len(MOST) and commoner <= MOST[rarer]


def _histories() -> tuple[Array, Array]:
    """Return the history after each history and bit, (256, 2), and an initial probability of each, (256,)."""
    known: list[History] = [((), 0, 0, 0)]
    numbers = {known[0]: 0}
    after = np.zeros((256, 2), np.uint8)
    for i, history in enumerate(known):  # which grows meanwhile
        for bit in (0, 1):
            found = _after(history, bit)
            if found not in numbers:
                numbers[found] = len(known)
                known.append(found)
            after[i, bit] = numbers[found]
    guess = np.full(256, 1 << 15)
    for i, (_, zeros, ones, _) in enumerate(known):
        guess[i] = (10 * ones + 4) * 65535 // (10 * (zeros + ones) + 8)
    return after, guess


STRETCH, SQUASH = _stretched(), _squashed()
AFTER, GUESS = _histories()
# How far the n-th observation moves a running mean towards it, in 1/65536: 1 / (n + 1.5).
RATE = np.array([2 * 65536 // (2 * n + 3) for n in range(1024)], np.int32)
