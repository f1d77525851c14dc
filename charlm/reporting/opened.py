"""A run opened for a report: its best weights, its text, its log."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from charlm.config import Config
from charlm.evaluation.ladder import FACTS, Ladder, kept
from charlm.models import LanguageModel
from charlm.runs import RunFolder, find_run
from charlm.runs.load import SavedModel, load_model
from charlm.text import Corpus, Tokenizer, open_corpus
from charlm.text.tokens import Split


@dataclass(frozen=True)
class Opened:
    """A run with its best checkpoint and its text."""

    saved: SavedModel
    corpus: Corpus
    name: str  # of its folder; of several runs, no two have the same

    @property
    def run(self) -> RunFolder:
        """Its folder."""
        return self.saved.run

    @property
    def config(self) -> Config:
        """Its configuration."""
        return self.saved.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Its alphabet."""
        return self.saved.tokenizer

    @property
    def model(self) -> LanguageModel:
        """Its model, in evaluation mode."""
        return self.saved.model

    @property
    def metrics_path(self) -> Path:
        """Its log; see `charlm.runs.metrics.read_metrics`."""
        return self.run.metrics_path

    @property
    def train(self) -> Split:
        """The training part of its text."""
        return self.corpus.splits["train"]

    @property
    def val(self) -> Split | None:
        """The validation part; None if there is nothing to predict in it."""
        part = self.corpus.splits["val"]
        return part if len(part) > 1 else None

    @property
    def of_records(self) -> bool:
        """Whether its text is a list of records."""
        return self.tokenizer.boundary is not None

    @property
    def symbols(self) -> str:
        """What its text consists of, in the plural: `characters` or `bytes`."""
        return "characters" if self.tokenizer.unit == "chars" else self.tokenizer.unit

    @cached_property
    def ladder(self) -> Ladder | None:
        """The baselines that the run has kept, scored as its evaluations are; None if there are none."""
        made_of = {key: self.corpus.facts.get(key) for key in FACTS}
        made_of["block_size"] = self.config.model.block_size
        made_of["max_chars"] = self.config.eval.max_chars
        return kept(self.run.baselines_path, made_of)


def open_run(run: RunFolder, device: str = "auto", name: str = "") -> Opened:
    """Open a run at its best checkpoint, on a device.

    Raises:
        CheckpointError: It has no sound checkpoint, or has lost its text.
        DataError: Its text is cut off.
        MachineError: The device is not there.
    """
    saved = load_model(run, "best", device)
    return Opened(saved, open_corpus(run.text_path), name or named([run])[0])


def open_runs(places: Sequence[Path | None], device: str = "auto") -> list[Opened]:
    """Open the runs in these places, the main one first; None is the newest run. See `open_run`."""
    runs = [find_run(place) for place in places]
    return [open_run(run, device, name) for run, name in zip(runs, named(runs), strict=True)]


def named(runs: Sequence[RunFolder]) -> list[str]:
    """Return a short name for each run, no two equal: that of its folder, or its path."""
    names = [run.path.resolve().name for run in runs]
    paths = [
        name if names.count(name) == 1 else str(run.path)
        for run, name in zip(runs, names, strict=True)
    ]
    return [
        path if paths.count(path) == 1 else f"{path} ({paths[: i + 1].count(path)})"
        for i, path in enumerate(paths)
    ]
