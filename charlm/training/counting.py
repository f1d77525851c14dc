"""Learning by counting, in one step: n-grams, and context mixing."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from charlm.config import ContextMixingConfig, ModelConfig, NGramConfig
from charlm.config.memory import human_bytes, machine_bytes
from charlm.errors import MachineError, Phrase, Setting
from charlm.evaluation.unknown import mean_escape_nats
from charlm.models import LanguageModel, NGramModel
from charlm.models.counted_loss import choose_order, choosing_chars
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import Table, smooth
from charlm.runs import RunFolder
from charlm.runs.records import TrainRecord
from charlm.storage.atomic import scratch_folder
from charlm.text.tokens import Split
from charlm.training.learner import OneStepLearner, Progress, adding_up


class CountingLearner(OneStepLearner):
    """Learning a counted model."""

    def step(self) -> TrainRecord:
        """Count the training part.

        Its loss is that of the model on it; or, of a model that learns while it reads, that of each
        character before it was learned from.
        """
        job, train = self.job, self.job.corpus.splits["train"]
        started = time.perf_counter()
        chars, loss_nats = count_text(
            self.model, job.config.model, train, job.run, job.should_stop, job.progress
        )
        seconds = time.perf_counter() - started
        if loss_nats is None:
            loss_nats = job.score(train).loss_nats
        else:
            loss_nats += mean_escape_nats(train, self.model.vocab_size)
        self.state.step = 1
        self.state.seconds = job.clock.seconds()
        return TrainRecord(
            step=1,
            loss_nats=loss_nats,
            chars_per_second=chars / max(seconds, 1e-9),
            seconds=self.state.seconds,
        )


def count_text(
    model: LanguageModel,
    config: ModelConfig,
    ids: Split,
    run: RunFolder,
    should_stop: Callable[[], bool],
    progress: Progress = lambda what, done, total: None,
) -> tuple[int, float | None]:
    """Count a text into a counted model of a run.

    Returns how many characters were counted, and the loss of a model that learns while it reads.

    Data that does not fit into memory goes to disk, in the run folder.

    Raises:
        MachineError: The disk is full or fails, or the tables are larger than memory.
        Stopped: `should_stop` said so; the model is unchanged.
    """
    if isinstance(config, ContextMixingConfig):
        from charlm.models.context_mixing import (
            ContextMixingModel,  # the compiler takes a while to import
        )
        from charlm.models.view import classes_of

        mixing, classes = cast(ContextMixingModel, model), classes_of(run.tokenizer)
        counted = adding_up(progress, "counting", len(ids))
        return len(ids), mixing.fit(ids, classes, counted, should_stop)
    model, config = cast(NGramModel, model), cast(NGramConfig, config)
    ids = _counted(ids, config)
    with scratch_folder(run.path) as scratch:
        counts = count_ngrams(
            ids, model.vocab_size, model.order, scratch=scratch, should_stop=should_stop
        )
        tables = smooth(
            counts,
            config.smoothing,
            k=config.add_k,
            min_count=config.min_count,
            should_stop=should_stop,
        )
        model.set_tables(_that_fit(tables))
    return len(ids), None


def _counted(ids: Split, config: NGramConfig) -> Split:
    """Return the part of a text that is counted."""
    first = 0 if config.last_chars is None else max(0, len(ids) - config.last_chars)
    return ids.part(first, len(ids))


def with_chosen_order(
    config: NGramConfig,
    ids: Split,
    vocab_size: int,
    run: RunFolder,
    should_stop: Callable[[], bool],
) -> tuple[NGramConfig, int]:
    """Choose the order of an n-gram model on the end of the text that it will count.

    Data that does not fit into memory goes to disk, in the run folder.

    Returns:
        The configuration with a number for `order: auto`, and the characters it was chosen on.

    Raises:
        MachineError: The disk is full or fails.
        Stopped: `should_stop` said so.
    """
    ids = _counted(ids, config)
    with scratch_folder(run.path) as scratch:
        order = choose_order(
            ids,
            vocab_size,
            config.longest,
            config.smoothing,
            k=config.add_k,
            min_count=config.min_count,
            scratch=scratch,
            should_stop=should_stop,
        )
    assert order is not None, "refuse_short comes before"
    return config.model_copy(update={"order": order}), choosing_chars(len(ids))


def _that_fit(tables: Iterable[Table]) -> Iterator[Table]:
    """Pass tables on as long as they fit into memory."""
    needed = 0
    for k, table in enumerate(tables, start=1):
        needed += table.held_bytes
        if needed > machine_bytes():
            what = (
                f"the tables up to order {k} need {human_bytes(needed)} of memory and this machine"
            )
            what += f" has {human_bytes(machine_bytes())}"
            rare = Setting("model.min_count", 2)
            mend = Phrase("lower model.order, or leave rare n-grams out ({})", rare)
            raise MachineError("model.order", what, mend)
        yield table
