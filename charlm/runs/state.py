"""A saved step: weights, optimizer, counters. Everything else is a function of seed and step."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.optim import Optimizer

from charlm.config import Config
from charlm.config.memory import human_bytes
from charlm.errors import CheckpointError, MachineError
from charlm.models import LanguageModel
from charlm.runs import RunFolder
from charlm.runs.checkpoints import ASIDE, Checkpoint, read_checkpoint
from charlm.runs.metrics import last_saved_step
from charlm.runs.optimizer_state import (
    check_tensors,
    optimizer_tensors,
    owned_by,
    restore_optimizers,
)
from charlm.runs.parts import Parts
from charlm.runs.provenance import PROVENANCE
from charlm.runs.weights import (
    VERSION,
    WEIGHTS,
    build_from,
    load_tensors,
    load_weights,
    save_tensors,
    save_weights,
)
from charlm.storage import OtherFormatError, machine_errors, new_folder, verify_folder
from charlm.storage.json_file import Count, read_object, reason
from charlm.text import Tokenizer

OPTIMIZER = "optimizer.safetensors"
CARRIED = "carried.safetensors"  # only in runs with `train.carry_state`
STATE = "state.json"
HEADERS = 1 << 16  # bytes of a checkpoint besides its tensors, with a margin
# Increased when training steps or the order of the data change: resuming an older run then prints
# a note that its bits will differ.
#   2  our own Muon; each expert of a mixture has its own seed, and other steps at the end
#   3  the gradients of four micro-batches or more are added in a tree
#   4  fused recurrent layers in float32 add up each product with what it is added to
RECIPE = 4
RECURRENT = ("rnn", "gru", "lstm")
# Fields that older checkpoints lack.
ADDED_LATER = {"skipped": 0, "rate_factor": 1.0, "late_from": -1, "before": 0.0}

Finite = Annotated[float, Field(allow_inf_nan=False)]
StepOrNone = Annotated[int, Field(ge=-1, lt=2**63)]  # -1 for none


@dataclass(config=ConfigDict(strict=True))
class TrainingState:
    """Where training is."""

    step: Count = 0  # optimizer updates done
    seconds: Annotated[Finite, Field(ge=0)] = 0.0  # wall time of training, all resumes included
    evaluated_step: StepOrNone = -1  # the last step that was evaluated
    val_loss_nats: Finite | None = None  # its validation loss
    best_loss_nats: Finite | None = None  # the lowest so far
    best_step: StepOrNone = -1  # the step with that loss
    bad_evals: Count = 0  # evaluations since then
    sampled_step: StepOrNone = -1  # the last step that wrote a sample
    metrics_bytes: Count = 0  # length of metrics.jsonl when this was saved
    skipped: Count = 0  # latest steps in a row whose loss or gradient was not finite
    rate_factor: Annotated[Finite, Field(gt=0)] = 1.0  # of the learning rate: halved at a rollback
    # Of an expert: the first step that reads the slice which the mixture's weights are fitted on.
    late_from: StepOrNone = -1
    before: Annotated[Finite, Field(ge=0)] = 0.0  # seconds of a budget before the first step


def save_checkpoint(
    run: RunFolder,
    state: TrainingState,
    model: LanguageModel,
    optimizers: Mapping[str, Optimizer],
    provenance: bytes,
    form: str | None = None,
    carried: Mapping[str, Tensor] | None = None,
    parts: Parts | None = None,
    processes: int | None = None,
) -> None:
    """Write the checkpoint of `state.step`, whole or not at all, and prune older ones.

    Args:
        run: The run to save in.
        state: The counters of training.
        model: The model.
        optimizers: The optimizers.
        provenance: The result of `provenance_json`.
        form: How steps ran the model (`compiled`, `fused`, `plain`), None before the first: the
            bits depend on it.
        carried: What else the next step depends on: a recurrent state.
        parts: What processes have written of the weights and the state of optimizers, in a folder
            that is removed; None: those of `model` and `optimizers` are written.
        processes: How many train the model, if the bits depend on it.

    Raises:
        MachineError: The disk or its permissions refuse; older checkpoints are unharmed.
    """
    path = run.checkpoints.path(state.step)
    facts: dict[str, Any] = {
        "kind": "checkpoint",
        "step": state.step,
        "val_loss_nats": state.val_loss_nats if state.evaluated_step == state.step else None,
        "environment": environment(processes),
        "form": form,
    }
    tensors = {} if parts else optimizer_tensors(optimizers, model)
    carried = dict(carried or {})
    weights = () if parts else model.state_dict().values()
    saved = [*weights, *tensors.values(), *carried.values()]
    check_room(path, sum(tensor.nbytes for tensor in saved) + len(provenance))
    with new_folder(path, facts) as folder:
        if parts:
            parts.move(folder, {WEIGHTS: {VERSION: model.version}, OPTIMIZER: {}})
        else:
            save_weights(model, folder / WEIGHTS)
            save_tensors(tensors, folder / OPTIMIZER)
        if carried:
            save_tensors(carried, folder / CARRIED)
        (folder / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
        (folder / PROVENANCE).write_bytes(provenance)
    if parts:
        shutil.rmtree(parts.folder, ignore_errors=True)
    run.checkpoints.prune()


def form_of(checkpoint: Checkpoint) -> str | None:
    """Return how the steps before a checkpoint ran the model; see `save_checkpoint`."""
    facts = checkpoint.facts
    if "compiled" in facts:  # as earlier versions wrote it
        return {True: "compiled", False: "plain"}.get(facts["compiled"])
    form: str | None = facts.get("form")
    return form


def check_room(path: Path, size: int) -> None:
    """Raise MachineError if a checkpoint of so many bytes, and headers, would fill the disk."""
    needed = size + HEADERS
    with machine_errors(path.parent):
        free = shutil.disk_usage(path.parent).free
    if free < needed:
        what = f"a checkpoint needs {human_bytes(needed)} and {human_bytes(free)} is free"
        raise MachineError(path, what, f"free {human_bytes(needed - free)} there")


def load_checkpoint(
    checkpoint: Checkpoint, model: LanguageModel, optimizers: Mapping[str, Optimizer]
) -> TrainingState:
    """Load a checkpoint into a model and its optimizers; return the state of training.

    Raises:
        CheckpointError: It is damaged or belongs to another model or optimizer.
    """
    verify_folder(checkpoint.path)
    load_weights(model, checkpoint.path / WEIGHTS)
    tensors = load_tensors(checkpoint.path / OPTIMIZER)
    with _of_optimizer(checkpoint):
        restore_optimizers(optimizers, model, tensors)
    return read_state(checkpoint.path, checkpoint.step)


def load_carried(checkpoint: Checkpoint, restore: Callable[[Mapping[str, Tensor]], None]) -> None:
    """Give a learner the state that a checkpoint carries on; CheckpointError if it does not fit."""
    path = checkpoint.path / CARRIED
    try:
        restore(load_tensors(path) if path.exists() else {})
    except ValueError as error:
        raise CheckpointError(path, str(error), "use an earlier checkpoint") from None


def check_checkpoint(checkpoint: Checkpoint, config: Config, tokenizer: Tokenizer) -> None:
    """Read weights and optimizers as `load_checkpoint` does, without training on; same errors."""
    model = build_from(checkpoint, config, tokenizer)
    tensors = load_tensors(checkpoint.path / OPTIMIZER)
    by_gradients = config.model.trained_by == "gradients"
    with _of_optimizer(checkpoint):
        check_tensors(owned_by(model, config.train) if by_gradients else {}, tensors)


@contextlib.contextmanager
def _of_optimizer(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn a ValueError about the tensors of optimizers into a CheckpointError."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(checkpoint.path / OPTIMIZER, str(error)) from None


def read_state(folder: Path, step: int) -> TrainingState:
    """Read the state of training from the checkpoint in `folder`, saved after `step` updates.

    Raises:
        CheckpointError: It is missing, or has values that training cannot produce.
    """
    path = folder / STATE
    try:
        content = ADDED_LATER | read_object(path)
        state = TrainingState(**{f.name: content[f.name] for f in fields(TrainingState)})
        if state.step != step:
            raise ValueError(f"step is {state.step}")
        return state
    except (OSError, ValueError, KeyError) as error:
        what = f"incomplete or impossible ({reason(error)})"
        raise CheckpointError(path, what, "use an earlier checkpoint") from None


def drift(checkpoint: Checkpoint, config: Config, processes: int = 1) -> list[str]:
    """Return a phrase for each change since a checkpoint was saved that makes bits differ.

    Args:
        checkpoint: Where training goes on.
        config: With which it goes on.
        processes: In which it goes on.
    """
    then = checkpoint.facts.get("environment")
    then = {"recipe": 1} | (then if isinstance(then, dict) else {})
    if _leaves_the_same(then["recipe"], form_of(checkpoint), config):
        then["recipe"] = RECIPE
    # It matters where sums depend on it, and was not always kept.
    known = not config.train.in_order and "processes" in then
    return [
        f"{name} was {then.get(name)}, now {now}"
        for name, now in environment(processes if known else None).items()
        if then.get(name) != now
    ]


def _leaves_the_same(recipe: Any, form: str | None, config: Config) -> bool:
    """Tell whether steps of an earlier recipe, in this form, leave the bits of the present one."""
    train = config.train
    micro_batches = train.batch_size // (train.micro_batch_size or train.batch_size)
    few = micro_batches < 4 and config.data.records == "none"
    if recipe == 2 and (micro_batches == 1 or few or train.exact is False):
        recipe = 3  # gradients are added up in the same order
    recurrent = config.model.type in RECURRENT and config.run.dtype != "bfloat16"
    return recipe == 3 and not (recurrent and form == "fused")


def environment(processes: int | None = None) -> dict[str, Any]:
    """Return the facts, besides the configuration, that bits depend on; see `save_checkpoint`."""
    facts = {
        "recipe": RECIPE,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    return facts if processes is None else facts | {"processes": processes}


def sound_checkpoint(step: int, path: Path) -> Checkpoint:
    """Read a checkpoint after checking its files and its state.

    Raises:
        OtherFormatError: It is of a format that this version does not read.
        CheckpointError: It is damaged.
        MachineError: The disk or its permissions refuse.
    """
    checkpoint = read_checkpoint(step, path, "restore it")
    verify_folder(path, "restore it")
    read_state(path, step)
    return checkpoint


def newest_sound(
    run: RunFolder,
    notes: list[str],
    sound: Callable[[int, Path], Checkpoint] = sound_checkpoint,
) -> Checkpoint | None:
    """Return the newest sound checkpoint, skipping damaged ones.

    Args:
        run: The run.
        notes: Receives a note for each skipped checkpoint.
        sound: Checks one.

    Raises:
        OtherFormatError: The newest is of a format that this version does not read: it is not
            damaged, and its steps must not be repeated.
        CheckpointError: All checkpoints are damaged, or there are none although the log records
            some.
        MachineError: The disk or its permissions refuse: one may be sound.
    """
    damage: CheckpointError | None = None
    for step, path in reversed(run.checkpoints.saved()):
        try:
            return sound(step, path)
        except OtherFormatError:
            raise
        except MachineError as error:
            mend = f"{error.mend}, or move {path.name} away to go on from an older"
            raise error.replace(mend=mend) from None
        except CheckpointError as error:
            kept = f"damaged, kept as {ASIDE}{path.name}, going back to an older one"
            notes.append(f"{kept}: {error.replace(mend='')}")
            damage = error
    if damage:
        raise damage.replace(mend=f"{damage.mend} or start a new run")
    lost = last_saved_step(run.metrics_path)
    if lost is not None:
        what = f"no checkpoint there, {run.metrics_path.name} knows of step {lost}"
        raise CheckpointError(run.checkpoints.folder, what, "restore them or start a new run")
    return None
