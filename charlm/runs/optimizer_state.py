"""The state of optimizers as named tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from charlm.config import TrainConfig
from charlm.models import LanguageModel
from charlm.models.base import check_tensor

# The state of each optimizer for a parameter that it has updated.
KEPT = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}


def hidden_matrices(model: LanguageModel) -> dict[str, nn.Parameter]:
    """Return the matrices except embedding tables and the `head`: those that Muon is made for."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in tables and name.split(".")[0] != "head"
    }


def owned_by(model: LanguageModel, train: TrainConfig) -> dict[str, dict[str, nn.Parameter]]:
    """Return the parameters that each optimizer updates, by name; each belongs to exactly one."""
    parameters = dict(model.named_parameters())
    if train.optimizer != "muon":
        return {"adamw": parameters}
    matrices = hidden_matrices(model)
    rest = {name: one for name, one in parameters.items() if name not in matrices}
    return {"muon": matrices, "adamw": rest}


def optimizer_tensors(
    optimizers: Mapping[str, Optimizer], model: LanguageModel
) -> dict[str, Tensor]:
    """Return all state of the optimizers, named `optimizer/parameter/state`."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{kind}/{names[id(parameter)]}/{key}": value
        for kind, optimizer in optimizers.items()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizers(
    optimizers: Mapping[str, Optimizer], model: LanguageModel, tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` returned, bit for bit.

    Raises:
        ValueError: A tensor is missing, unexpected, of another shape or type, or not finite; the
            message names it with the expected and the found value.
    """
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    check_tensors(
        {
            kind: {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
            for kind, optimizer in optimizers.items()
        },
        tensors,
    )
    for optimizer in optimizers.values():
        optimizer.state.clear()
    for path, value in tensors.items():
        kind, name, key = path.split("/")
        parameter = parameters[name]
        # AdamW counts its steps in a scalar that stays on the CPU unless a kernel wants it.
        device = parameter.device if value.ndim or parameter.is_cuda else torch.device("cpu")
        optimizers[kind].state[parameter][key] = value.to(device)


def check_tensors(
    owned: Mapping[str, Mapping[str, nn.Parameter]], tensors: Mapping[str, Tensor]
) -> None:
    """Check tensors before an optimizer uses them: its kernels do not check.

    `owned` has the parameters of each optimizer, by name (see `owned_by`). Raises ValueError as
    `restore_optimizers` does.
    """
    then, now = sorted({path.split("/")[0] for path in tensors}), sorted(owned)
    if tensors and then != now:
        saved, asked = " + ".join(then)[:40], " + ".join(now) or "none"
        what = f"saved with {saved}, the configuration asks for {asked}"
        raise ValueError(f"{what}; keep train.optimizer or start a new run")
    expected = {
        f"{kind}/{name}/{key}": parameter
        for kind, parameters in owned.items()
        for name, parameter in parameters.items()
        for key in KEPT[kind]
    }
    updated = {path.rpartition("/")[0] for path in tensors}  # one without a gradient never was
    needed = {path for path in expected if path.rpartition("/")[0] in updated}
    for path in sorted(needed ^ tensors.keys()):
        state = "is missing" if path in needed else "belongs to another model or optimizer"
        raise ValueError(f"{path[:80]} {state}; use an earlier checkpoint")
    for path, tensor in tensors.items():
        # The update count is a scalar; everything else has a value for each weight.
        shape = () if path.endswith("/step") else expected[path].shape
        check_tensor(path, tensor, shape, expected[path].dtype)
