"""Weights on disk: written as safetensors, read back only into a model that they fit."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from charlm.config import Config, ModelConfig
from charlm.config.memory import human_bytes, machine_bytes
from charlm.errors import CheckpointError
from charlm.models.base import LanguageModel
from charlm.models.device import choose_device
from charlm.models.registry import build_model
from charlm.runs.belongs import belongs_to
from charlm.runs.folder import Checkpoint, RunFolder, find_run
from charlm.storage import OtherFormatError, machine_errors
from charlm.text import CharTokenizer
from charlm.text.tokenizer import Tokenizer, load_tokenizer

WEIGHTS = "model.safetensors"
VERSION = "version"  # of the model, among the facts of its weights
MARGIN = 1 << 26  # bytes that a model may take beyond its file before it is told what does not fit

# How files begin that run code when they are read, by what to call them. Safetensors begins with the
# length of its header, so this is asked only of what is none.
_RUNS_CODE = {
    "a pickle": re.compile(rb"\x80[\x00-\x05]|\(*c[\w.]+\n|\(+[dlitS]|[}\])]q"),
    "a zip archive, as torch.save writes around a pickle": re.compile(rb"PK\x03\x04"),
}


@dataclass(frozen=True)
class SavedModel:
    """A model as a run folder keeps it.

    Args:
        model: In evaluation mode, on its device.
        tokenizer: Its alphabet.
        config: Its run's configuration.
        run: Its run folder.
        step: The optimizer updates behind it.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: Config
    run: RunFolder
    step: int


def load_model(run: RunFolder, which: str = "best", device: str = "auto") -> SavedModel:
    """Load the model of a run folder; nothing else is needed.

    Args:
        run: The run folder.
        which: `best`, `last`, or a step.
        device: Where to put it; `auto` chooses.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or does not fit the configuration.
        MachineError: The device is not there.
    """
    config = run.read_config()
    tokenizer = load_tokenizer(run.tokenizer)

    def load(checkpoint: Checkpoint) -> SavedModel:
        belongs_to(checkpoint).check(config, tokenizer.to_json())
        model = build_from(checkpoint, config, tokenizer)
        model.to(choose_device(device)).eval()
        return SavedModel(model, tokenizer, config, run, checkpoint.step)

    return run.read(which, load)


def load_from_run(
    model: LanguageModel | None,
    name: str,
    which: str,
    expected: ModelConfig,
    tokenizer: Tokenizer,
) -> Checkpoint:
    """Read a checkpoint of another run into a model; return which it was.

    Args:
        model: Of what is expected; None: it is only looked whether they could be read.
        name: Of the run's folder.
        which: `best`, `last`, or a step.
        expected: What it was when the run that it is read for began; it may be another by now.
        tokenizer: Of the run that it is read for.

    Raises:
        CheckpointError: It is missing, damaged, another model, or has another alphabet.
    """
    run = find_run(Path(name))
    config = run.read_config()
    if config.model != expected:
        raise CheckpointError(f"{name}: its model is another by now; restore it or start a new run")
    compare_alphabets(name, load_tokenizer(run.tokenizer), tokenizer)

    def load(checkpoint: Checkpoint) -> Checkpoint:
        belongs_to(checkpoint).check(config, tokenizer.to_json())
        if model:
            load_weights(model, checkpoint.path / WEIGHTS)
        return checkpoint

    return run.read(which, load)


def compare_alphabets(run: str, theirs: Tokenizer, ours: Tokenizer) -> None:
    """Refuse a run whose ids mean other characters.

    Raises:
        CheckpointError: With the first character that only one of them has.
    """
    if theirs.to_json() == ours.to_json():
        return
    if not (isinstance(theirs, CharTokenizer) and isinstance(ours, CharTokenizer)):
        raise CheckpointError(
            f"{run}: is a model of {theirs.unit}, this text is read as {ours.unit}; set data.unit"
        )
    odd = min(set(theirs.alphabet) ^ set(ours.alphabet))
    owner = "the run" if odd in theirs.alphabet else "this text"
    raise CheckpointError(
        f"{run}: has another alphabet: only {owner} has {odd!r} (U+{ord(odd):04X}); train it on "
        "this text, or the mixture on the text of the run"
    )


