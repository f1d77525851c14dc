"""A model of another program, and the run that is made of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charlm.config import Config, ModelConfig, dump_yaml, read_config
from charlm.errors import CheckpointError, DataError, UsageError
from charlm.exchange.gpt2_names import MASK, name_in_gpt2
from charlm.exchange.torch_file import ANOTHER, shape_of
from charlm.lifecycle.begin import config_file, new_folder_for_run
from charlm.models import GPT2, LanguageModel, build_model
from charlm.runs import RunFolder
from charlm.runs.provenance import provenance_json
from charlm.runs.state import TrainingState, save_checkpoint
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder
from charlm.text import CharTokenizer

PLACE = "sizes"  # names the configuration that is made of them
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Foreign:
    """A model of another program, described by what charlm has in its place.

    Args:
        program: Its name, for messages and for the run's folder.
        model: Keys of the section `model` of a configuration.
        weights: The tensors, by charlm's names.
        vocab_size: How many symbols it has (V).
        step: How many updates it was trained for; 0 if that is unknown.
        records: Whether its symbol 0 is the boundary of records. charlm's is the last symbol.
    """

    program: str
    model: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    vocab_size: int
    step: int = 0
    records: bool = False


def make_run(
    foreign: Foreign, alphabet: str, out: Path, *, text: Path | None, file: Path, source: Path
) -> RunFolder:
    """Make a run of a model of another program.

    Args:
        foreign: The model.
        alphabet: The characters by their ids there; those of records begin at 1.
        out: The folder of the new run.
        text: What it was trained on, for `data.source`; None: unknown.
        file: Where the weights come from, for messages.
        source: Where the alphabet comes from, for messages.

    Raises:
        UsageError: The folder is not empty.
        CheckpointError: A tensor is missing, unexpected, or does not fit.
        DataError: The alphabet has another number of characters than the model.
        MachineError: The disk refuses.
    """
    tokenizer = CharTokenizer(alphabet, boundary=foreign.records)
    if tokenizer.vocab_size != foreign.vocab_size:
        expected = foreign.vocab_size - foreign.records
        what = f"has {len(alphabet)} characters, the model has {expected}"
        raise DataError(source, what, "name the text that the model was trained on")
    config = _config(foreign, text, file)
    model = _model(config.model, foreign, file)
    run, alphabet_json = RunFolder(out), tokenizer.to_json()
    with new_folder_for_run(out):
        with machine_errors(out):
            make_folder(run.checkpoints.folder)
        write_file(run.tokenizer_path, alphabet_json.encode())
        state, provenance = TrainingState(step=foreign.step), provenance_json(config, alphabet_json)
        save_checkpoint(run, state, model, {}, provenance)
        write_file(run.config_path, config_file(config, str(run.config_path)))
    return run


def _config(foreign: Foreign, text: Path | None, file: Path) -> Config:
    """Return a configuration with the model's sizes, and nanoGPT's recipe for what is trained on."""
    records = {"records": "lines"} if foreign.records else {}
    data = {"source": "shakespeare" if text is None else str(text), **records}
    written = {"data": data, "model": dict(foreign.model), "train": {"optimizer": "adamw"}}
    try:
        return read_config(dump_yaml(written).encode(), PLACE)
    except UsageError as error:
        # The file has no lines.
        where = re.sub(rf"^{PLACE}(:\d+)?", "", str(error.where))
        raise CheckpointError(f"{file}{where}", error.what, error.mend) from None


def _model(config: ModelConfig, foreign: Foreign, file: Path) -> LanguageModel:
    """Return the model with its weights, or raise CheckpointError."""
    with torch.device("meta"):  # without memory: the sizes are those of a file
        model = build_model(config, foreign.vocab_size)
    weights = {name: tensor.float() for name, tensor in foreign.weights.items()}
    if foreign.records:
        order = torch.arange(1, foreign.vocab_size + 1) % foreign.vocab_size
        for name, dims in (model.per_character or {}).items():
            for dim in dims if name in weights else ():
                if weights[name].shape[dim : dim + 1] == (len(order),):
                    weights[name] = weights[name].index_select(dim, order)
    try:
        model.check_state(weights)
    except ValueError as error:
        raise CheckpointError(file, " ".join(str(error).split()), ANOTHER) from None
    model = build_model(config, foreign.vocab_size)
    model.load_state_dict(weights)
    return model


def gpt2_of(
    weights: dict[str, Tensor], path: Path, tied: bool
) -> tuple[dict[str, int | bool], dict[str, Tensor]]:
    """Return the sizes and options of a GPT-2, and its weights by charlm's names.

    Args:
        weights: By their names, as in `charlm.exchange.gpt2_names`.
        path: Where they come from, for messages.
        tied: Whether its head is its embedding.

    Raises CheckpointError if a tensor is missing or unexpected.
    """
    _, n_embd = shape_of(weights, "transformer.wte.weight", 2, path)
    block_size, _ = shape_of(weights, "transformer.wpe.weight", 2, path)
    blocks = {name.split(".")[2] for name in weights if name.startswith("transformer.h.")}
    if not 0 < len(blocks) <= MOST_LAYERS:
        raise CheckpointError(path, f"has {len(blocks)} blocks", ANOTHER)
    bias = "transformer.ln_f.bias" in weights
    with torch.device("meta"):  # for the names only
        one = GPT2(1, 1, n_layer=1, n_head=1, n_embd=1, bias=bias, tied=tied)
    names = {
        name.replace("blocks.0.", f"blocks.{i}.")
        for name in one.state_dict()
        for i in range(len(blocks))
    }
    theirs = {name: name_in_gpt2(name) for name in sorted(names)}
    missing = [name for name in theirs.values() if name not in weights]
    known = {*theirs.values(), *(name for name in weights if name.endswith(MASK))}
    if tied:
        known.add("lm_head.weight")
    if odd := missing or sorted(set(weights) - known):
        what = f"{'lacks' if missing else 'has'} {odd[0][:60]}"
        raise CheckpointError(path, what, "it is not a model of the program that it seems to be")
    sizes = {"n_layer": len(blocks), "n_embd": n_embd, "block_size": block_size}
    return {**sizes, "bias": bias, "tied": tied}, {our: weights[one] for our, one in theirs.items()}


def characters_of(text: Path, records: bool = False) -> tuple[str, int]:
    """Return the sorted characters of a text, and the length of its longest record.

    `records`: lines, without the spaces around them; the ends of lines are not counted.

    Raises DataError if it is not UTF-8 or has no characters.
    """
    with machine_errors(text):
        try:
            content = text.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(text, f"not UTF-8 at byte {error.start}", "convert it") from None
    lines = [line.strip() for line in content.splitlines()] if records else [content]
    characters = "".join(sorted(set().union(*lines)))
    if not characters:
        raise DataError(text, "has no characters", "name the text that the model was trained on")
    return characters, max(map(len, lines))
