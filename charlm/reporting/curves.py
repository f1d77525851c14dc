"""The curves of a run, from its log: loss, learning rate, gradient norm, speed.

A log of 100,000 steps becomes a few hundred points. Each stands for as many steps as the next: their
mean, and the lowest and the highest, so that no extreme is lost.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from charlm.errors import CheckpointError
from charlm.reporting.opened import Opened
from charlm.runs.metrics import read_metrics
from charlm.runs.mixture import expert_run
from charlm.storage.machine import is_gone
from charlm.text.batches import batches_of

Floats = npt.NDArray[np.float64]

POINTS = 200  # of a thinned series
TRIED = 16  # steps whose characters are counted, where each step reads another number

# What a record of a step may hold, by its name in the log.
OF_STEPS = ("loss_nats", "learning_rate", "grad_norm", "chars_per_second")


@dataclass(frozen=True)
class Series:
    """Numbers of a run in the order of its steps, (N,) each."""

    steps: Floats
    seconds: Floats  # of wall time since the run began
    values: Floats

    def __len__(self) -> int:
        return len(self.values)


class Thinned(NamedTuple):
    """A series in at most `POINTS` groups of consecutive steps, (M,) each."""

    steps: Floats  # the mean of a group, like the next two
    seconds: Floats
    mean: Floats
    low: Floats  # the lowest value in a group
    high: Floats
    size: npt.NDArray[np.int64]  # values in a group


@dataclass(frozen=True)
class Curves:
    """What a log holds of one run."""

    train: Series  # loss of each step's batch, in nats
    val: Series  # loss of each evaluation, in nats
    learning_rate: Series
    grad_norm: Series  # before clipping
    speed: Series  # characters (or bytes) a second
    setbacks: tuple[tuple[int, str], ...] = ()  # skipped updates and rollbacks: step and reason

    @property
    def best(self) -> tuple[int, float] | None:
        """The evaluation with the lowest loss: its step and the loss in nats."""
        if not len(self.val):
            return None
        at = int(self.val.values.argmin())
        return int(self.val.steps[at]), float(self.val.values[at])


@dataclass
class _Columns:
    """Lists that grow with the log; a value may be missing in any record."""

    steps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, record: Mapping[str, Any], value: object) -> None:
        if value is not None and math.isfinite(number := float(value)):  # type: ignore[arg-type]
            self.steps.append(float(record["step"]))
            self.seconds.append(float(record["seconds"]))
            self.values.append(number)

    def series(self) -> Series:
        return Series(*(np.array(one) for one in (self.steps, self.seconds, self.values)))


def read_curves(path: Path) -> Curves:
    """Read the curves in a metrics.jsonl; there are none without such a file.

    Raises CheckpointError if it is damaged.
    """
    steps = {name: _Columns() for name in OF_STEPS}
    val, setbacks = _Columns(), []
    if not is_gone(path):
        for number, record in enumerate(read_metrics(path), 1):
            try:
                kind = record["kind"]
                if kind == "train":
                    for name, columns in steps.items():
                        columns.add(record, record.get(name))
                elif kind == "eval" and record.get("split", "val") == "val":
                    val.add(record, record["loss_nats"])
                elif kind in ("skip", "rollback"):
                    setbacks.append((int(record["step"]), f"{kind}: {record['reason']}"))
            except (KeyError, TypeError, ValueError) as error:
                what = f"not a record of charlm ({type(error).__name__}: {error})"
                raise CheckpointError(f"{path}:{number}", what, "restore it") from None
    loss, rate, norm, speed = (steps[name].series() for name in OF_STEPS)
    return Curves(loss, val.series(), rate, norm, speed, tuple(setbacks))


def curves_of(opened: Opened) -> dict[str, Curves]:
    """Return the curves of a run under the name "", and of a mixture those of its experts by name.

    Without those that have fewer than two points, such as of a counted model. Raises CheckpointError
    if a log is damaged.
    """
    experts = filter(None, opened.config.training_runs())
    logs = {name: expert_run(opened.run, name).metrics_path for name in experts}
    logs = {"": opened.metrics_path, **logs}
    found = {name: read_curves(path) for name, path in logs.items()}
    return {name: one for name, one in found.items() if len(one.train) > 1 or len(one.val) > 1}


def chars_a_step(opened: Opened, expert: str = "") -> float | None:
    """Return how many characters a step reads; of records, about, as each step reads other ones.

    None for a model that is not trained in steps.
    """
    trained = opened.config.training_runs()
    if expert not in trained:
        return None
    config = trained[expert]
    block_size, batch_size = config.model.block_size, config.train.batch_size
    if opened.train.boundary is None:
        return float(block_size * batch_size)
    batches = batches_of(opened.train, block_size, batch_size, config.run.seed)
    return float(np.mean([batches.chars(step) for step in range(TRIED)]))


def thinned(series: Series, most: int = POINTS) -> Thinned:
    """Return a series in at most `most` groups of about as many consecutive steps."""
    size = len(series)
    edges = np.unique(np.linspace(0, size, min(most, size) + 1).round().astype(np.int64))
    first = edges[:-1]
    if not size:
        none = np.zeros(0)
        return Thinned(none, none, none, none, none, np.zeros(0, np.int64))
    count = np.diff(edges)
    return Thinned(
        np.add.reduceat(series.steps, first) / count,
        np.add.reduceat(series.seconds, first) / count,
        np.add.reduceat(series.values, first) / count,
        np.minimum.reduceat(series.values, first),
        np.maximum.reduceat(series.values, first),
        count,
    )


def extremes(series: Series, most: int = POINTS) -> Series:
    """Return at most `most` points of a series as they are: the lowest and highest of each group."""
    size = len(series)
    if size <= most:
        return series
    kept = {0, size - 1}
    for group in np.array_split(np.arange(size), max(1, (most - 2) // 2)):
        values = series.values[group]
        kept |= {int(group[values.argmin()]), int(group[values.argmax()])}
    at = np.array(sorted(kept))
    return Series(series.steps[at], series.seconds[at], series.values[at])
