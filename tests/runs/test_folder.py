import json
import os
import tracemalloc

import pytest

from charlm.errors import CheckpointError, MachineError, UsageError
from charlm.runs import RunFolder, find_run, metrics, next_free_name
from charlm.runs.metrics import MetricsLog, check_records, last_saved_step, read_metrics
from charlm.storage import new_folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "one")


def make_run(path, age=0):
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text("model: {type: bigram}\n")
    os.utime(path / "config.yaml", (1e9 - age, 1e9 - age))
    return RunFolder(path)


def save(run, step, loss=None):
    with new_folder(run.checkpoints.path(step), {"step": step, "val_loss_nats": loss}):
        pass


def steps(run):
    return [checkpoint.step for checkpoint in run.checkpoints.all()]


def test_checkpoints_are_listed_by_number_not_by_name(run):
    for step in (10, 9, 100):
        save(run, step)

    assert steps(run) == [9, 10, 100]
    assert run.checkpoints.last().step == 100


def test_unfinished_and_foreign_folders_are_passed_over(run):
    save(run, 1)
    (run.path / "checkpoints" / "step-2").mkdir()
    (run.path / "checkpoints" / "step-three").mkdir()
    (run.path / "checkpoints" / ".tmp-new-00000000-step-4").mkdir()

    assert steps(run) == [1]


def test_the_best_has_the_least_loss_and_is_the_earliest_of_equals(run):
    for step, loss in [(1, 3.0), (2, 2.0), (3, 2.0), (4, None)]:
        save(run, step, loss)

    assert run.checkpoints.best().step == 2
    assert run.checkpoints.choose("best").step == 2
    assert run.checkpoints.choose("last").step == 4
    assert run.checkpoints.choose("3").step == 3


def test_what_has_learned_nothing_is_the_best_only_of_evaluated_others(run):
    save(run, 0, 4.0)
    assert run.checkpoints.choose("best").step == 0

    save(run, 180)
    assert run.checkpoints.choose("best").step == 180
    assert run.checkpoints.choose("best", untrained=True).step == 0

    save(run, 250, 4.5)
    assert run.checkpoints.choose("best").step == 0


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf"), "1.0"])
def test_a_checkpoint_without_a_finite_loss_is_never_the_best(run, loss):
    save(run, 1, loss)
    assert run.checkpoints.best() is None
    assert run.checkpoints.choose("best").step == 1  # the last, since none was evaluated

    save(run, 2, 3.0)
    assert run.checkpoints.best().step == 2


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(run):
    with pytest.raises(CheckpointError, match="saved steps: none yet"):
        run.checkpoints.choose("last")
    save(run, 5)
    save(run, 6)

    with pytest.raises(CheckpointError, match="no checkpoint '7'; saved steps: 5, 6"):
        run.checkpoints.choose("7")
    with pytest.raises(UsageError, match="'newest': expected best, last or a step"):
        run.checkpoints.choose("newest")


def test_pruning_keeps_the_best_and_the_newest_two(run):
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.6)]:
        save(run, step, loss)

    run.checkpoints.prune()

    assert steps(run) == [2, 4, 5]
    assert sorted(os.listdir(run.path / "checkpoints")) == ["step-2", "step-4", "step-5"]


@pytest.mark.parametrize("losses", [[None, None, None], [3.0, 2.0, 1.0]])
def test_pruning_keeps_two_when_the_best_is_new_or_unknown(run, losses):
    for step, loss in enumerate(losses, start=1):
        save(run, step, loss)

    run.checkpoints.prune()

    assert steps(run) == [2, 3]


def test_the_newest_run_is_the_one_last_written_to(tmp_path):
    runs = tmp_path / "runs"
    old, new = make_run(runs / "old", age=100), make_run(runs / "new", age=50)
    assert find_run(None, runs).path == new.path

    old.metrics_path.write_text("")  # now

    assert find_run(None, runs).path == old.path
    assert find_run(runs / "new").path == new.path


def test_a_run_that_is_not_there_is_refused_with_those_that_are(tmp_path, run):
    with pytest.raises(CheckpointError, match="nothing/: no run there; train one first"):
        find_run(None, tmp_path.relative_to(tmp_path) / "nothing")
    with pytest.raises(CheckpointError, match=r"runs/two: not found; runs there: .*runs/one"):
        find_run(tmp_path / "runs" / "two")
    with pytest.raises(CheckpointError, match=r"is not a run \(no config.yaml\)"):
        find_run(tmp_path / "runs")


