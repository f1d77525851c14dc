"""From what a run is about to the loop that trains it."""

import time
from collections.abc import Callable

from charlm.config import Config
from charlm.models import LanguageModel
from charlm.models.device import choose_device
from charlm.models.registry import kind_for
from charlm.runs import RunFolder
from charlm.runs.checkpoints import Checkpoint
from charlm.text import Corpus, Tokenizer
from charlm.training.learner import Clock, Job, Learner
from charlm.training.loop import TrainingLoop


def training_loop(
    config: Config,
    run: RunFolder,
    corpus: Corpus,
    tokenizer: Tokenizer,
    model: LanguageModel,
    *,
    checkpoint: Checkpoint | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    should_save: Callable[[], bool] = lambda: False,
    began: float | None = None,
) -> TrainingLoop:
    """Return the loop that trains a run.

    Args:
        config: What is asked for.
        run: The folder, locked by the caller.
        corpus: The text.
        tokenizer: Its alphabet.
        model: With its first weights.
        checkpoint: Where to continue from; None starts at the beginning.
        should_stop: See `Job`.
        should_save: See `Job`.
        began: When the run began by `time.perf_counter`; None: now.
    """
    clock = Clock.of(config, time.perf_counter() if began is None else began)
    model = model.to(choose_device(config.run.device))
    job = Job(config, run, corpus, tokenizer, model, clock, should_stop, should_save)
    learner: type[Learner] = kind_for(config.model).find("learner")
    return TrainingLoop(job, learner.of(job), checkpoint)
