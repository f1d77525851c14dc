"""The learning-rate range test: raise the rate with every update and watch the loss.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3. Too low a rate learns
nothing, a good one learns fastest, too high a one diverges: the curve of the loss is flat, falls and
rises. The rate grows by a constant factor, as in fastai (Howard and Gugger), to try all magnitudes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from charlm.errors import NonFiniteError
from charlm.runs.records import SkipRecord
from charlm.training.gradients import GradientLearner

SMOOTHING = 0.9  # of the running mean: the loss of single batches is noisy
DIVERGED = 1.3  # times the lowest loss: it will not fall again
# The rate with the lowest loss is almost too high; a tenth of it is safe (Howard and Gugger), and
# within a factor of 3 of the presets' rates, which were found by whole runs (docs/experiments.md).
BELOW_LOWEST = 10
LEARNT = 0.99  # times the first loss: a run that stays above it learnt nothing


@dataclass(frozen=True)
class Tried:
    """One update of the test."""

    rate: float
    loss_nats: float  # of its batch, before the update
    smooth_nats: float  # exponential moving average of the losses


def climb(
    learner: GradientLearner,
    low: float,
    high: float,
    steps: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Tried]:
    """Train at rates from `low` to `high`, in at least 2 steps, until the loss has diverged.

    The learner is before its first step; `should_stop` is called after every update.
    """
    growth: float = (high / low) ** (1 / (steps - 1))
    mean, lowest = 0.0, math.inf
    for i in range(steps):
        rate = low * growth**i
        try:
            record = learner.update(rate)
        except NonFiniteError:
            return
        if isinstance(record, SkipRecord):
            return
        mean = SMOOTHING * mean + (1 - SMOOTHING) * record.loss_nats
        smooth = mean / (1 - SMOOTHING ** (i + 1))  # corrects the mean, which started at zero
        yield Tried(rate, record.loss_nats, smooth)
        lowest = min(lowest, smooth)
        if smooth > DIVERGED * lowest or should_stop():
            return


def lowest(tried: list[Tried]) -> Tried:
    """Return the update at which the smoothed loss was lowest."""
    return min(tried, key=lambda one: one.smooth_nats)


def suggestion(tried: list[Tried]) -> float | None:
    """Return a tenth of the rate of the lowest loss, to one digit; None if the loss never fell."""
    best = lowest(tried)
    learnt = best.smooth_nats <= LEARNT * tried[0].smooth_nats
    return float(f"{best.rate / BELOW_LOWEST:.0e}") if learnt else None


def as_dict(tried: list[Tried]) -> dict[str, Any]:
    """Return the curve and the suggestion for JSON."""
    return {
        "learning_rates": [one.rate for one in tried],
        "loss_nats": [one.loss_nats for one in tried],
        "smooth_nats": [one.smooth_nats for one in tried],
        "lowest_at": lowest(tried).rate,
        "suggestion": suggestion(tried),
    }
