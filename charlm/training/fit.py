"""Fitting a counted model: the same run as any other, done in one step."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torch.optim import Optimizer

from charlm.config import NGramConfig
from charlm.config.memory import human_bytes, machine_bytes
from charlm.errors import MachineError
from charlm.evaluation import score_windows
from charlm.models import NGramModel
from charlm.models.counts import count_ngrams
from charlm.models.ngram import BYTES_A_GRAM
from charlm.models.smoothing import Table, smooth
from charlm.runs import RunFolder
from charlm.storage.atomic import scratch_folder
from charlm.text.tokens import Split
from charlm.training.loop import Record, Trainer


class Fitter(Trainer):
    """A run of a counted model: before its one step it knows nothing, after it everything."""

    @property
    def total_steps(self) -> int:
        """One: the fit."""
        return 1

    def _optimizers(self) -> dict[str, Optimizer]:
        return {}

    def _prepare(self) -> None:
        model, asked = self.model, self.config.model
        if not (isinstance(model, NGramModel) and isinstance(asked, NGramConfig)):
            raise TypeError(f"a model of type {asked.type} is trained, not fitted")
        self.ngram, self.asked = model, asked

    def _spent(self) -> float:
        return float(self.state.step)

    def _evaluation_due(self, last: bool) -> bool:
        # What is not fitted yet is no model of the text, and may score better on a strange one.
        return self.state.step > 0 and super()._evaluation_due(last)

    def _save_due(self, ending: bool) -> bool:
        return self.state.step > 0 and super()._save_due(ending)

    def _step(self) -> Record:
        """Count the training part; the loss is on that same part, which a memory knows well."""
        started = time.perf_counter()
        chars = fit_ngram(self.ngram, self.asked, self.train, self.run, self.should_stop)
        seconds = time.perf_counter() - started
        score = score_windows(
            self.model,
            self.train,
            self.asked.block_size,
            max_chars=self.config.eval.max_chars,
            should_stop=self.should_stop,
        )
        self.state.step = 1
        self.state.seconds = time.perf_counter() - self.began
        return {
            "kind": "train",
            "step": 1,
            "loss_nats": score.loss_nats,
            "chars_per_second": chars / max(seconds, 1e-9),
            "seconds": self.state.seconds,
        }


def fit_ngram(
    model: NGramModel,
    config: NGramConfig,
    ids: Split,
    run: RunFolder,
    should_stop: Callable[[], bool],
) -> int:
    """Count a text into a model; what does not fit into memory goes to the run folder's disk.

    Args:
        model: Takes the tables, which must fit.
        config: Its order and smoothing.
        ids: The text.
        run: Whose disk to use.
        should_stop: Called often; where it says so, the model is what it was.

    Returns:
        How many characters were counted.

    Raises:
        Stopped: `should_stop` said so.
        MachineError: The disk is too small or refuses, or the tables are larger than memory.
    """
    if config.last_chars is not None:
        ids = replace(ids, start=max(ids.start, ids.stop - config.last_chars))
    with scratch_folder(run.path) as scratch:
        counts = count_ngrams(
            ids, model.vocab_size, config.order, scratch=scratch, should_stop=should_stop
        )
        tables = smooth(
            counts,
            config.smoothing,
            k=config.add_k,
            min_count=config.min_count,
            should_stop=should_stop,
        )
        model.set_tables(_that_fit(tables))
    return len(ids)


def _that_fit(tables: Iterable[Table]) -> Iterator[Table]:
    """Pass tables on as long as this machine can hold them all."""
    needed = 0
    for k, table in enumerate(tables, start=1):
        needed += BYTES_A_GRAM * len(table.keys)
        if needed > machine_bytes():
            raise MachineError(
                f"model.order: the tables up to order {k} need {human_bytes(needed)} of memory and "
                f"this machine has {human_bytes(machine_bytes())}; lower model.order, or leave "
                "rare n-grams out (model.min_count=2)"
            )
        yield table
