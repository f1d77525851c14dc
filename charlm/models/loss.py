"""How a prediction is scored: the cross-entropy of the character that really came next."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from charlm.models.base import LanguageModel


def next_token_loss(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"], reduction: str = "mean"
) -> Tensor:
    """Return the cross-entropy of the next character, in nats.

    `F.cross_entropy` wants the classes second: (N, V) against (N,). Every position of every window
    is one prediction of its own, so (B, T, V) flattens to (B*T, V) and (B, T) to (B*T,); the order
    of the rows does not matter as long as both agree.

    Args:
        logits: Unnormalised scores.
        targets: Ids of the characters that came next.
        reduction: `mean` (the default), `sum`, or `none` for one value a prediction, (B*T,).

    Returns:
        A scalar. Guessing uniformly scores ln V: 4.174 for V = 65.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


@runtime_checkable
class _KnowsProbabilities(Protocol):
    def log_probability(
        self, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]: ...


def surprisal(
    model: LanguageModel, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return how surprising each target is after what stands before it, in nats.

    A counted model can look one probability up without working out the other V - 1: if it has
    `log_probability`, that is asked, and must agree with its logits.
    """
    if isinstance(model, _KnowsProbabilities):
        return 0 - model.log_probability(idx, targets)  # what is certain costs 0, not -0
    return next_token_loss(model(idx).float(), targets, reduction="none").view(targets.shape)
