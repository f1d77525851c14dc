"""What a trained model looks at: the weights of its attention on one text.

A forward pass does not keep them (a fused kernel never has them), so they are computed again from
what each layer read.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.models.attention import Head, MultiHeadAttention
from charlm.models.base import LanguageModel
from charlm.models.mixture import MixtureModel


def attention_weights(model: LanguageModel, idx: Int[Tensor, "T"]) -> Float[Tensor, "L H T T"]:
    """Return the weights of all layers (L) and heads (H) on a window, in float32, on the CPU.

    Row t of a head says how much position t gathers from each position s <= t; it sums to 1.

    Args:
        model: A model with attention (see `attentive`), in evaluation mode.
        idx: The window, at most `block_size`.
    """
    read: list[tuple[Head | MultiHeadAttention, Tensor]] = []

    def keep(layer: Any, inputs: tuple[Any, ...]) -> None:
        read.append((layer, inputs[0]))

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers_of(model)]
    try:
        with torch.no_grad():
            model(idx[None].to(model.device))
            found = [layer.weights(x)[0] for layer, x in read]
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).float().cpu()


def layers_of(model: LanguageModel) -> list[Head | MultiHeadAttention]:
    """Return the layers of attention in a model; those of a mixture are its experts'."""
    return [layer for layer in model.modules() if isinstance(layer, Head | MultiHeadAttention)]


def attentive(model: LanguageModel) -> dict[str, LanguageModel]:
    """Return the models with attention by name: the model itself as "", or experts of a mixture."""
    experts = model.experts.items() if isinstance(model, MixtureModel) else [("", model)]
    return {name: one for name, one in experts if layers_of(one)}