def test_a_run_without_a_readable_configuration_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.yaml: No such file"):
        assert RunFolder(tmp_path).config


def test_the_next_free_name_counts_from_two(tmp_path):
    assert next_free_name("a", tmp_path) == tmp_path / "a"

    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").write_text("a file takes the name too")

    assert next_free_name("a", tmp_path) == tmp_path / "a-3"


def test_a_sample_is_kept_under_its_step(run):
    run.write_sample(3, "héllo\ud800")

    assert (run.samples_path / "step-3.txt").read_bytes() == "héllo?".encode()


def test_a_resumed_log_loses_what_its_checkpoint_does_not_vouch_for(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"step": 1})
    vouched = log.flush()
    log.append({"step": 2})
    log.append({"step": 3})
    log.close()
    assert vouched == len('{"step": 1}\n')

    log = MetricsLog(path, keep=vouched)
    log.append({"step": 2, "again": True})
    log.close()

    assert list(read_metrics(path)) == [{"step": 1}, {"step": 2, "again": True}]


def test_a_log_shorter_than_its_checkpoint_says_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')

    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: shorter than its checkpoint says"):
        MetricsLog(path, keep=100)

    assert path.read_text() == '{"step": 1}\n'


def test_a_flushed_record_is_on_the_disk(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"loss_nats": 1.5})

    size = log.flush()

    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"loss_nats": 1.5}
    log.close()


def test_a_last_record_that_was_cut_short_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')

    assert list(read_metrics(path)) == [{"step": 1}]


def test_a_log_that_cannot_be_written_is_a_machine_error(tmp_path):
    with pytest.raises(MachineError, match="nowhere"):
        MetricsLog(tmp_path / "nowhere" / "metrics.jsonl")


def test_what_a_damaged_log_still_says_was_saved(run):
    lines = [
        b'{"kind": "train"}',
        b"\0\0\0",
        b'{"kind": "save", "step": 5}',
        b"{",
        b'{"kind": "end"}',
    ]
    for count, expected in ((2, None), (3, None), (4, None), (5, 5)):
        run.metrics_path.write_bytes(b"".join(line + b"\n" for line in lines[:count]))
        assert last_saved_step(run.metrics_path) == expected


def test_a_damaged_checkpoint_is_set_aside_once_there_are_newer_ones(run):
    for step in (1, 2, 3, 4):
        save(run, step)
    for step in (1, 4):
        (run.checkpoints.path(step) / "MANIFEST.json").write_text("{")

    run.checkpoints.prune()

    names = sorted(path.name for path in run.path.glob("checkpoints/*"))
    assert names == ["damaged-step-1", "step-2", "step-3", "step-4"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"model: [", b"model: {type: bigramm}"])
def test_a_damaged_configuration_of_a_run_is_no_mistake_in_a_command(run, content):
    run.config_path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"config\.yaml.*; restore it or name another run$"):
        assert run.config


def test_a_file_in_the_place_of_checkpoints_is_damage(run):
    (run.path / "checkpoints").rmdir()
    (run.path / "checkpoints").touch()

    with pytest.raises(CheckpointError, match="checkpoints: is a file; put a folder there"):
        run.checkpoints.saved()


def test_digits_of_other_scripts_are_no_steps(run):
    save(run, 3)
    (run.path / "checkpoints" / "step-\u0664").mkdir()

    assert [step for step, _ in run.checkpoints.saved()] == [3]
    with pytest.raises(UsageError, match="expected best, last or a step"):
        run.checkpoints.choose("\u0663")


@pytest.mark.parametrize("head", [b"", b'{"kind": "save", "step": 2}\n{"kind": "end"}\n'])
def test_a_log_of_many_gigabytes_of_nothing_is_refused_at_once(tmp_path, monkeypatch, head):
    monkeypatch.setattr(metrics, "MAX_LINE", 1 << 20)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(head)
    os.truncate(path, 40 << 30)  # takes no space on the disk
    number = head.count(b"\n") + 1
    tracemalloc.start()

    with pytest.raises(CheckpointError, match=rf"jsonl:{number}: not a record \(a record of more"):
        list(read_metrics(path))
    with pytest.raises(CheckpointError, match=f"jsonl: line {number}: a record of more than"):
        check_records(path, 0)
    assert last_saved_step(path) == (2 if head else None)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
