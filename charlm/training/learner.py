"""What the loop drives: a learner does one step of a run, and says how much of the run is done.

Gradient descent (`gradients`), counting (`counting`) and joining experts (`joining`) are learners.
The loop evaluates, samples, saves, records and stops for all of them.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch.optim import Optimizer

from charlm.config import Config
from charlm.models import LanguageModel
from charlm.models.device import choose_device
from charlm.runs import RunFolder
from charlm.runs.records import Record
from charlm.runs.state import TrainingState
from charlm.text import Corpus, Tokenizer


@dataclass
class Clock:
    """The wall time of a run, without the waits between resumes.

    Args:
        began: When the run would have begun if it had never waited, by `time.perf_counter`.
        budget: Seconds that it may take; None: its steps are counted.
        reserved: Seconds of the budget that the last evaluation will take.
    """

    began: float
    budget: float | None = None
    reserved: float = 0.0

    def seconds(self) -> float:
        """Return how long the run has taken."""
        return time.perf_counter() - self.began

    def left(self) -> float:
        """Return what is left of the budget, in seconds; 0 without one."""
        return 0.0 if self.budget is None else self.budget - self.seconds()

    def share(self) -> float:
        """Return the share of the budget that is spent."""
        assert self.budget is not None
        return self.seconds() / max(self.budget - self.reserved, 1e-3)

    def add(self, seconds: float) -> None:
        """Count time that was spent before a stop; what is below 0 was a wait."""
        self.began -= seconds


@dataclass
class Job:
    """What a run is about; its loop and learner share it.

    Args:
        config: What is asked for.
        run: The folder, locked by the caller.
        corpus: The text.
        tokenizer: Its alphabet.
        model: With its first weights; moved to the configured device.
        should_stop: Asked at every step, and often within long ones: save what can be, and end.
        should_save: Asked at every step: save, and go on. Its answer is used up.
        began: When the run began, by `time.perf_counter`.
    """

    config: Config
    run: RunFolder
    corpus: Corpus
    tokenizer: Tokenizer
    model: LanguageModel
    should_stop: Callable[[], bool] = lambda: False
    should_save: Callable[[], bool] = lambda: False
    began: float = field(default_factory=lambda: time.perf_counter())

    def __post_init__(self) -> None:
        minutes = self.config.train.minutes
        self.clock = Clock(self.began, None if minutes is None else 60 * minutes)
        self.model = self.model.to(choose_device(self.config.run.device))


class Learner(ABC):
    """One way of learning: what the `learner` of a kind of model returns, called with a `Job`.

    A checkpoint keeps its model, the optimizers' and its own state.

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
            NonFiniteError: A loss or gradient is NaN or infinite; the weights are as before.
            DataError: The text became shorter.
            Stopped: It was asked to stop, and will do the step again from its start.
        """
