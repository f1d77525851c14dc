"""The disk refuses for a while, or for good."""

import errno
import json
import re
import shutil
from collections import Counter

import pytest

from charlm.errors import MachineError
from charlm.runs import state as checkpoints
from charlm.runs.metrics import read_metrics
from charlm.runs.optimizer_state import optimizer_tensors
from charlm.runs.parts import OFFSETS, Parts
from charlm.storage import atomic, verify_folder
from charlm.training.gradients import GradientLearner
from tests.training.conftest import state_hash, timeless

EVERY_STEP = ["train.save_every=1", "train.eval_every=100", "train.max_steps=8"]


@pytest.fixture
def full(monkeypatch):
    """A disk that has no room for weights at the steps in this set."""
    steps = set()
    save_weights = checkpoints.save_weights

    def save(model, path):
        save_weights(model, path)
        if int(path.parent.name.rpartition("-")[2]) in steps:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "save_weights", save)
    return steps


def test_a_failed_save_is_reported_and_retried(make_loop, full):
    straight = make_loop(*EVERY_STEP, out="straight")
    list(straight.records())
    full |= {3, 4, 5}
    loop = make_loop(*EVERY_STEP)

    records = list(loop.records())

    notes = [r.text for r in records if r.kind == "note"]
    assert len(notes) == 3
    assert all(n.startswith("a save failed; training continues, step 2 is saved: ") for n in notes)
    assert all("free some space" in n for n in notes)
    assert state_hash(loop) == state_hash(straight)
    assert timeless(loop.run.metrics_path) == timeless(straight.run.metrics_path)
    saves = [r["step"] for r in read_metrics(loop.run.metrics_path) if r["kind"] == "save"]
    assert saves == [0, 1, 2, 6, 7, 8]
    assert not list(loop.run.path.rglob(".tmp-*"))


def test_while_it_fails_the_older_checkpoints_stay(make_loop, full):
    full |= set(range(4, 9))
    loop = make_loop(*EVERY_STEP)

    with pytest.raises(MachineError, match="No space left"):  # the last one must not fail
        list(loop.records())

    assert [c.step for c in loop.run.checkpoints.all()] == [0, 2, 3]
    for checkpoint in loop.run.checkpoints.all():
        verify_folder(checkpoint.path)
    full.clear()
    resumed = make_loop(resume=True)
    assert resumed.state.step == 3
    list(resumed.records())
    straight = make_loop(*EVERY_STEP, out="straight")
    list(straight.records())
    assert state_hash(resumed) == state_hash(straight)


def test_the_first_save_must_not_fail(make_loop, full):
    full |= {0}
    loop = make_loop(*EVERY_STEP)

    with pytest.raises(MachineError, match="No space left"):
        list(loop.records())

    assert loop.state.step == 0


