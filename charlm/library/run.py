"""A run, opened from Python."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charlm.config import Config
from charlm.errors import MachineError, UsageError
from charlm.evaluation.given import adaptive_reader, open_part
from charlm.evaluation.protocols import Name, choose
from charlm.evaluation.score import Score
from charlm.evaluation.scoring import score_text, utf8_lengths
from charlm.runs import RunFolder, find_run
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.load import load_model
from charlm.runs.metrics import read_metrics
from charlm.runs.records import EvalRecord, Record, record_of
from charlm.storage import write_file
from charlm.text import Tokenizer

if TYPE_CHECKING:
    from charlm.library.model import Model


class Run:
    """A run's folder: its configuration, its metrics and its checkpoints.

    >>> run = charlm.open("runs/gpt")
    >>> run.config.model.n_layer, run.best_loss
    >>> [record.step for record in run.metrics() if record.kind == "eval"]
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def config(self) -> Config:
        """The complete configuration; CheckpointError if it is unreadable."""
        return self.folder.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The alphabet; CheckpointError if it is unreadable."""
        return self.folder.tokenizer

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that are kept, oldest first; MachineError if they cannot be listed."""
        return self.folder.checkpoints.all()

    @property
    def best_loss(self) -> float | None:
        """The lowest validation loss of a checkpoint, in nats; None if there is none."""
        best = self.folder.checkpoints.best()
        return None if best is None else best.loss

    def load(self, checkpoint: str | int = "best", device: str = "auto") -> "Model":
        """Load the model of a checkpoint: `best`, `last`, or that of a step; see `charlm.load`.

        >>> charlm.open("runs/gpt").load("last").step
        """
        from charlm.library.model import Model

        return Model(load_model(self.folder, str(checkpoint), device))

    def metrics(self) -> list[Record]:
        """Return the records of the run in order: a `TrainRecord` for each step, an `EvalRecord`, ...

        >>> [one.loss_nats for one in charlm.open("runs/gpt").metrics() if one.kind == "eval"]

        Raises CheckpointError if the log is damaged.
        """
        return [record_of(one) for one in read_metrics(self.folder.metrics_path)]

    def frame(self) -> Any:
        """Return the metrics as a table of pandas or, where that is not installed, of Polars.

        It has a row for each record, and a column for each of their fields. Raises MachineError if neither
        is installed.

        >>> frame = charlm.open("runs/gpt").frame()
        >>> frame[["step", "loss_nats"]]
        """
        rows = [one.as_json() for one in self.metrics()]
        try:
            import pandas

            return pandas.DataFrame(rows)
        except ImportError:
            pass
        try:
            import polars

            return polars.DataFrame(rows, infer_schema_length=None)
        except ImportError:
            what = "neither pandas nor polars is installed"
            raise MachineError("Run.frame()", what, "pip install pandas") from None

    def evaluate(
        self,
        split: str = "val",
        protocol: Name = "windows",
        *,
        checkpoint: str | int = "best",
        device: str = "auto",
        block_size: int | None = None,
        stride: int | None = None,
    ) -> Score:
        """Score a part of the run's text, as `charlm eval` does.

        >>> score = charlm.open("runs/gpt").evaluate(protocol="sliding", stride=8)
        >>> score.loss_nats, score.interval

        Args:
            split: `train`, `val` or `test`.
            protocol: How much context each character has: see `charlm.evaluation.protocols`.
            checkpoint: `best`, `last`, or a step.
            device: `auto`, `cpu`, `cuda` or `mps`.
            block_size: Characters in a window; None: as many as the model takes.
            stride: Characters from one window to the next, under `sliding`.

        Raises:
            UsageError: The model does not support the protocol.
            DataError: There is no such part.
            CheckpointError: The checkpoint or the text is missing or damaged.
        """
        if split not in ("train", "val", "test"):
            raise UsageError("split", f"unknown: {split!r}", "use 'train', 'val' or 'test'")
        saved = load_model(self.folder, str(checkpoint), device)
        part, _ = open_part(self.folder, split)
        cut = choose(saved.model, protocol, block_size, stride)
        reader = adaptive_reader(saved) if protocol == "adaptive" else None
        sizes = utf8_lengths(saved.tokenizer)
        return score_text(saved.model, part, cut, reader=reader, byte_lengths=sizes)

    def report(
        self,
        out: str | Path | None = None,
        *,
        passage: str | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> Path:
        """Write a page about the run, to open in a browser, and return its path.

        It needs `pip install 'charlm[report]'` and takes some seconds to minutes.

        >>> charlm.open("runs/gpt").report("gpt.html")

        Args:
            out: The file, whose name ends in .html; one that is there is replaced. None: `report.html` in the run's folder.
            passage: The text whose surprise is shown. None: the beginning of the validation part.
            seed: Of the samples.
            device: `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            UsageError: The file is named as another kind than a page.
            MachineError: What a report needs is not installed, or the disk refuses.
            CheckpointError: The run or its best checkpoint is missing or damaged.
        """
        from charlm.reporting.extra import check_installed, check_name

        path = self.folder.report_path if out is None else Path(out)
        check_name(path, str(path))
        check_installed()
        from charlm.reporting.opened import open_runs
        from charlm.reporting.page import page_of
        from charlm.reporting.passage import passage_from, passage_of

        (opened,) = open_runs([self.path], device)
        opened.model.prepare()
        chosen = passage_of(opened) if passage is None else passage_from(opened, passage)
        write_file(path, page_of([opened], chosen, seed).encode())
        return path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the model and the validation losses."""
        facts = [("run", str(self.path)), ("model", self._in_words)]
        evaluations = [one for one in self.metrics() if isinstance(one, EvalRecord)]
        for one in _some(evaluations, 8):
            best = " (best)" if one.best else ""
            facts.append((f"step {one.step:,}", f"{one.loss_nats:.4f} nats{best}"))
        rows = (f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in facts)
        return f"<table>{''.join(rows)}</table>"

    @property
    def _in_words(self) -> str:
        return self.config.model.described(self.tokenizer.vocab_size)


def open_run(run: str | Path | Run | None = None) -> Run:
    """Open a run's folder; None: the newest under `runs/`. CheckpointError if there is no run there.

    >>> charlm.open("runs/gpt").best_loss
    """
    if isinstance(run, Run):
        return run
    return Run(find_run(None if run is None else Path(run)))


def _some(evaluations: Sequence[EvalRecord], most: int) -> list[EvalRecord]:
    """Return at most so many, spread evenly, the last among them."""
    step = -(-len(evaluations) // most) or 1
    return list(evaluations[::-1][::step][::-1])
