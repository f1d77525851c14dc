"""The run of one expert, inside a mixture's folder: it can wait while others train."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from charlm.config import Config, dump_yaml
from charlm.models import MixtureModel
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.mixture import expert_run
from charlm.runs.records import Record
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder
from charlm.text import Batches, Corpus
from charlm.text.tokens import Split
from charlm.training.gradients import GradientLearner
from charlm.training.learner import Clock, Job
from charlm.training.loop import TrainingLoop

LATE = 0.7  # share of an expert's training before it is given the slice
SLICE_PASSES = 3.0  # over the slice alone, after that: more is learnt by heart, not from


@dataclass
class PhasedBatches:
    """The batches of an expert: without the slice, then with it.

    Args:
        early: From the training part without the slice.
        whole: From all of it.
        slice: From the slice alone; None where it is too short for a window.
        late_from: The first step that reads the slice; None: not yet.
    """

    early: Batches
    whole: Batches
    slice: Batches | None
    late_from: int | None = None

    @classmethod
    def of(cls, config: Config, early: Split, late: Split) -> "PhasedBatches":
        """Return the batches of an expert.

        Args:
            config: Of the expert.
            early: The training part without the slice.
            late: The slice, which follows.
        """
        block_size = config.model.block_size

        def batches(part: Split) -> Batches:
            return Batches(part, block_size, config.train.batch_size, config.run.seed)

        whole = replace(early, stop=late.stop)
        return cls(
            batches(early), batches(whole), batches(late) if len(late) > block_size else None
        )

    def get(
        self, step: int, first: int = 0, count: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return inputs and targets of a batch, as `Batches` does."""
        batches = self.early
        if self.late_from is not None and step >= self.late_from:
            batches = self.whole
            if self.slice and step % self._turn(self.late_from, self.slice) == 0:
                batches = self.slice
        return batches.get(step, first, count)

    @staticmethod
    def _turn(late_from: int, part: Batches) -> int:
        """Return n: every n-th of the late steps reads the slice, the second at most."""
        steps = late_from * (1 - LATE) / LATE  # to come, if the rest is as fast
        chars = steps * part.batch_size * part.block_size
        return max(2, round(chars / (SLICE_PASSES * len(part.split))))


class Expert:
    """The run of an expert.

    Args:
        name: Of the expert.
        loop: Of its run.
        batches: What it reads.
    """

    def __init__(self, name: str, loop: TrainingLoop, batches: PhasedBatches) -> None:
        self.name = name
        self.loop = loop
        self.batches = batches
        self.records = loop.records()

    @property
    def seconds(self) -> float:
        """How long it has trained."""
        return self.loop.state.seconds

    def give_slice(self, step: int) -> None:
        """Let it read the slice from this step on."""
        self.batches.late_from = self.loop.state.late_from = step

    def until(self, share: float) -> Iterator[Record]:
        """Go on until this share is done, and save: the wait that follows may be the end."""
        loop, learner = self.loop, self.loop.learner
        loop.clock.restart(self.seconds)  # waiting is not training
        # One without a step to do still has its first weights to save.
        while learner.spent() < share or (learner.state.step == 0 and loop.saved_step < 0):
            record = next(self.records, None)
            if record is None:
                break
            yield replace(record, expert=self.name)
        if loop.saved_step != learner.state.step:
            for record in loop.save():
                yield replace(record, expert=self.name)


def open_expert(
    job: Job, name: str, config: Config, early: Split, late: Split, checkpoint: Checkpoint | None
) -> Expert:
    """Open the run of an expert, or begin it.

    Args:
        job: Of the mixture.
        name: Of the expert.
        config: Of the expert.
        early: What it reads before the weights are fitted.
        late: The slice that they are fitted on, which follows.
        checkpoint: Where it goes on from; None: at its beginning.
    """
    run, nothing = expert_run(job.run, name), early.part(0, 0)
    own = replace(
        job,
        config=config,
        run=run,
        corpus=Corpus({"train": early, "val": nothing, "test": nothing}, {}),
        model=cast(MixtureModel, job.model).experts[name],
        clock=Clock.of(config, time.perf_counter()),
    )
    batches = PhasedBatches.of(config, early, late)
    loop = TrainingLoop(own, GradientLearner(config, own.model, batches, own.clock), checkpoint)
    with machine_errors(run.path):
        make_folder(run.path / "checkpoints")
    write_file(run.tokenizer_path, job.tokenizer.to_json().encode())
    write_file(run.config_path, dump_yaml(config.model_dump()).encode())
    with contextlib.suppress(OSError):  # so that an expert can be scored alone, as any run
        run.tokens_path.symlink_to(Path("..", "..", job.run.tokens_path.name))
    run.checkpoints.set_aside_after(checkpoint.step if checkpoint else -1)
    return Expert(name, loop, batches)
