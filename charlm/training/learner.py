"""The interface between the training loop and a learner.

A learner does one step of a run at a time, by gradients, by counting, or by joining experts, and
reports how much of the run is done. The loop evaluates, samples, saves, records and stops.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.optim import Optimizer

from charlm.config import Config
from charlm.errors import Stopped, check_stop
from charlm.evaluation import Score
from charlm.evaluation.scoring import score_of_passes, sums_of_passes
from charlm.models import LanguageModel
from charlm.models.device import choose_device
from charlm.runs import RunFolder
from charlm.runs.records import Record
from charlm.runs.state import TrainingState
from charlm.sampling import (
    CONFIGURED,
    Context,
    encode_prompt,
    generate,
    settings_of,
)
from charlm.text import Corpus, Tokenizer
from charlm.text.tokenizer import BOUNDARY
from charlm.text.tokens import Ids
from charlm.training.ranks import ONE, Ranks, in_turn


@dataclass
class Clock:
    """The wall time of a run in seconds, without the time between a stop and a resume."""

    began: float  # its start by `time.perf_counter`, moved forward by the length of all stops
    budget: float | None = None  # how long it may take; None: a number of steps
    reserved: float = 0.0  # part of the budget that the last evaluation will take
    before: float = 0.0  # seconds before the first step: baselines, an evaluation, compiling
    told: float | None = None  # the share that counts for all processes, in several

    def seconds(self) -> float:
        """Return how long the run has taken so far."""
        return time.perf_counter() - self.began

    def left(self) -> float:
        """Return the seconds left of the budget; 0 without one."""
        return 0.0 if self.budget is None else self.budget - self.seconds()

    def share(self) -> float | None:
        """Return the share of the budget for steps that is spent; None without a budget."""
        if self.budget is None or self.told is not None:
            return self.told
        return (self.seconds() - self.before) / max(self.budget - self.reserved - self.before, 1e-3)

    def is_over(self, coming: float) -> bool:
        """Tell whether a step that takes `coming` seconds would mostly be over the budget."""
        late = self.seconds() + coming / 2 + self.reserved
        return self.budget is not None and late >= self.budget

    def add(self, seconds: float) -> None:
        """Add time from before a stop; negative time removes a wait."""
        self.began -= seconds


EVALUATION = 0.1  # share of a budget that an evaluation may take
TRIED = 2048  # characters scored to measure how long that takes


Progress = Callable[[str, int, int], None]  # what is being done; how much of it is, of how much


def adding_up(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """Return a function that is called with how much was done since the last call."""
    done = 0

    def add(more: int) -> None:
        nonlocal done
        done += more
        progress(what, done, total)

    return add


@dataclass
class Job:
    """The parts of a run, shared by its loop and its learner.

    `should_stop` and `should_save` are called at every step, `should_stop` also during long ones: if it
    returns true, the run is saved and ends. `should_save` returns true once for each request to save
    and continue. `progress` is called during long steps.
    """

    config: Config
    run: RunFolder  # locked by the caller
    corpus: Corpus
    tokenizer: Tokenizer
    model: LanguageModel  # with its first weights; it is moved to the configured device
    should_stop: Callable[[], bool] = lambda: False
    should_save: Callable[[], bool] = lambda: False
    began: float = field(default_factory=lambda: time.perf_counter())
    progress: Progress = lambda what, done, total: None
    ranks: Ranks = ONE  # the processes that do the same job

    def __post_init__(self) -> None:
        minutes = self.config.train.minutes
        self.clock = Clock(self.began, None if minutes is None else 60 * minutes)
        self.most_scored = self.config.eval.max_chars  # characters in an evaluation
        self._measured = False
        self._remarks: list[str] = []
        self.model = self.model.to(choose_device(self.config.run.device))

    def score(self, part: Ids, share: float = 1.0) -> Score:
        """Score the model on a part of the text, or on a share of it, spread evenly; or raise Stopped.

        In a budget, the first call measures how much of the part can be scored in a tenth of it.
        """
        if self.clock.budget is not None and not self._measured:
            started = time.perf_counter()
            tried = self._score(part, TRIED).chars
            seconds = self.ranks.told(time.perf_counter() - started)
            self.limit_scoring(len(part), seconds / max(1, tried))
        most = self.most_scored if share == 1 else round(share * (self.most_scored or len(part)))
        return self._score(part, most)

    def limit_scoring(self, chars: int, seconds_a_char: float) -> None:
        """Score fewer characters of a part of `chars` if they would take too much of the budget."""
        assert self.clock.budget is not None
        self._measured = True
        wanted = min(chars, self.most_scored or chars)
        most = max(TRIED, int(EVALUATION * self.clock.budget / max(seconds_a_char, 1e-9)))
        if most < wanted:
            self.most_scored = most
            self._remarks.append(
                f"evaluations score {self.most_scored:,} of {wanted:,} characters, spread evenly: all "
                f"would take {seconds_a_char * wanted:.0f} s, over a tenth of the budget"
            )

    @cached_property
    def prompt(self) -> npt.NDArray[np.int64]:
        """The ids of the prompt of samples."""
        return encode_prompt(self.tokenizer, self.config.sample.prompt, where=CONFIGURED)

    def sample(self) -> str:
        """Return a sample, always with the same prompt and seed; or raise Stopped."""
        self.model.eval()
        seed, left = self.config.run.seed, self.config.train.sample_chars
        context = Context(self.model, self.prompt)
        if self.tokenizer.boundary is None:
            return self.tokenizer.decode(
                [*self.prompt.tolist(), *self._sampled(context, seed, left)]
            )
        texts: list[str] = []
        while left > 0:  # records until they are as long as one text
            ids = self._sampled(context, seed + len(texts), left)
            left -= len(ids)
            texts.append(self.tokenizer.decode([*self.prompt[1:].tolist(), *ids]).rstrip(BOUNDARY))
        return ("\n\n" if self.config.data.records == "paragraphs" else "\n").join(texts)

    def _sampled(self, context: Context, seed: int, count: int) -> list[int]:
        """Return the ids of a sample after a prompt, up to the end of a record."""
        ids: list[int] = []
        settings = settings_of(self.config.sample, self.tokenizer)
        for drawn in generate(context, count, settings, [seed]):
            check_stop(self.should_stop)
            ids.append(int(drawn.idx[0]))
            if ids[-1] == self.tokenizer.boundary:
                break
        return ids

    def remark(self, text: str) -> None:
        """Keep a remark for the user until the loop asks for it."""
        self._remarks.append(text)

    def take_remarks(self) -> list[str]:
        """Return remarks for the user on scoring and on what could not be written, once."""
        taken, self._remarks = self._remarks, []
        return taken

    def _score(self, part: Ids, most: int | None) -> Score:
        """Score a part; each process does some passes, and all add up the losses of all in order."""
        total, ranks = min(most or len(part), len(part)), self.ranks
        try:
            sums = sums_of_passes(
                self.model,
                part,
                self.config.model.block_size,
                max_chars=most,
                progress=adding_up(self.progress, "evaluating", total // ranks.size),
                should_stop=self.should_stop,
                share=(ranks.rank, ranks.size),
            )
        except Stopped:
            sums = None
        return score_of_passes(in_turn(ranks.rows(sums)))


class Learner(ABC):
    """One way of learning. `charlm.models.registry` names that of each kind of model.

    A checkpoint keeps the weights of `model`, and the state of the optimizers and of training.
    """

    model: LanguageModel
    optimizers: Mapping[str, Optimizer]  # by name; empty without gradients
    state: TrainingState  # `step` counts the step, the loop the rest
    total_steps: int  # of the run, for progress bars
    form: str | None = None  # of the forward pass, which the bits depend on; None: no step

    @property
    def ready(self) -> bool:
        """Whether the model is worth evaluating and saving yet."""
        return True

    def updates(self) -> dict[str, int]:
        """Return the updates done so far of each model trained by gradients: "", or experts by name."""
        return {"": self.state.step}

    @property
    def split(self) -> bool:
        """Whether weights are split among processes in a step, so that none can save them alone."""
        return False

    def complete(self, optimizers: bool = False) -> None:  # noqa: B027
        """Bring together weights that are split among processes, until the next step.

        All processes call it together. `optimizers`: in the first, also what these keep.
        """

    @property
    def saves_parts(self) -> bool:
        """Whether each process writes its part of a checkpoint, by `write_parts`."""
        return False

    def bytes_of_parts(self) -> int:
        """Return how many bytes the parts of all processes take."""
        raise NotImplementedError

    def write_parts(self, folder: Path) -> Mapping[str, Sequence[int]]:
        """Write this process's part of weights and optimizers; all processes call it together.

        Return the shapes of all tensors when whole, by file and name. Raises MachineError in all of
        them if one cannot write.
        """
        raise NotImplementedError

    @abstractmethod
    def spent(self) -> float:
        """Return the share of the run that is done; the run ends at 1."""

    def prepare(self) -> Iterator[Record]:
        """Do long work before the first step; yield records, or raise Stopped."""
        yield from ()

    def carried_tensors(self) -> Mapping[str, Tensor]:
        """Return what, besides weights and optimizers, the next step depends on, to be saved."""
        return {}

    def restore_carried(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore what `carried_tensors` returned; ValueError if it does not fit."""

    def take_remarks(self) -> list[str]:
        """Return remarks for the user on the last step, once."""
        return []

    def close(self) -> None:  # noqa: B027
        """Undo what `step` changed in the process; the loop has ended."""

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
