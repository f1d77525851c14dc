"""Weights on disk: saved as safetensors, loaded only into a model that they fit."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from charlm.config import Config
from charlm.config.memory import human_bytes, machine_bytes
from charlm.errors import CheckpointError, is_out_of_memory
from charlm.models.base import LanguageModel
from charlm.models.registry import build_model
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.parts import Loaded, in_parts, join_parts, part_files
from charlm.storage import OtherFormatError, machine_errors
from charlm.storage.regular import check_file, open_regular
from charlm.text.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
VERSION = "version"  # of the model, among the facts of its weights
MARGIN = 1 << 26  # bytes by which a model may exceed its file before it is refused unbuilt

# First bytes of files that can run code when read, by name. A safetensors file may begin with the
# same bytes (the length of its header), so this is used only for files that are not safetensors.
_RUNS_CODE = {
    "a pickle": re.compile(rb"\x80[\x00-\x05]|\(*c[\w.]+\n|\(+[dlitS]|[}\])]q"),
    "a zip archive, as torch.save writes around a pickle": re.compile(rb"PK\x03\x04"),
}


def build_from(checkpoint: Checkpoint, config: Config, tokenizer: Tokenizer) -> LanguageModel:
    """Build the model of a configuration with the weights of a checkpoint, on the CPU.

    CheckpointError if they do not fit.
    """
    _refuse_excess(config, tokenizer, checkpoint.path / WEIGHTS)
    model = build_model(config.model, tokenizer.vocab_size)
    load_weights(model, checkpoint.path / WEIGHTS)
    return model


def _refuse_excess(config: Config, tokenizer: Tokenizer, path: Path) -> None:
    """Refuse a model far larger than its file or the machine's memory, before building it."""
    files = part_files(path.parent) if in_parts(path.parent) else [path]
    needed = 4 * config.model.parameter_count(tokenizer.vocab_size)
    found = sum(file.stat().st_size for file in files)
    buffers, machine = config.model.buffer_bytes(), machine_bytes()
    if needed > found + MARGIN:
        what = f"{human_bytes(found)}, the model of config.yaml has {human_bytes(needed)}"
    elif needed + buffers > machine:
        memory = f"{human_bytes(needed + buffers)} of memory"
        what = f"its model needs {memory}, this machine has {human_bytes(machine)}"
    else:
        return
    raise CheckpointError(path, what, "was config.yaml changed?")


def recorded_sha256(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of the weights in a verified checkpoint; CheckpointError if it has none."""
    path, files = checkpoint.path, checkpoint.facts["files"]
    if WEIGHTS in files:
        return str(files[WEIGHTS]["sha256"])
    if in_parts(path):
        mend = f"put them together: charlm runs merge {path.parent.parent}"
        raise CheckpointError(path, "is in parts, which have no checksum together", mend)
    raise CheckpointError(path, f"{WEIGHTS} is missing", "restore it")


def save_weights(model: LanguageModel, path: Path) -> None:
    """Write the state of a model to `path`."""
    save_tensors(model.state_dict(), path, {VERSION: model.version})


def load_weights(model: LanguageModel, path: Path) -> None:
    """Read the state of a model from `path`, or from parts beside it.

    Raises:
        OtherFormatError: It is of a version of the model that this charlm does not support.
        CheckpointError: A tensor is missing, unexpected, of another shape or type, or impossible;
            the message names it with the expected and the found value.
    """
    tensors, facts = load_whole(path)
    try:
        model.load_state_dict(tensors)
    except ValueError as error:
        raise CheckpointError(path, str(error)) from None
    found = facts.get(VERSION, "1")
    if not model.reads_version(found):
        ours = f"this charlm has version {model.version}, which computes differently"
        what = f"weights of version {found[:20]} of its model, {ours}"
        raise OtherFormatError(path, what, "use the charlm that saved it, or train again")


def save_tensors(
    tensors: dict[str, Tensor], path: Path, facts: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, and facts about them, or raise MachineError.

    `load_tensors` reads the same bits.
    """
    with machine_errors(path):
        whole, places = {}, set()
        for name, tensor in tensors.items():
            whole[name] = tensor.contiguous().cpu()
            if (place := whole[name].untyped_storage().data_ptr()) in places:
                whole[name] = whole[name].clone()  # a tied weight, which safetensors would refuse
            places.add(place)
        try:
            save_file(whole, path, dict(facts) if facts else None)
        except SafetensorError as error:  # it has the system's error number only in its text
            if not (number := re.search(r"os error (\d+)", str(error))):
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from None
        path.chmod(0o644)  # safetensors makes files private; charlm's other files are readable


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, to the CPU; CheckpointError if there are none."""
    return load_whole(path)[0]


def load_whole(path: Path) -> Loaded:
    """Read tensors by name, to the CPU, and the facts about them; from parts if they are in parts.

    CheckpointError if there are none.
    """
    return join_parts(path, _load) if in_parts(path.parent) else _load(path)


def _load(path: Path, group: str = "") -> Loaded:
    """Read those tensors whose names begin with `group`, and the facts about all."""
    try:
        check_file(path)  # this opens it by its name
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(group)]  # noqa: SIM118 -- no dict
            tensors = {name: file.get_tensor(name) for name in names}
            facts = file.metadata() or {}
        _refuse_repeated_names(path)
        return tensors, facts
    # Torch opens the file again, and raises RuntimeError if training has pruned it meanwhile.
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(path, _why_unreadable(path, error), "name another") from None


def _refuse_repeated_names(path: Path) -> None:
    """Refuse a safetensors file in which two tensors have the same name."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name occurs twice in its header")
        return found

    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        json.loads(file.read(length), object_pairs_hook=unique)


def _why_unreadable(path: Path, error: Exception) -> str:
    """Describe a file that is not safetensors by its first bytes; nothing in it is run."""
    try:
        with open_regular(path) as file:
            head = file.read(256)
    except OSError:
        head = b""
    for kind, begins in _RUNS_CODE.items():
        if begins.match(head):
            return f"{kind}, which can run code: refused unread"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    reason = reason.removeprefix("Error while deserializing header: ")
    return f"not readable as safetensors ({reason[:60]})"
