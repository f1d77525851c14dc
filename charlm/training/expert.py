"""An expert of a mixture: a run inside the mixture's folder, which can pause while others train."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from charlm.config import Config, dump_yaml
from charlm.models import MixtureModel
from charlm.runs.checkpoints import Checkpoint, set_aside
from charlm.runs.folder import TEXT_OF_MIXTURE
from charlm.runs.mixture import expert_run
from charlm.runs.records import Record
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder
from charlm.text import Batches, Corpus
from charlm.text.batches import batches_of
from charlm.text.tokens import Split
from charlm.training.gradients import GradientLearner
from charlm.training.learner import Job
from charlm.training.loop import TrainingLoop

LATE = 0.7  # share of an expert's run before it reads the slice
SLICE_PASSES = 3.0  # passes over the slice alone after that; with more it is memorised


class PhasedBatches(Batches):
    """The batches of an expert: first `early`, the training part without the slice, then both.

    `late` is the slice, which follows, and `late_from` the first step that reads it; None: no step yet.
    """

    def __init__(self, config: Config, early: Split, late: Split) -> None:
        sizes = config.model.block_size, config.train.batch_size, config.run.seed
        self.early, self.whole = batches_of(early, *sizes), batches_of(early.joined(late), *sizes)
        # A slice may be too short for a window.
        enough = late.boundary is not None or len(late) > config.model.block_size
        self.slice = batches_of(late, *sizes) if enough else None
        self.escape = early.escape
        self.late_from: int | None = None

    def get(
        self, step: int, first: int = 0, count: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return inputs and targets of a batch, as `Batches` does."""
        return self._at(step).get(step, first, count)

    def groups(
        self, step: int, first: int = 0, count: int | None = None, filled: bool = True
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Yield inputs and targets of a batch, as `Batches` does."""
        return self._at(step).groups(step, first, count, filled)

    def chars(self, step: int) -> int:
        """Return how many characters a batch predicts."""
        return self._at(step).chars(step)

    def _at(self, step: int) -> Batches:
        """Return the batches that a step reads."""
        if self.late_from is None or step < self.late_from:
            return self.early
        if self.slice and step % self._turn(self.late_from, self.slice) == 0:
            return self.slice
        return self.whole

    @staticmethod
    def _turn(late_from: int, part: Batches) -> int:
        """Return n, at least 2: every n-th of the late steps reads the slice."""
        steps = late_from * (1 - LATE) / LATE  # late steps, at the same speed
        chars = steps * part.batch_size * part.block_size
        return max(2, round(chars / (SLICE_PASSES * len(part.split))))


class Expert(TrainingLoop):
    """The loop of an expert, whose name and configuration are given, in the job of a mixture.

    `early` is the training part without the slice, `late` the slice, which follows.
    """

    def __init__(
        self,
        job: Job,
        name: str,
        config: Config,
        early: Split,
        late: Split,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.name = name
        nothing = early.part(0, 0)
        own = replace(
            job,
            config=config,
            run=expert_run(job.run, name),
            corpus=Corpus({"train": early, "val": nothing, "test": nothing}, {}),
            model=cast(MixtureModel, job.model).experts[name],
            began=time.perf_counter(),
        )
        self.batches = PhasedBatches(config, early, late)
        learner = GradientLearner(config, own.model, self.batches, own.clock)
        learner.should_stop = job.should_stop
        super().__init__(own, checkpoint, learner)
        run = self.run
        with machine_errors(run.path):
            make_folder(run.path / "checkpoints")
        write_file(run.tokenizer_path, job.tokenizer.to_json().encode())
        write_file(run.config_path, dump_yaml(config.model_dump()).encode())
        with contextlib.suppress(OSError):  # lets an expert be scored alone, like any run
            run.tokens_path.symlink_to(TEXT_OF_MIXTURE)
        run.checkpoints.clear_after(checkpoint, set_aside)
        self.events = self.records()

    def give_slice(self, step: int) -> None:
        """Let it read the slice from this step on."""
        self.batches.late_from = self.state.late_from = step

    def until(self, share: float) -> Iterator[Record]:
        """Train until this share of the run is done, and save, since a stop may follow."""
        self.clock.add(self.state.seconds - self.clock.seconds())  # a pause is not training time
        # A run of no steps still saves its first weights.
        while (self.learner.spent() < share or (self.state.step == 0 and self.saved_step < 0)) and (
            record := next(self.events, None)
        ):
            yield record
        self.learner.close()  # the next expert, and all that is not a step, has every thread
        if self.saved_step != self.state.step:
            yield from self.save()