def test_a_full_disk_costs_no_records(make_loop, monkeypatch):
    loop = make_loop(*EVERY_STEP)
    refused = Counter()

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self.file.__enter__()

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def write(self, data):
            refused[loop.state.step] += 1
            if 2 <= loop.state.step <= 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data[: max(1, len(data) // 2)])  # a short write is none either

    for record in loop.records():
        if record.kind == "eval":
            loop.metrics.file = Full(loop.metrics.file)

    assert refused[3]
    steps = [r["step"] for r in read_metrics(loop.run.metrics_path) if r["kind"] == "train"]
    assert steps == list(range(1, 9))
    saves = [r["step"] for r in read_metrics(loop.run.metrics_path) if r["kind"] == "save"]
    assert saves == [0, 1, 5, 6, 7, 8]


def test_a_run_folder_that_vanishes_is_said_and_does_not_come_back_in_part(make_loop):
    loop = make_loop(*EVERY_STEP)
    notes = []

    def watch():
        for record in loop.records():
            if record.kind == "train" and record.step == 5:
                shutil.rmtree(loop.run.path)
            if record.kind == "note":
                notes.append(record.text)

    with pytest.raises(MachineError, match="No such file"):
        watch()

    assert len(notes) == 3  # steps 5 to 7
    assert not loop.run.path.exists()


def test_a_run_folder_that_comes_back_is_used_again(make_loop):
    loop = make_loop(*EVERY_STEP)
    away = loop.run.path.with_name("away")

    for record in loop.records():
        if record.kind == "train" and record.step == 4:
            loop.run.path.rename(away)
        if record.kind == "train" and record.step == 7:
            away.rename(loop.run.path)

    assert [c.step for c in loop.run.checkpoints.all()] == [7, 8]
    steps = [r["step"] for r in read_metrics(loop.run.metrics_path) if r["kind"] == "train"]
    assert steps == list(range(1, 9))


def test_saving_when_asked_changes_nothing_else(make_loop):
    options = ["train.max_steps=8", "train.eval_every=100"]
    straight = make_loop(*options, out="straight")
    list(straight.records())
    asked = [False, False, False, True, False, False]
    loop = make_loop(*options, should_save=lambda: bool(asked) and asked.pop(0))

    saves = [r.step for r in loop.records() if r.kind == "save"]

    assert saves == [0, 3, 8]
    assert state_hash(loop) == state_hash(straight)


def test_a_save_that_would_fill_the_disk_is_not_begun(make_loop, monkeypatch):
    loop = make_loop(*EVERY_STEP)
    room = shutil._ntuple_diskusage(10**12, 10**12 - 9000, 9000)
    notes = []
    for record in loop.records():
        if record.kind == "train":
            ample = record.step in (4, 8)
            monkeypatch.setattr(
                shutil,
                "disk_usage",
                lambda _, ample=ample: room._replace(free=10**12 * ample + 9000),
            )
        if record.kind == "note":
            notes.append(record.text)

    assert [c.step for c in loop.run.checkpoints.all()] == [4, 8]
    assert len(notes) == 6
    assert re.search(r"step-1: a checkpoint needs [\d.]+ KiB and 8.789 KiB is free; free", notes[0])


def test_a_checkpoint_whose_name_could_not_be_flushed_can_be_resumed_from(make_loop, monkeypatch):
    """It is there, and vouches for records that must not be cut off then."""
    straight = make_loop(*EVERY_STEP, out="straight")
    list(straight.records())
    loop = make_loop(*EVERY_STEP)
    flush_folder = atomic.flush_folder

    def flush(path):
        if path.name == "checkpoints" and loop.state.step >= 5:
            raise OSError(errno.EIO, "Input/output error", str(path))
        flush_folder(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush_folder", flush)
        with pytest.raises(MachineError, match="Input/output error"):
            list(loop.records())

    resumed = make_loop(resume=True)
    list(resumed.records())

    assert state_hash(resumed) == state_hash(straight)
    steps = [r["step"] for r in read_metrics(resumed.run.metrics_path) if r["kind"] == "train"]
    assert steps == list(range(1, 9))


@pytest.fixture
def parts_full(monkeypatch):
    """Saves in parts, of one process; there is no room for them at the steps in this set."""
    steps = set()

    def write(learner, folder):
        tensors = {f"model.safetensors/{k}": x for k, x in learner.model.state_dict().items()}
        kept = optimizer_tensors(learner.optimizers, learner.model)
        tensors |= {f"optimizer.safetensors/{k}": x for k, x in kept.items()}
        offsets = {name: {"saved_offsets": [0] * x.ndim} for name, x in tensors.items()}
        part = folder / "shard-00001-model-00001-of-00001.safetensors"
        checkpoints.save_tensors(tensors, part, {OFFSETS: json.dumps(offsets)})
        if learner.state.step in steps:
            raise MachineError(folder, "could not be written (No space left on device)")
        return {name: x.shape for name, x in tensors.items()}

    monkeypatch.setattr(GradientLearner, "saves_parts", True)
    monkeypatch.setattr(GradientLearner, "bytes_of_parts", lambda learner: 1000)
    monkeypatch.setattr(GradientLearner, "write_parts", write)
    return steps


def test_a_failed_save_in_parts_leaves_nothing_on_the_disk(make_loop, parts_full):
    parts_full |= {3, 4, 5}
    loop = make_loop(*EVERY_STEP)
    notes = []

    for record in loop.records():
        if record.kind == "note":
            notes.append(record.text)
            assert not list(loop.run.path.rglob(".tmp-*"))

    assert len(notes) == 3
    assert [c.step for c in loop.run.checkpoints.all()] == [7, 8]
    assert not list(loop.run.path.rglob(".tmp-*"))


def test_parts_that_were_not_moved_are_removed(make_loop, parts_full, monkeypatch):
    loop = make_loop(*EVERY_STEP)
    move = Parts.move

    def moved(parts, *arguments):
        if loop.state.step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        move(parts, *arguments)

    monkeypatch.setattr(Parts, "move", moved)

    for record in loop.records():
        if record.kind == "note":
            assert not list(loop.run.path.rglob(".tmp-*"))

    saves = [r["step"] for r in read_metrics(loop.run.metrics_path) if r["kind"] == "save"]
    assert saves == [0, 1, 2, 3, 5, 6, 7, 8]


def test_parts_that_would_fill_the_disk_are_not_begun(make_loop, parts_full, monkeypatch):
    monkeypatch.setattr(
        GradientLearner, "bytes_of_parts", lambda learner: 10**15 * learner.state.step
    )
    loop = make_loop(*EVERY_STEP)

    with pytest.raises(MachineError, match=r"step-8: a checkpoint needs [\d.]+ PiB and "):
        list(loop.records())

    assert [c.step for c in loop.run.checkpoints.all()] == [0]
    assert not list(loop.run.path.rglob(".tmp-*"))
