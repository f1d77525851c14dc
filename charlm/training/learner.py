"""What the loop drives: a learner does one step of a run, and says how much of the run is done.

Gradient descent (`gradients`), counting (`counting`) and joining experts (`joining`) are learners.
The loop evaluates, samples, saves, records and stops for all of them.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

from charlm.config import Config
from charlm.models import LanguageModel
from charlm.runs import RunFolder
from charlm.runs.records import Record
from charlm.runs.state import TrainingState
from charlm.text import Corpus, Tokenizer


@dataclass
class Clock:
    """The wall time of a run: resumes included, waits between them not.

    Args:
        began: When the run would have begun if it had never waited, by `time.perf_counter`.
        budget: Seconds that it may take; None: its steps are counted.
        reserved: Seconds of the budget that the last evaluation will take.
    """

    began: float
    budget: float | None = None
    reserved: float = 0.0

    @classmethod
    def of(cls, config: Config, began: float) -> "Clock":
        """Return the clock of a run that began at this time by `time.perf_counter`."""
        minutes = config.train.minutes
        return cls(began, None if minutes is None else 60 * minutes)

    def seconds(self) -> float:
        """Return how long the run has taken."""
        return time.perf_counter() - self.began

    def left(self) -> float:
        """Return what is left of the budget in seconds, before any reserve; 0 without a budget."""
        return 0.0 if self.budget is None else self.budget - self.seconds()

    def share(self) -> float:
        """Return the share of the budget that is spent."""
        assert self.budget is not None
        return self.seconds() / max(self.budget - self.reserved, 1e-3)

    def add(self, seconds: float) -> None:
        """Count time that was spent before a stop."""
        self.began -= seconds

    def restart(self, seconds: float) -> None:
        """Go on from so many seconds: the wait until now does not count."""
        self.began = time.perf_counter() - seconds


@dataclass(frozen=True)
class Job:
    """What a run is about; a loop and its learner share it.

    Args:
        config: What is asked for.
        run: The folder, locked by the caller.
        corpus: The text.
        tokenizer: Its alphabet.
        model: With its first weights, on its device.
        clock: Of the run.
        should_stop: Asked at every step, and often within long ones: save what can be, and end.
        should_save: Asked at every step: save, and go on. Its answer is used up.
    """

    config: Config
    run: RunFolder
    corpus: Corpus
    tokenizer: Tokenizer
    model: LanguageModel
    clock: Clock
    should_stop: Callable[[], bool] = lambda: False
    should_save: Callable[[], bool] = lambda: False


class Learner(ABC):
    """One way of learning. A checkpoint keeps its model, optimizers and state.

    Attributes:
        model: What learns.
        optimizers: By name; empty where nothing is learnt by gradients.
        state: Where the run is. A step counts itself here; the loop adds what it evaluated.
        total_steps: How many steps there are to be where steps are counted, for progress bars.
        compiled: Whether steps were compiled, if there were any: equal bits depend on it.
    """

    model: LanguageModel
    optimizers: Mapping[str, Optimizer]
    state: TrainingState
    total_steps: int
    compiled: bool | None = None

    @classmethod
    @abstractmethod
    def of(cls, job: Job) -> "Learner":
        """Return the learner of a run, at its beginning."""

    @property
    def ready(self) -> bool:
        """Whether there is a model worth evaluating and saving: else the loop goes on to a step."""
        return True

    @abstractmethod
    def spent(self) -> float:
        """Return the share of the run that is done; at 1 it ends."""

    def prepare(self) -> Iterator[Record]:
        """Do what may take long before the first step, if there is one to do.

        Its records are passed on and not logged.

        Raises:
            Stopped: It was asked to stop.
        """
        yield from ()

    @abstractmethod
    def step(self) -> Record:
        """Do one step.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite, and the weights are as before.
            DataError: The text became shorter.
            Stopped: It was asked to stop, and will do the step again from its start.
        """
