"""From logits to one character, in small pure steps. Each works on rows: (B, V), in NumPy.

    logits -> repetition penalty -> allowed characters -> temperature
           -> top-k -> top-p -> min-p -> typical -> probabilities -> draw

For rows of about a hundred numbers NumPy is faster than torch, whose calls cost more.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

LEAST = -1e300  # least log-probability after a penalty: finite, so that one character is left


@dataclass(frozen=True)
class Settings:
    """How characters are chosen; None leaves a filter out."""

    temperature: float = 1.0  # divides the logits; below 1 sharpens, 0 is greedy
    top_k: int | None = None  # draw only from the k most likely characters, at least 1
    top_p: float | None = None  # only from the most likely with this total probability, in (0, 1]
    min_p: float | None = None  # only from those this fraction as likely as the best, in (0, 1]
    # Only from those closest to the expected surprisal with this total probability, in (0, 1].
    typical_p: float | None = None
    repetition_penalty: float = 1.0  # multiplies the log-probability of recent characters; 1: none
    allowed: Bool[ndarray, "V"] | None = None  # which may be drawn, at least one; None: all
    boundary: int | None = None  # the id that ends a record, which has at least one character

    @property
    def greedy(self) -> bool:
        """Whether the most likely character is always taken, so that every seed gives the same text."""
        return self.temperature == 0 or self.top_k == 1


def next_probabilities(
    logits: Float[ndarray, "B V"],
    settings: Settings,
    repeated: Bool[ndarray, "B V"] | None = None,
) -> Float[ndarray, "B V"]:
    """Return the distribution that the next character is drawn from, in float64.

    `repeated` says which characters are recent, for the repetition penalty.
    """
    logits = logits.astype(np.float64)
    if settings.repetition_penalty != 1 and repeated is not None:
        logits = penalize_repetition(logits, repeated, settings.repetition_penalty)
    if settings.allowed is not None:
        logits = keep_allowed(logits, settings.allowed)
    if settings.temperature == 0:
        return softmax(keep_top_k(logits, 1))
    if settings.temperature != 1:
        # With the largest logit at 0, a small temperature cannot overflow to plus infinity.
        with np.errstate(over="ignore"):  # minus infinity: never drawn
            logits = below_largest(logits) / settings.temperature
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p is not None:
        logits = keep_top_p(logits, settings.top_p)
    if settings.min_p is not None:
        logits = keep_min_p(logits, settings.min_p)
    if settings.typical_p is not None:
        logits = keep_typical(logits, settings.typical_p)
    return softmax(logits)


def below_largest(logits: Float[ndarray, "B V"]) -> Float[ndarray, "B V"]:
    """Return the same distribution with a largest logit of 0: its exponentials cannot overflow."""
    return logits - np.maximum.reduce(logits, axis=-1, keepdims=True)


def log_softmax(logits: Float[ndarray, "B V"]) -> Float[ndarray, "B V"]:
    """Return log-probabilities, in nats."""
    logits = below_largest(logits)
    return logits - np.log(np.add.reduce(np.exp(logits), axis=-1, keepdims=True))


def softmax(logits: Float[ndarray, "B V"]) -> Float[ndarray, "B V"]:
    """Return probabilities."""
    p = np.exp(below_largest(logits))
    return p / np.add.reduce(p, axis=-1, keepdims=True)  # type: ignore[no-any-return]


def penalize_repetition(
    logits: Float[ndarray, "B V"], repeated: Bool[ndarray, "B V"], penalty: float
) -> Float[ndarray, "B V"]:
    """Multiply the log-probability of each repeated character by `penalty`.

    Keskar et al. 2019, "CTRL", section 4.1, divide logits. But the sign of a logit is arbitrary; a
    log-probability is never above 0, so a penalty above 1 always makes a character less likely.
    """
    log_p = log_softmax(logits)
    with np.errstate(over="ignore"):  # bounded in the next line
        return np.where(repeated, np.maximum(log_p * penalty, LEAST), log_p)


def keep_allowed(
    logits: Float[ndarray, "B V"], allowed: Bool[ndarray, "V"]
) -> Float[ndarray, "B V"]:
    """Rule out every character that is not allowed."""
    return np.where(allowed, logits, -math.inf)


def keep_top_k(logits: Float[ndarray, "B V"], k: int) -> Float[ndarray, "B V"]:
    """Rule out all but the k most likely characters of each row; exactly k, also with ties."""
    if k >= logits.shape[-1]:
        return logits
    order = np.argsort(-logits, axis=-1, kind="stable")
    return _keep_first(logits, order, np.full(len(logits), k))


def keep_top_p(logits: Float[ndarray, "B V"], p: float) -> Float[ndarray, "B V"]:
    """Rule out all but the smallest set of most likely characters with total probability p.

    Nucleus sampling: Holtzman et al. 2020, "The curious case of neural text degeneration", 3.1.
    """
    order = np.argsort(-logits, axis=-1, kind="stable")
    return _keep_first(logits, order, _fewest(softmax(logits), order, p))


def keep_min_p(logits: Float[ndarray, "B V"], p: float) -> Float[ndarray, "B V"]:
    """Rule out every character less than p times as likely as the most likely.

    Nguyen et al. 2024, "Turning up the heat: min-p sampling", section 3.
    """
    return np.where(logits >= logits.max(axis=-1, keepdims=True) + math.log(p), logits, -math.inf)


def keep_typical(logits: Float[ndarray, "B V"], p: float) -> Float[ndarray, "B V"]:
    """Rule out all but the smallest set of typical characters with total probability p.

    Typical characters are those whose surprisal is closest to the entropy: Meister et al. 2023,
    "Locally typical sampling", section 4.
    """
    log_p = log_softmax(logits)
    probabilities = np.exp(log_p)
    possible = probabilities > 0
    surprise = np.where(possible, -log_p, 0.0)
    entropy = (probabilities * surprise).sum(axis=-1, keepdims=True)
    off = np.where(possible, np.abs(surprise - entropy), math.inf)
    order = np.argsort(off, axis=-1, kind="stable")
    return _keep_first(logits, order, _fewest(probabilities, order, p))


def _fewest(
    probabilities: Float[ndarray, "B V"], order: Int[ndarray, "B V"], p: float
) -> Int[ndarray, "B"]:
    """Return how many characters of each row, in this order, are needed to reach p > 0."""
    ordered = np.take_along_axis(probabilities, order, axis=-1)
    before = ordered.cumsum(axis=-1) - ordered  # of everything that comes earlier
    return (before < p).sum(axis=-1)  # type: ignore[no-any-return]


def _keep_first(
    logits: Float[ndarray, "B V"], order: Int[ndarray, "B V"], counts: Int[ndarray, "B"]
) -> Float[ndarray, "B V"]:
    """Rule out all but the first characters of each row, in this order."""
    ordered = np.take_along_axis(logits, order, axis=-1)
    ordered[np.arange(logits.shape[-1]) >= counts[:, None]] = -math.inf
    kept = np.empty_like(ordered)
    np.put_along_axis(kept, order, ordered, axis=-1)
    return kept


def draw(probabilities: Float[ndarray, "B V"], uniform: Float[ndarray, "B"]) -> Int[ndarray, "B"]:
    """Return, for each row, the character whose share of [0, 1) contains the row's number.

    Inverting the distribution function takes one random number per row, so a row's draw does not
    depend on the number of rows. Rows sum to 1 up to rounding.
    """
    ends = np.add.accumulate(probabilities, axis=-1)
    point = uniform[:, None] * ends[:, -1:]  # below the last end: at a possible character
    return (ends > point).argmax(axis=-1)  # type: ignore[no-any-return]
