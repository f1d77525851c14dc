"""The interface between the training loop and a learner.

A learner does one step of a run at a time, by gradients, by counting, or by joining experts, and
reports how much of the run is done. The loop evaluates, samples, saves, records and stops.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch.optim import Optimizer

from charlm.config import Config
from charlm.evaluation import Score, score_windows
from charlm.models import LanguageModel
from charlm.models.device import choose_device
from charlm.runs import RunFolder
from charlm.runs.records import Record
from charlm.runs.state import TrainingState
from charlm.text import Corpus, Tokenizer
from charlm.text.tokens import Ids


@dataclass
class Clock:
    """The wall time of a run in seconds, without the time between a stop and a resume."""

    began: float  # its start by `time.perf_counter`, moved forward by the length of all stops
    budget: float | None = None  # how long it may take; None: a number of steps
    reserved: float = 0.0  # part of the budget that the last evaluation will take

    def seconds(self) -> float:
        """Return how long the run has taken so far."""
        return time.perf_counter() - self.began

    def left(self) -> float:
        """Return the seconds left of the budget; 0 without one."""
        return 0.0 if self.budget is None else self.budget - self.seconds()

    def share(self) -> float | None:
        """Return the share of the budget that is spent; None without one."""
        if self.budget is None:
            return None
        return self.seconds() / max(self.budget - self.reserved, 1e-3)

    def add(self, seconds: float) -> None:
        """Add time from before a stop; negative time removes a wait."""
        self.began -= seconds


@dataclass
class Job:
    """The parts of a run, shared by its loop and its learner.

    Both functions are called at every step, `should_stop` also during long ones: if it returns true,
    the run is saved and ends. `should_save` returns true once for each request to save and continue.
    """

    config: Config
    run: RunFolder  # locked by the caller
    corpus: Corpus
    tokenizer: Tokenizer
    model: LanguageModel  # with its first weights; it is moved to the configured device
    should_stop: Callable[[], bool] = lambda: False
    should_save: Callable[[], bool] = lambda: False
    began: float = field(default_factory=lambda: time.perf_counter())

    def __post_init__(self) -> None:
        minutes = self.config.train.minutes
        self.clock = Clock(self.began, None if minutes is None else 60 * minutes)
        self.model = self.model.to(choose_device(self.config.run.device))

    def score(self, part: Ids) -> Score:
        """Score the model on a part of the text, or raise Stopped."""
        length, most = self.config.model.block_size, self.config.eval.max_chars
        return score_windows(self.model, part, length, max_chars=most, should_stop=self.should_stop)


class Learner(ABC):
    """One way of learning. `charlm.models.registry` names that of each kind of model.

    A checkpoint keeps the weights of `model`, and the state of the optimizers and of training.
    """

    model: LanguageModel
    optimizers: Mapping[str, Optimizer]  # by name; empty without gradients
    state: TrainingState  # `step` counts the step, the loop the rest
    total_steps: int  # of the run, for progress bars
    compiled: bool | None = (
        None  # whether steps are compiled, which the bits depend on; None: no step
    )

    @property
    def ready(self) -> bool:
        """Whether the model is worth evaluating and saving yet."""
        return True

    @abstractmethod
    def spent(self) -> float:
        """Return the share of the run that is done; the run ends at 1."""

    def prepare(self) -> Iterator[Record]:
        """Do long work before the first step; yield records, or raise Stopped."""
        yield from ()

    @abstractmethod
    def step(self) -> Record:
        """Do one step.

        Raises:
            NonFiniteError: The loss or a gradient is NaN or infinite; the weights are unchanged.
            DataError: The text became shorter.
            Stopped: `should_stop` said so; the step was not done.
        """


class OneStepLearner(Learner):
    """A learner with a single step; before it there is no model worth saving."""

    optimizers: Mapping[str, Optimizer] = {}
    total_steps = 1

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = job.model
        self.state = TrainingState()

    @property
    def ready(self) -> bool:
        """Whether the step is done."""
        return self.state.step > 0

    def spent(self) -> float:
        """Return 1 once the step is done."""
        return float(self.state.step)
