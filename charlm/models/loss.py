"""The score of a prediction: the cross-entropy of the next character."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Read = Callable[[Tensor], Tensor]  # from ids to logits: a model, or one that reads on


def next_token_loss(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"], reduction: str = "mean"
) -> Tensor:
    """Return the cross-entropy of the next character, in nats.

    `F.cross_entropy` expects (N, V) against (N,). Every position of every window is a separate
    prediction, so (B, T, V) flattens to (B*T, V) and (B, T) to (B*T,), in the same order.

    Args:
        logits: Unnormalised scores.
        targets: Ids of the characters that came next.
        reduction: `mean`, `sum`, or `none` for one value per prediction, (B*T,).

    Returns:
        A scalar. Guessing uniformly scores ln V: 4.174 for V = 65.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def surprisal(
    model: Read, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return the surprisal of each target, its negative log-probability, in nats.

    A counted model can look up one probability without computing the other V - 1. If a model has
    `log_probability`, which must agree with its logits, that is used.
    """
    look_up = getattr(model, "log_probability", None)
    if callable(look_up):
        return 0 - look_up(idx, targets)  # type: ignore[no-any-return]  # certain: 0, not -0
    return next_token_loss(model(idx).float(), targets, reduction="none").view(targets.shape)
