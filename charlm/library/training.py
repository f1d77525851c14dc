"""Train a model from Python."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from charlm.config import Config, changed, dump_yaml, load_config, read_config
from charlm.errors import Phrase, Setting, UsageError
from charlm.library.interrupts import Interrupt, held_back
from charlm.library.overrides import as_changes
from charlm.library.run import Run
from charlm.library.texts import Text, as_source
from charlm.lifecycle.begin import PreparedRun
from charlm.lifecycle.resume import commit_resume, resumed_config
from charlm.lifecycle.start import Start, Watcher, begun, resumed
from charlm.models import build_model
from charlm.runs import RunFolder, find_run
from charlm.runs.records import EvalRecord, Record, TrainRecord
from charlm.runs.requests import take_request
from charlm.training import Job, TrainingLoop

Configuration = str | Path | Config | Mapping[str, Any]


def train(
    config: Configuration | None = None,
    text: Text | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_record: Callable[[Record], object] | None = None,
    progress: bool = False,
    **overrides: Any,
) -> Run:
    """Train a model and return its run.

    >>> run = charlm.train("bigram", "to be or not to be " * 99, train={"max_steps": 50})
    >>> charlm.load(run).generate("to", seed=1)

    Args:
        config: The name of a preset (`gpt`, `ngram`, `names`, ...), the path of a YAML file, a
            dictionary with its content, or a `Config`. To resume: None, for the run's own.
        text: The text as a string; or the path of a file or folder; or records, such as a list of
            names. None: the text that the configuration names.
        out: The run's folder. None: the next free name under `runs/`; to resume, the newest run.
        resume: Continue a run: it ends with the same bits as if it had never been stopped.
        on_record: Called with each record of the run as it comes: a `TrainRecord` for each step, an
            `EvalRecord` for each evaluation, and so on; see `charlm.runs.records`.
        progress: Show a bar, in a terminal or a notebook.
        overrides: Keys of the configuration, by section: `train={"max_steps": 100}`,
            `model={"n_layer": 2}`. For short, `minutes`, `seed` and `device`.

    Raises:
        UsageError: A setting is wrong, or the folder holds a run.
        DataError: The text cannot be used.
        CheckpointError: A run to resume, or to start from, is missing or damaged.
        MachineError: The disk, the memory or the device refuses.
        NonFiniteError: The loss or a weight became NaN or infinite.
        KeyboardInterrupt: It was interrupted. The current step is finished and saved first.
    """
    began = time.perf_counter()
    if config is None and not resume:
        raise UsageError("config", "missing", "name a preset, such as 'gpt'")
    if resume and not (config is None or isinstance(config, str | Path)):
        what = f"to resume with, got a {type(config).__name__}"
        raise UsageError("config", what, "leave it out, or name a preset or a file")
    with held_back() as interrupt, as_source(text) as source:
        changes = [*source, *as_changes(overrides)]
        watcher = _Watcher(interrupt)
        if resume:
            run = find_run(None if out is None else Path(out))
            opened = _resumed(run, None if config is None else str(config), changes, watcher)
        else:
            opened = _begun(config, out, changes, watcher, began)
        with opened as prepared:
            _train(prepared, watcher, on_record, progress, began)
    return Run(prepared.run)


class _Watcher(Watcher):
    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt

    def should_stop(self) -> bool:
        return self.interrupt()

    def at_once(self) -> AbstractContextManager[None]:
        return self.interrupt.at_once()


def _begun(
    config: Any, out: str | Path | None, changes: list[str], watcher: Watcher, began: float
) -> AbstractContextManager[PreparedRun]:
    chosen = _alone(_configuration(config, changes))
    named = isinstance(config, str | Path)
    name = Path(config).stem if named else chosen.model.type
    place = None if out is None else Path(out)
    return begun(Start(chosen, name, place, changes, began), watcher)


def _resumed(
    run: RunFolder, given: str | None, changes: list[str], watcher: Watcher
) -> AbstractContextManager[PreparedRun]:
    return resumed(run, lambda: _alone(resumed_config(run, given, changes)), watcher)


def _alone(config: Config) -> Config:
    """Return the configuration, or raise UsageError if several processes were started to share it."""
    size = os.environ.get("WORLD_SIZE") or "1"
    if config.train.parallel != "none" and size != "1":
        what = f"WORLD_SIZE is {size!r}, and charlm.train trains in one process"
        mend = Phrase(
            "start torchrun with -m charlm train, or change {}", Setting("train.parallel")
        )
        raise UsageError("environment", what, mend)
    return config


def _configuration(config: Configuration, changes: list[str]) -> Config:
    """Return a configuration with changes, or raise UsageError."""
    if isinstance(config, Config):
        return changed(config, changes)
    if isinstance(config, Mapping):
        return read_config(dump_yaml(dict(config)).encode(), "the configuration", changes)
    return load_config(str(config), changes)


def _train(
    prepared: PreparedRun,
    watcher: Watcher,
    on_record: Callable[[Record], object] | None,
    progress: bool,
    began: float,
) -> None:
    """Train a run to its end, or to an interrupt."""
    config, tokenizer = prepared.config, prepared.tokenizer
    model = build_model(config.model, tokenizer.vocab_size, config.run.seed)
    job = Job(
        config,
        prepared.run,
        prepared.corpus,
        tokenizer,
        model,
        watcher.should_stop,
        lambda: take_request(prepared.run),
        began,
    )
    loop = TrainingLoop(job, prepared.checkpoint)
    commit_resume(prepared)
    with _bar(loop, progress) as show:
        for record in loop.records():
            show(record)
            if on_record:
                on_record(record)


@contextmanager
def _bar(loop: TrainingLoop, wanted: bool) -> Iterator[Callable[[Record], None]]:
    """Give what shows a record in tqdm's bar for the place where it runs: a terminal or a notebook."""
    budget, steps = loop.clock.budget, loop.learner.total_steps
    timed = budget is not None
    bar = tqdm(
        total=round(budget) if budget is not None else steps,
        initial=int(loop.state.seconds) if timed else loop.state.step,
        unit="s" if timed else "step",
        disable=not wanted,
    )
    losses: dict[str, str] = {}

    def show(record: Record) -> None:
        if isinstance(record, TrainRecord | EvalRecord):
            losses["train" if isinstance(record, TrainRecord) else "val"] = (
                f"{record.loss_nats:.4f}"
            )
            bar.set_postfix(losses, refresh=False)
            bar.update((int(record.seconds) if timed else record.step) - bar.n)

    with bar:
        yield show
