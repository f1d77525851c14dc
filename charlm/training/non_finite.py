"""Which gradients to name when a loss or a gradient is NaN or infinite."""

import torch
from torch import Tensor, nn

NAMED = 2  # tensors in a message


def worst_gradients(model: nn.Module) -> str:
    """Name the gradients with the most values that are not finite, else the largest gradients."""
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.numel()
    }
    broken = {name: float((~g.isfinite()).sum()) for name, g in gradients.items()}
    if any(broken.values()):
        return f"in {_largest(broken)}"
    return f"largest in {_largest({name: _peak(g) for name, g in gradients.items()})}"


def _peak(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, ord=float("inf")))


def _largest(values: dict[str, float]) -> str:
    """Return the names of the largest values above 0, in order of size."""
    ordered = sorted(values, key=lambda name: -values[name])
    return ", ".join([name for name in ordered if values[name]][:NAMED]) or "none"
