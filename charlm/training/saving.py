"""A checkpoint of a run, written by its first process, or by each its part."""

import shutil
from functools import partial

from charlm.errors import MachineError
from charlm.runs.metrics import MetricsLog
from charlm.runs.parts import Parts
from charlm.runs.provenance import provenance_json
from charlm.runs.state import check_room, save_checkpoint
from charlm.storage.atomic import make_empty, shared_place
from charlm.training.learner import Job, Learner


def write_checkpoint(job: Job, learner: Learner, metrics: MetricsLog) -> None:
    """Write what a learner has learned; all processes call it together.

    Raises MachineError in all of them if one cannot write; then nothing of it stays on the disk.
    """
    try:
        parts = _parts(job, learner) if learner.saves_parts else None
        job.ranks.first_does(partial(_write, job, learner, metrics, parts))
    except MachineError:
        if learner.saves_parts and job.ranks.first:  # else a full disk would stay full
            place = shared_place(job.run.checkpoints.path(learner.state.step))
            shutil.rmtree(place, ignore_errors=True)
        raise


def _parts(job: Job, learner: Learner) -> Parts:
    """Let each process write its part, into one folder."""
    path = job.run.checkpoints.path(learner.state.step)
    folder = shared_place(path)

    def make_room() -> None:
        make_empty(folder)
        check_room(path, learner.bytes_of_parts())

    job.ranks.first_does(make_room)
    return Parts(folder, job.ranks.size, learner.write_parts(folder))


def _write(job: Job, learner: Learner, metrics: MetricsLog, parts: Parts | None) -> None:
    """Write the checkpoint, after the log that it vouches for."""
    learner.state.metrics_bytes = metrics.flush()
    together = provenance_json(job.config, job.tokenizer.to_json())
    save_checkpoint(
        job.run,
        learner.state,
        learner.model,
        learner.optimizers,
        together,
        learner.form,
        learner.carried_tensors(),
        parts,
        None if job.config.train.in_order else job.ranks.size,
    )
