"""The model of a run, with its configuration and tokenizer."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Int

from charlm.config import Config, ModelConfig
from charlm.errors import CharlmError, CheckpointError, Phrase, Setting
from charlm.models import LanguageModel
from charlm.models.device import choose_device
from charlm.models.registry import kind_for
from charlm.runs.check import checks_to_read
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.folder import RunFolder, find_run
from charlm.runs.weights import WEIGHTS, build_from, load_weights
from charlm.storage import OtherFormatError
from charlm.text import CharTokenizer, Tokenizer

Used = TypeVar("Used")


@dataclass(frozen=True)
class SavedModel:
    """A model as a run folder keeps it, in evaluation mode, after `step` updates."""

    model: LanguageModel
    tokenizer: Tokenizer
    config: Config
    run: RunFolder
    step: int
    remark: str = ""  # why this is not the best of the evaluated checkpoints, if it is not


def load_model(run: RunFolder, which: str = "best", device: str = "auto") -> SavedModel:
    """Load the model of a run folder, the checkpoint `best`, `last` or of a step, onto a device.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or does not fit the configuration; the
            message names one that can be read, if there is one and none was named.
        MachineError: The device is not there.
    """

    def load(checkpoint: Checkpoint) -> SavedModel:
        model = build_from(checkpoint, run.config, run.tokenizer)
        model.to(choose_device(device)).eval()
        remark = ""
        if which == "best" and checkpoint.loss is None and run.checkpoints.best():
            last = checkpoint.path.name
            remark = f"only step 0 was evaluated, so this is the last checkpoint, {last}"
        return SavedModel(model, run.tokenizer, run.config, run, checkpoint.step, remark)

    try:
        return use_checkpoint(run, which, load)
    except OtherFormatError:
        raise
    except CheckpointError as error:
        inside = str(error.where).startswith(f"{run.checkpoints.folder}/")
        readable = _readable(run) if inside and not which.isdecimal() else ()
        if step := max(readable, default=None):
            other = Phrase("use {}", Setting("checkpoint", step))
            mend = Phrase("{}, or {}", error.mend, other) if error.mend else other
            raise error.replace(mend=mend) from None
        raise


def _readable(run: RunFolder) -> Iterator[int]:
    """Yield the steps of the checkpoints that pass all checks of reading them."""
    for checkpoint in run.checkpoints.all():
        with contextlib.suppress(CharlmError):
            for check in checks_to_read(run, checkpoint):
                check.run()
            build_from(checkpoint, run.config, run.tokenizer)
            yield checkpoint.step


def use_checkpoint(run: RunFolder, which: str, use: Callable[[Checkpoint], Used]) -> Used:
    """Return `use(checkpoint)` for a chosen checkpoint, after all checks that reading it needs.

    Raises:
        CheckpointError: It is missing, damaged, or does not fit the configuration or the alphabet.
        MachineError: The disk or its permissions refuse.
        UsageError: `which` is none of `best`, `last` and a step.
    """

    def check_and_use(checkpoint: Checkpoint) -> Used:
        for check in checks_to_read(run, checkpoint):
            check.run()
        return use(checkpoint)

    return run.checkpoints.use(which, check_and_use)


def load_from_run(
    model: LanguageModel | None, name: str, which: str, expected: ModelConfig, tokenizer: Tokenizer
) -> Checkpoint:
    """Read a checkpoint of another run into a model; return which it was.

    Args:
        model: The model to fill; None: only check that the checkpoint can be read.
        name: The other run's folder.
        which: `best`, `last`, or a step.
        expected: The other run's model when this run began; it may have changed since.
        tokenizer: This run's alphabet.

    Of a run with another alphabet, known characters take their weights, and new ones keep what the
    model was built with.

    Raises:
        CheckpointError: It is missing, damaged, or another model; it has another unit, or another
            alphabet and a kind of model that cannot take weights over.
    """
    run = find_run(Path(name))
    if run.config.model != expected:
        what, mend = "its model has changed", "restore it or start a new run"
        raise CheckpointError(name, what, mend)
    known = known_characters(name, run, tokenizer)

    def load(checkpoint: Checkpoint) -> Checkpoint:
        if model and known is not None:
            model.take_over(build_from(checkpoint, run.config, run.tokenizer), known)
        elif model:
            load_weights(model, checkpoint.path / WEIGHTS)
        return checkpoint

    return use_checkpoint(run, which, load)


def known_characters(
    name: str, run: RunFolder, tokenizer: Tokenizer
) -> Int[torch.Tensor, "V"] | None:
    """Return the id that each character has in another run, -1 for none; None if all are the same.

    Raises CheckpointError if its weights cannot be taken over to this alphabet.
    """
    theirs, ours = run.tokenizer, tokenizer
    if theirs.to_json() == ours.to_json():
        return None
    if not (isinstance(theirs, CharTokenizer) and isinstance(ours, CharTokenizer)):
        what = f"is a model of {theirs.unit}, this text is read as {ours.unit}"
        raise CheckpointError(name, what, Phrase("set {}", Setting("data.unit", theirs.unit)))
    if kind_for(run.config.model).find("model").per_character is None:
        odd = min(set(theirs.alphabet) ^ set(ours.alphabet))
        owner = "the run" if odd in theirs.alphabet else "this text"
        what = f"has another alphabet: only {owner} has {odd!r} (U+{ord(odd):04X})"
        kind = f"models of type {run.config.model.type!r} cannot be taken over to another"
        raise CheckpointError(name, f"{what}, and {kind}", "train it on this text")
    known = torch.tensor([theirs.alphabet.find(c) for c in ours.alphabet])
    if not bool((known >= 0).any()):
        raise CheckpointError(name, "knows no character of this text", "train without it")
    return known


def alphabet_note(name: str, tokenizer: Tokenizer) -> str | None:
    """Describe what a run of another alphabet knows of this one; None if they are the same."""
    run = find_run(Path(name))
    known = known_characters(name, run, tokenizer)
    if known is None:
        return None
    assert isinstance(run.tokenizer, CharTokenizer)
    assert isinstance(tokenizer, CharTokenizer)
    shared = int((known >= 0).sum())
    parts = [f"{name} knows {shared:,} of {len(known):,} characters"]
    for what, one, other in (
        ("begin{s} fresh", tokenizer, run.tokenizer),
        ("of its own {is} left out", run.tokenizer, tokenizer),
    ):
        if odd := [c for c in one.alphabet if c not in other.alphabet]:
            single = len(odd) == 1
            said = what.format(s="s" * single, **{"is": "is" if single else "are"})
            more = ", ..." if len(odd) > 4 else ""
            parts.append(f"{len(odd):,} {said} ({', '.join(map(repr, odd[:4]))}{more})")
    return "; ".join(parts)
