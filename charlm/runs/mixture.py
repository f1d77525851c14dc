"""Files of a mixture until it is joined: the runs of its experts, and `mixture.json`."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from charlm.config import Config
from charlm.errors import CheckpointError
from charlm.models import LanguageModel
from charlm.models.gate import Gate
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.folder import RunFolder
from charlm.runs.load import load_from_run
from charlm.runs.state import read_state
from charlm.runs.weights import recorded_sha256
from charlm.storage.json_file import Count, read_object, reason
from charlm.storage.machine import is_gone
from charlm.text import Tokenizer

FITTED = "mixture.json"
JOINER = "joiner.safetensors"  # of a bitwise mixture
RESTORE = "restore it or start a new run"
_LARGEST = torch.finfo(torch.float32).max

Finite = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]  # in float32, as the model keeps it


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Fitted:
    """The weights fitted on the slice, as kept in `mixture.json`."""

    weights: dict[str, Finite]  # of each expert
    temperature: Annotated[Finite, Field(ge=1e-45)]  # of their product or mean; above 0 in float32
    loss_nats: float  # of the mixture on the slice
    alone_nats: dict[str, float]  # loss of each expert there
    chars: Count  # predictions that these losses are means of
    steps: dict[str, Count]  # of each expert with a run, when it had not yet read the slice
    seconds: Finite  # wall time of the fit
    reserve: Finite  # seconds from the experts' last step to the end of the run
    gate: list[Finite] = field(default_factory=list)  # its weights in order; empty: no gate
    # SHA-256 of the weights of experts from other runs: the step alone does not identify them.
    weights_sha256: dict[str, str] = field(default_factory=dict)


def expert_run(mixture: RunFolder, name: str) -> RunFolder:
    """Return the run of an expert that is trained in a mixture."""
    return RunFolder(mixture.path / "experts" / name)


def sha256_of_weights(checkpoint: Checkpoint, tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the weights in a verified checkpoint, or raise CheckpointError.

    Of a run with another alphabet than `tokenizer`, it is that of the weights and the alphabet.
    """
    found = recorded_sha256(checkpoint)
    theirs = RunFolder(checkpoint.path.parent.parent).tokenizer.to_json()
    if theirs == tokenizer.to_json():
        return found
    return hashlib.sha256(f"{found} {theirs}".encode()).hexdigest()


def expert_from_run(
    run: RunFolder,
    config: Config,
    name: str,
    fitted: Fitted | None,
    tokenizer: Tokenizer,
    model: LanguageModel | None = None,
) -> Checkpoint:
    """Find the weights of an expert that comes from another run, and read them into its model.

    Args:
        run: The mixture's run.
        config: The mixture's configuration, which names a run for the expert.
        name: The expert.
        fitted: The weights fitted to the expert at one step; None: not fitted yet.
        tokenizer: The mixture's tokenizer.
        model: The expert's model; None: only check that its weights can be read.

    Raises:
        CheckpointError: They are missing, damaged or changed.
    """
    spec = config.model.members()[name]
    assert spec.run is not None
    if spec.model is None:  # it was resolved when the mixture was begun
        where = f"{run.config_path}: model.experts.{name}.model"
        raise CheckpointError(where, "missing", "restore it")
    which, then = "best", None
    if fitted:
        which, then = str(fitted.steps[name]), fitted.weights_sha256.get(name)
    try:
        checkpoint = load_from_run(model, spec.run, which, spec.model, tokenizer)
        if then not in (None, sha256_of_weights(checkpoint, tokenizer)):
            what = f"not the weights that {run.path / FITTED} was fitted with"
            raise CheckpointError(checkpoint.path, what, RESTORE)
    except CheckpointError as error:
        raise error.within(f"model.experts.{name}.run") from None
    return checkpoint


def read_fitted_of(
    run: RunFolder, config: Config, checkpoints: Mapping[str, Checkpoint | None]
) -> Fitted | None:
    """Return the weights that a mixture fitted before it was stopped; None if it had not yet.

    Raises:
        CheckpointError: Their file is damaged, or of other experts; or it is missing although an
            expert's checkpoint has read the text that they are fitted on.
    """
    experts = config.model.members()
    runs = {name for name, spec in experts.items() if spec.run} | config.training_runs().keys()
    path = run.path / FITTED
    fitted = None if is_gone(path) else read_fitted(path, experts.keys(), runs)
    for name, checkpoint in {} if fitted else checkpoints.items():
        if checkpoint and read_state(checkpoint.path, checkpoint.step).late_from >= 0:
            what = f"not found, and expert {name} has read the text that the weights are fitted on"
            raise CheckpointError(path, what, RESTORE)
    return fitted


def read_fitted(path: Path, experts: Collection[str], runs: Collection[str]) -> Fitted:
    """Read a mixture.json, or raise CheckpointError.

    It must name these experts; those in `runs` have a run, here or elsewhere.
    """
    try:
        fitted = Fitted(**read_object(path))
        names = [set(of) for of in (fitted.weights, fitted.alone_nats, fitted.steps)]
        if names != [set(experts), set(experts), set(runs)]:
            raise ValueError("it is of other experts")
        if fitted.gate:
            Gate(len(experts)).take(fitted.gate)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            path,
            f"cannot be read ({reason(error)})",
            "the experts may have read the text that the weights are fitted on: start a new run",
        ) from None
    return fitted
