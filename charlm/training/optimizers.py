"""AdamW, or Muon for the hidden matrices with AdamW for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from charlm.config import TrainConfig
from charlm.models import LanguageModel
from charlm.models.ngram_embedding import NGramEmbedding
from charlm.runs.optimizer_state import owned_by
from charlm.training.adamw import TableAdamW
from charlm.training.muon import Muon


def build_optimizers(
    model: LanguageModel,
    train: TrainConfig,
    dtype: torch.dtype = torch.float32,
    muon: Callable[..., Muon] = Muon,
) -> dict[str, Optimizer]:
    """Build the optimizers by name; every parameter belongs to exactly one.

    Matrices and embeddings are decayed, vectors are not, as in nanoGPT.

    Args:
        model: The model to update.
        train: The choice of optimizer and its settings.
        dtype: Precision of Muon's matrix products.
        muon: Makes Muon.
    """
    owned = {kind: list(members.values()) for kind, members in owned_by(model, train).items()}
    optimizers: dict[str, Optimizer] = {}
    if matrices := owned.get("muon"):
        optimizers["muon"] = muon(matrices, train.learning_rate, train.weight_decay, dtype=dtype)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in owned["adamw"] if p.ndim >= 2]},
        {"params": [p for p in owned["adamw"] if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers["adamw"] = TableAdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
        betas=(train.beta1, train.beta2),
        fused=True,  # one kernel for all parameters instead of a dozen for each
    )
    for part in model.modules():
        if isinstance(part, NGramEmbedding):
            part.sparse = model.device.type == "cpu"  # elsewhere, memory is fast and calls are slow
    return optimizers


def set_learning_rate(optimizers: Iterable[Optimizer], rate: float) -> None:
    """Give every parameter group this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
