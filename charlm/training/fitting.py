"""Which experts of a mixture are joined, and with what weights.

A join is kept only if it predicts text better that its weights were not fitted on; otherwise the best
expert has weight 1 and all others 0, at temperature 1. So a mixture is never worse than its best
expert there, however badly another one was trained. A gate is kept only if it predicts that text
better than the fixed weights do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.errors import number_of
from charlm.models import next_token_loss
from charlm.models.gate import Gate, fit_gate
from charlm.models.mixture import finite_log_p, fit_weights, join

# Fitting n weights to N characters costs n / 2N nats on other text (Akaike 1974), and the characters
# of a text depend on each other: with 100 for each weight this stays near 0.01.
CHARS_A_WEIGHT = 100
MAX_NUMBERS = 1 << 24  # of log-probabilities, in the trial on text that is not fitted

Logits = Float[Tensor, "E N V"]
Targets = Int[Tensor, "N"]


@dataclass(frozen=True)
class Joined:
    """Weights of all experts and a temperature; a gate, if it helps; and a remark on what was left out."""

    weights: Float[Tensor, "E"]
    temperature: Float[Tensor, ""]
    gate: Gate | None = None
    remark: str = ""

    def of(self, logits: Logits, combine: str) -> Float[Tensor, "N V"]:
        """Return the logits of the mixture."""
        return join(logits, self.weights, self.temperature, combine, self.gate)


@dataclass(frozen=True)
class Outcome:
    """A join, its loss and the losses of the experts on the slice, and the time that scoring takes."""

    joined: Joined
    loss_nats: float
    alone_nats: list[float]
    chars: int  # over which the losses are averaged
    seconds: float  # to predict and join one character


def fit_join(
    logits: Logits,
    targets: Targets,
    names: Sequence[str],
    combine: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> Joined:
    """Choose the experts to join and fit their weights.

    Args:
        logits: Of each expert at each position, in the order of the text.
        targets: The characters that follow.
        names: The experts' names.
        combine: `log-linear`, `gated` or `linear`.
        should_stop: Called often; if it returns true, Stopped is raised.
    """
    best = _best(logits, targets)
    most = min(len(names), max(1, len(targets) // CHARS_A_WEIGHT))
    chosen, remark = list(range(len(names))), ""
    if most < len(names):
        chosen = _greedy(logits, targets, combine, best, most, should_stop)
        are = number_of(len(targets), "character is", "characters are")
        few = f"{are} too few to fit the weights of {number_of(len(names), 'expert')}"
        kept = " and ".join(names[e] for e in chosen)
        remark = f"{few}, so only {kept} {'is' if len(chosen) == 1 else 'are'} used"
    as_it_is = len(chosen) == 1 and (len(names) > 1 or len(targets) < CHARS_A_WEIGHT)
    rule = "log-linear" if combine == "gated" and len(chosen) < len(names) else combine
    gated = False
    if not as_it_is:
        with_gate, joined, alone = _on_other_text(logits[chosen], targets, rule, should_stop)
        gated = with_gate < min(joined, alone)
        as_it_is = joined >= alone and not gated
        if rule == "gated" and not gated:
            remark = (
                f"the gate predicts text worse than fixed weights ({with_gate:.3f} against "
                f"{joined:.3f} nats, on halves of the slice that neither was fitted on): it is left out"
            )
        if as_it_is and len(chosen) > 1:
            chosen = [best]
            remark = (
                f"joined, the experts predict text worse than the best of them alone ({joined:.3f} "
                f"and {alone:.3f} nats, on halves of the slice that the weights were not fitted on): "
                f"{names[best]} is used alone"
            )
    weights, temperature = torch.zeros(len(names)), torch.ones(())
    if as_it_is:
        weights[chosen] = 1.0
    else:
        weights[chosen], temperature = fit_weights(logits[chosen], targets, combine, should_stop)
    gate = None
    if gated:
        gate = fit_gate(finite_log_p(logits), targets, weights / temperature, should_stop)
    return Joined(weights, temperature, gate, remark)


def loss_of(logits: Float[Tensor, "N V"], targets: Targets) -> float:
    """Return the mean loss of predictions in nats."""
    return next_token_loss(logits[None], targets[None]).item()


def _best(logits: Logits, targets: Targets) -> int:
    """Return the expert with the lowest loss."""
    losses = [loss_of(own, targets) for own in logits]
    return losses.index(min(losses))


def _greedy(
    logits: Logits,
    targets: Targets,
    combine: str,
    best: int,
    most: int,
    should_stop: Callable[[], bool],
) -> list[int]:
    """Return the best expert and those, one by one, that improve a join with it most."""
    chosen = [best]
    while len(chosen) < most:
        losses = {}
        for other in set(range(len(logits))) - set(chosen):
            some = logits[[*chosen, other]]
            fitted = fit_weights(some, targets, combine, should_stop)
            losses[other] = loss_of(join(some, *fitted, combine), targets)
        chosen.append(min(losses, key=lambda one: losses[one]))
    return chosen


def _on_other_text(
    logits: Logits, targets: Targets, combine: str, should_stop: Callable[[], bool]
) -> tuple[float, float, float]:
    """Return the losses of a gate, of fixed weights and of the best expert, on text not fitted to.

    Each half of the text is predicted with what was found best on the other half. If there is no
    gate, its loss is infinite.
    """
    every = -(-logits.numel() // MAX_NUMBERS)
    logits, targets = logits[:, ::every], targets[::every]
    middle = len(targets) // 2
    halves = [(logits[:, part], targets[part]) for part in (slice(middle), slice(middle, None))]
    joined = alone = 0.0
    gated = 0.0 if combine == "gated" else inf
    for (seen, answers), (unseen, asked) in (halves, halves[::-1]):
        share = len(asked) / len(targets)
        fitted = fit_weights(seen, answers, combine, should_stop)
        joined += share * loss_of(join(unseen, *fitted, combine), asked)
        alone += share * loss_of(unseen[_best(seen, answers)], asked)
        if combine == "gated":
            powers = fitted[0] / fitted[1]
            gate = fit_gate(finite_log_p(seen), answers, powers, should_stop)
            gated += share * loss_of(join(unseen, *fitted, combine, gate), asked)
    return gated, joined, alone
