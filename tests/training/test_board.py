"""What TensorBoard reads of a run, by TensorBoard's own reader."""

import errno
from collections import defaultdict

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from charlm.errors import MachineError
from charlm.runs import board
from charlm.runs.metrics import read_metrics
from tests.training.test_non_finite import STEADY, too_fast

ON = ("run.tensorboard=true", "train.max_steps=9", "train.save_every=2", "train.eval_every=4")
SAMPLED = (*ON, "train.sample_every=3", "train.sample_chars=5")


def shown(run):
    """Return what TensorBoard shows: the steps and values of each tag."""
    place = str(run.board_path)
    reader = plugin_event_accumulator.EventAccumulator(place, {"tensors": 0})  # of its server
    reader.Reload()
    found = {}
    for tag in reader.Tags()["tensors"]:
        events = reader.Tensors(tag)
        values = [tensor_util.make_ndarray(event.tensor_proto).item() for event in events]
        values = [one.decode() if isinstance(one, bytes) else one for one in values]
        found[tag] = [(event.step, one) for event, one in zip(events, values, strict=True)]
    other = EventAccumulator(place, {"scalars": 0})  # which others use to read such files
    other.Reload()
    for tag in other.Tags()["scalars"]:
        assert [(event.step, event.value) for event in other.Scalars(tag)] == found[tag]
    return found


def logged(run):
    """Return the same from the log."""
    found = defaultdict(list)
    for record in read_metrics(run.metrics_path):
        for key, tag in board.TAGS.get(record["kind"], {}).items():
            found[tag].append((record["step"], pytest.approx(record[key], rel=1e-6)))
        if record["kind"] == "sample":
            lines = record["text"].split("\n")
            found["sample"].append((record["step"], "\n".join("    " + line for line in lines)))
    return dict(found)


def test_it_shows_what_the_log_holds(make_loop):
    loop = make_loop(*SAMPLED)
    list(loop.records())

    found = shown(loop.run)

    assert found == logged(loop.run)
    assert found.keys() == {
        *("loss/train", "loss/val", "learning_rate", "grad_norm", "chars_per_second", "sample")
    }
    assert [step for step, _ in found["loss/train"]] == list(range(1, 10))
    assert [step for step, _ in found["loss/val"]] == [0, 4, 8, 9]


def test_without_the_key_nothing_is_written(make_loop):
    loop = make_loop("train.max_steps=1", "train.warmup_steps=0")
    list(loop.records())

    assert not loop.run.board_path.exists()


@pytest.mark.parametrize("killed_at", [1, 4, 7])
def test_steps_that_are_repeated_are_shown_once(make_loop, killed_at):
    killed = make_loop(*SAMPLED)
    for record in killed.records():
        if record.kind == "train" and record.step == killed_at:
            break
    killed.metrics.close()  # what the system would do
    killed.board.close()

    resumed = make_loop(resume=True)
    assert resumed.state.step < killed_at
    list(resumed.records())

    assert shown(resumed.run) == logged(resumed.run)
    assert len(list(resumed.run.board_path.iterdir())) == 2


def test_an_evaluation_that_no_checkpoint_knew_is_shown_once(make_loop):
    """The run is stopped while it evaluates step 4, resumed, and killed right after that evaluation."""
    stopped = make_loop(*ON, "train.save_every=0", should_stop=lambda: asked)
    asked = False
    records = stopped.records()
    for record in records:
        if record.kind == "train" and record.step == 4:
            asked = True
    assert stopped.state.evaluated_step < 4
    killed = make_loop(resume=True)
    assert next(killed.records()).kind == "eval"
    killed.metrics.close()
    killed.board.close()

    resumed = make_loop(resume=True)
    list(resumed.records())

    assert shown(resumed.run) == logged(resumed.run)


def test_steps_that_a_rollback_undid_are_gone(make_loop):
    loop = too_fast(make_loop(*STEADY, "train.non_finite=rollback", "run.tensorboard=true"), 3e-4)
    list(loop.records())

    assert shown(loop.run) == logged(loop.run)
    assert len(list(loop.run.board_path.iterdir())) == 3


def test_a_run_that_asks_for_it_later_gets_all_of_its_log(make_loop):
    first = make_loop("train.max_steps=4")
    list(first.records())

    longer = make_loop("train.max_steps=6", "run.tensorboard=true", resume=True)
    list(longer.records())

    assert shown(longer.run) == logged(longer.run)
    assert len(logged(longer.run)["loss/train"]) == 6


def test_a_full_disk_is_said_once_and_ends_no_run(make_loop, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, written = RecordWriter.write, []

    def refuse(self, data):
        written.append(data)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", refuse)
    loop = make_loop(*ON)

    notes = [record.text for record in loop.records() if record.kind == "note"]

    assert notes == ["no more is written for TensorBoard: run/tensorboard: No space left on device"]
    assert loop.state.step == 9


def test_without_the_package_the_run_is_refused_before_any_work(make_loop, monkeypatch):
    monkeypatch.setattr(board, "find_spec", lambda name: None)

    with pytest.raises(MachineError) as refused:
        make_loop("run.tensorboard=true")

    assert str(refused.value) == (
        "run.tensorboard=True: the package tensorboard is missing; "
        "pip install 'charlm[tensorboard]'"
    )


def test_a_sample_cannot_become_markup(make_loop):
    (event,) = board._text("# title\n<b>x</b>\n```")

    assert tensor_util.make_ndarray(event.tensor).item().decode() == (
        "    # title\n    <b>x</b>\n    ```"
    )
