"""Products by oneDNN, which torch takes for bfloat16 but not for float32.

For float32 torch calls MKL, which uses half of the vector units of a processor that is not Intel's.
"""

from copy import copy
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from charlm.models.base import LanguageModel


def is_faster() -> bool:
    """Tell whether to use it on this machine: a rule and no measurement, so that bits do not change."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def by_onednn(model: LanguageModel) -> LanguageModel:
    """Return a model without gradients that shares all weights and, on a CPU, multiplies by oneDNN.

    It keeps the mode, training or evaluation, that the model has now.
    """
    fits = model.device.type == "cpu" and is_faster()
    return cast(LanguageModel, _replaced(model)) if fits else model


def _replaced(module: nn.Module) -> nn.Module:
    """Return a copy whose linear layers are replaced, or the module itself if it has none."""
    if type(module) is nn.Linear:
        return Linear(module)
    parts = {name: part and _replaced(part) for name, part in module._modules.items()}
    if parts == module._modules:
        return module
    other = copy(module)
    other._modules = parts
    return other


class Linear(nn.Module):
    """`nn.Linear` without gradients."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return weight x + bias."""
        # The operation that torch.compile calls, which has no public name.
        product = torch.ops.mkldnn._linear_pointwise
        return product(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]
