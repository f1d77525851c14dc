"""A model card: what a model is, how good it is, and how to load it, in Markdown."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charlm import __version__
from charlm.errors import CharlmError
from charlm.runs.load import SavedModel
from charlm.text import open_corpus


@dataclass(frozen=True)
class Facts:
    """What a card says of a form besides the model: how to load it, and how exact it is."""

    form: str  # in words
    loading: str  # code
    language: str  # of the code
    exact: str  # how the logits differ from charlm's


def card(saved: SavedModel, facts: Facts) -> str:
    """Return the card of an exported model. The text it learned from is named by its SHA-256 only."""
    return "\n".join(_lines(saved, facts)) + "\n"


def _lines(saved: SavedModel, facts: Facts) -> Iterator[str]:
    symbols = saved.tokenizer.vocab_size
    described = saved.config.model.described(symbols)
    yield from ("---", "license: unknown  # name the license that you share it under", "---", "")
    yield from (f"# A character-level language model: {described}", "")
    yield f"Exported by charlm {__version__} {facts.form}, after {saved.step:,} updates."
    yield from ("", "| | |", "|---|---|")
    for name, value in _table(saved):
        yield f"| {name} | {value} |"
    yield from ("", "## Load it", "", f"```{facts.language}", facts.loading, "```", "")
    yield from (facts.exact, "")


def _table(saved: SavedModel) -> Iterator[tuple[str, str]]:
    unit = "bytes" if saved.tokenizer.unit == "bytes" else "characters"
    yield "alphabet", f"{saved.tokenizer.vocab_size:,} {unit}"
    parameters = saved.config.model.parameter_count(saved.tokenizer.vocab_size)
    yield "parameters", f"{parameters:,}"
    block = f"{saved.model.block_size:,} {unit}"
    endless = saved.model.memory is None
    yield "context", f"any length: a state, trained in windows of {block}" if endless else block
    checkpoint = next((c for c in saved.run.checkpoints.all() if c.step == saved.step), None)
    if checkpoint and checkpoint.loss is not None:
        length = saved.config.model.block_size
        protocol = f"in windows of {length}, the validation part of its text"
        yield "loss", f"{checkpoint.loss:.4f} nats a {unit[:-1]} ({protocol})"
    for name, value in text_facts(saved).items():
        yield name, str(value)


def text_facts(saved: SavedModel) -> dict[str, Any]:
    """Return what may be said of the text that a model learned from: its hash and its size.

    Nothing if the run has no text, or has lost it.
    """
    try:
        facts = open_corpus(saved.run.text_path).facts
    except CharlmError:
        return {}
    sizes = {name: last - first for name, (first, last) in facts["splits"].items()}
    return {
        "text, SHA-256": facts["source_sha256"],
        "trained on": f"{sizes['train']:,} {'bytes' if facts['unit'] == 'bytes' else 'characters'}",
    }


def as_json(saved: SavedModel) -> str:
    """Return the configuration of the model, without where its text was."""
    config = without_places(saved.config.model_dump(mode="json"))
    return json.dumps(config, indent=1) + "\n"


def without_places(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the folders of its maker: of a path, only the last name."""
    data = config["data"] | {"source": _last(config["data"]["source"])}
    found = config | {"data": data, "run": config["run"] | {"out": None}}
    found["train"] = config["train"] | {"init_from": None}
    if experts := config["model"].get("experts"):
        named = {name: _expert_without_places(one) for name, one in experts.items()}
        found["model"] = config["model"] | {"experts": named}
    return found


def _expert_without_places(expert: dict[str, Any]) -> dict[str, Any]:
    run = expert["run"] and _last(expert["run"])
    return expert | {"run": run, "train": expert["train"] | {"init_from": None}}


def _last(place: str | Path) -> str:
    return Path(str(place)).name
