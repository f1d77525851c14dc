"""What a trained model looks at: the weights of its attention on one text, or the gates of its state.

A forward pass does not keep them (a fused kernel never has them), so they are computed again from
what each layer read.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.models.attention import Head, MultiHeadAttention
from charlm.models.base import LanguageModel
from charlm.models.loss import next_token_loss
from charlm.models.mingru import MinGRU
from charlm.models.mingru import scan as plain_scan
from charlm.models.mixture import MixtureModel
from charlm.models.recurrent import Cell, Embedded, RecurrentModel, State


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


class Gate(NamedTuple):
    """How far a gate of a recurrent layer is open while a text is read."""

    layer: int  # from 0
    name: str
    opened: Float[Tensor, "T H"]  # from 0 to 1, for each position and channel


def gates_of(model: LanguageModel, idx: Int[Tensor, "T"]) -> list[Gate]:
    """Return all gates of a recurrent model on a text, in float32, on the CPU.

    A plain `rnn` has none. The model is in evaluation mode.
    """
    found: list[tuple[str, Tensor]] = []

    def through_time(cell: Cell, x: Tensor, state: State) -> tuple[Tensor, State]:
        opened, outputs = [], []
        for x_t in x.unbind(dim=1):
            opened.append(cell.gates(cell.input(x_t), state))
            state = cell(x_t, state)
            outputs.append(state[0])
        gates = map(torch.cat, zip(*opened, strict=True))
        found.extend(zip(cell.gate_names, gates, strict=True))
        return torch.stack(outputs, dim=1), state

    def scan(x: Tensor, h: Tensor) -> Tensor:
        found.append(("update", torch.sigmoid(x.chunk(2, dim=-1)[0][0])))
        return plain_scan(x, h)

    with torch.no_grad():
        ids, start = idx[None].to(model.device), model.start(1)
        if isinstance(model, RecurrentModel):
            model.go_on(ids, start, through_time)
        elif isinstance(model, MinGRU):
            model.go_on(ids, start, scan)
    names = [name for name, _ in found]
    return [
        Gate(names[:i].count(name), name, opened.float().cpu())
        for i, (name, opened) in enumerate(found)
    ]


def reach_of(model: LanguageModel, idx: Int[Tensor, "B T1"]) -> Float[Tensor, "L T"]:
    """Return how strongly the last prediction depends on the state of each layer before.

    Entry k of a row is the length of the gradient of the last character's surprisal, in nats, by the
    state that was handed on k + 1 characters earlier, averaged over the windows: the gradient that
    backpropagation through time brings back over that distance.

    Args:
        model: A recurrent model (see `stateful`), in evaluation mode.
        idx: Windows, and the character after each.
    """
    handed: list[list[State]] = []
    with torch.enable_grad():
        state = model.start(len(idx))
        for column in torch.split(idx[:, :-1].to(model.device), 1, dim=1):
            # Copies, so that a gradient is by what the next step reads, and by nothing else.
            state = [tuple(part.clone().requires_grad_() for part in layer) for layer in state]
            handed.append(state)
            logits, state = model.go_on(column, tuple(state))
        loss = next_token_loss(logits.float(), idx[:, -1:].to(model.device), reduction="sum")
        parts = [part for layers in handed for layer in layers for part in layer]
        gradients = torch.autograd.grad(loss, parts)
    squares = torch.stack([g.flatten(1).float().cpu().square().sum(1) for g in gradients])
    layers, tensors = len(handed[0]), len(handed[0][0])
    lengths = squares.view(len(handed), layers, tensors, -1).sum(2).sqrt().mean(-1)  # (T, L)
    return lengths.flip(0).T


def stateful(model: LanguageModel) -> dict[str, LanguageModel]:
    """Return the recurrent models by name: the model itself as "", or experts of a mixture."""
    experts = model.experts.items() if isinstance(model, MixtureModel) else [("", model)]
    return {name: one for name, one in experts if isinstance(one, Embedded)}