def build_from(checkpoint: Checkpoint, config: Config, tokenizer: Tokenizer) -> LanguageModel:
    """Build the model of a configuration with the weights of a checkpoint, on the CPU.

    Raises:
        CheckpointError: They do not fit, or would take memory that they have no use for.
    """
    _refuse_excess(config, tokenizer, checkpoint.path / WEIGHTS)
    model = build_model(config.model, tokenizer.vocab_size)
    load_weights(model, checkpoint.path / WEIGHTS)
    return model


def _refuse_excess(config: Config, tokenizer: Tokenizer, path: Path) -> None:
    """Refuse a model far larger than its file, or than the machine, before it takes the memory.

    Raises:
        CheckpointError: The file cannot hold its weights, or no memory here what belongs to them.
    """
    needed, found = 4 * config.model.parameter_count(tokenizer.vocab_size), path.stat().st_size
    if needed > found + MARGIN:
        raise CheckpointError(
            f"{path}: {human_bytes(found)}, where the model of config.yaml has weights of "
            f"{human_bytes(needed)}; was config.yaml changed?"
        )
    if (needed := config.model.buffer_bytes()) > machine_bytes():
        raise CheckpointError(
            f"{path}: its model needs {human_bytes(needed)} of memory for averages and this machine "
            f"has {human_bytes(machine_bytes())}; was config.yaml changed?"
        )


def save_weights(model: LanguageModel, path: Path) -> None:
    """Write what a model consists of to `path`."""
    save_tensors(model.state_dict(), path, {VERSION: model.version})


def load_weights(model: LanguageModel, path: Path) -> None:
    """Read what a model consists of from `path`.

    Raises:
        OtherFormatError: They are of a version of the model that this charlm does not compute.
        CheckpointError: Something is missing, left over, of another shape or type, or impossible;
            the message names it with what was expected and found.
    """
    tensors, facts = _load(path)
    try:
        model.load_state_dict(tensors)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    found = facts.get(VERSION, "1")
    if not model.reads_version(found):
        raise OtherFormatError(
            f"{path}: weights of version {found[:20]} of its model, this charlm has version "
            f"{model.version} and computes otherwise; use the charlm that saved it, or train again"
        )


def save_tensors(
    tensors: dict[str, Tensor], path: Path, facts: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, and facts about them; bit for bit what `load_tensors` reads.

    Raises:
        MachineError: The disk or its permissions refuse.
    """
    with machine_errors(path):
        whole = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        try:
            save_file(whole, path, dict(facts) if facts else None)
        except SafetensorError as error:  # it tells what the system said in words alone
            number = re.search(r"os error (\d+)", str(error))
            if not number:
                raise
            code = int(number.group(1))
            raise OSError(code, os.strerror(code), str(path)) from None
        path.chmod(0o644)  # safetensors writes for its user alone; the other files are readable


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, to the CPU.

    Raises:
        CheckpointError: The file is missing or is not safetensors.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors by name, and the facts about them.

    Raises:
        CheckpointError: The file is missing or is not safetensors.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no dict
            facts = file.metadata() or {}
        _refuse_repeated_names(path)
        return tensors, facts
    # Torch opens the file once more, and what it raises where training pruned it is a RuntimeError.
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}; name another") from None


def _refuse_repeated_names(path: Path) -> None:
    """Refuse a file, safetensors for the rest, with two tensors of one name: which is meant?

    Raises:
        ValueError: A name stands twice in its header.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands twice in its header")
        return found

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        json.loads(file.read(length), object_pairs_hook=unique)


def _why_unreadable(path: Path, error: Exception) -> str:
    """Say what a file is instead of safetensors, by its content; it is only looked at."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        head = b""
    for kind, begins in _RUNS_CODE.items():
        if begins.match(head):
            return f"{kind}, which can run code: refused unread"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    reason = reason.removeprefix("Error while deserializing header: ")
    return f"not readable as safetensors ({reason[:60]})"
