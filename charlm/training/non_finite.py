"""What to say when a loss or a gradient is NaN or infinite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NAMED = 2  # tensors in one line


def worst_gradients(model: nn.Module) -> str:
    """Name the gradients with the most values that are not finite, or else the largest."""
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    broken = {name: float((~g.isfinite()).sum()) for name, g in gradients.items()}
    if any(broken.values()):
        worst = _largest(broken)
        return ", ".join(
            f"{name} ({broken[name]:,.0f} of {gradients[name].numel():,})" for name in worst
        )
    peaks = {name: _peak(gradient) for name, gradient in gradients.items() if gradient.numel()}
    return ", ".join(f"{name} (up to {peaks[name]:.2g})" for name in _largest(peaks))


def _peak(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, ord=float("inf")))


def _largest(values: Mapping[str, float]) -> list[str]:
    """Return the names of the largest values that are not 0, the first of equals first."""
    ordered = sorted(values, key=lambda name: -values[name])
    return [name for name in ordered if values[name]][:NAMED]
