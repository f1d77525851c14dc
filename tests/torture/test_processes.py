"""Several processes train one model: they leave the bits that one leaves."""

import signal

import pytest
import torch
from safetensors.torch import load_file

from charlm.runs import RunFolder
from charlm.runs.state import OPTIMIZER
from charlm.runs.weights import WEIGHTS, load_tensors
from tests.torture.lives import Lives, Plan
from tests.torture.trials import (
    SHARED,
    SHORT,
    Straight,
    begin,
    command,
    differing,
    outcome,
    saved_step,
)

NAMES = [SHORT + name for name in SHARED]
GPT2, MODERN = NAMES[:2]


@pytest.fixture(scope="module")
def lives():
    with Lives() as lives:
        yield lives


@pytest.fixture(scope="module")
def alone(lives, tmp_path_factory):
    """What one process leaves, without torchrun."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for name in NAMES:
        run = begin(folder / name, name)
        life = lives.live(run.parent, *command(run))
        assert life.code == 0, life.stderr
        found[name] = Straight(name, outcome(run), life)
    return found


def train(lives, folder, size, plan=None, of=0):
    found = lives.together(folder, *command(folder / "run"), size=size, plan=plan, of=of)
    return [life.code for life in found], [life.stderr for life in found]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_leave_what_one_does(lives, alone, tmp_path, name):
    run = begin(tmp_path / "two", name)

    codes, said = train(lives, run.parent, 2)

    assert codes == [0, 0], said
    assert differing(run, alone[name]) == []
    assert said[1] == ""


def test_processes_that_split_the_weights_learn_what_one_does(lives, alone, tmp_path):
    """One process and others can go on with them, and they with others; also if each saved its part."""
    run = begin(tmp_path / "split", GPT2)
    config = run.parent / "config.yaml"
    config.write_text(config.read_text().replace("parallel: ddp", "parallel: fsdp2"))

    in_parts = (*command(run), "train.sharded_saves=true")
    stop = Plan(step=5, number=signal.SIGTERM)
    stopped = lives.together(run.parent, *in_parts, size=2, plan=stop, of=1)
    assert [life.code for life in stopped] == [143, 143], stopped
    place = RunFolder(run).checkpoints.path(5)
    names = WEIGHTS, OPTIMIZER
    before = {name: load_tensors(place / name) for name in names}
    assert not any((place / name).exists() for name in names)
    life = lives.live(run.parent, "runs", "merge", "run")
    assert life.stderr == "merged step 4, 5 of run\n"
    for name in names:
        after = load_file(place / name)
        assert after.keys() == before[name].keys()
        assert all(torch.equal(x, after[key]) for key, x in before[name].items())
    others = (*command(run), "train.parallel=ddp", "train.sharded_saves=false")
    life = lives.live(run.parent, *others, plan=Plan(step=7, number=signal.SIGTERM))
    assert life.code == 143, life.stderr
    life = lives.together(run.parent, *command(run), "train.parallel=fsdp2", size=4)

    assert [one.code for one in life] == [0] * 4, life
    found, expected = outcome(run), alone[GPT2].outcome
    assert found["run: state"]["step"] == 12
    for one, other in zip(found["run: records"], expected["run: records"], strict=True):
        assert one["step"] == other["step"]
        if "loss_nats" in other:
            assert one["loss_nats"] == pytest.approx(other["loss_nats"], abs=1e-5)


def test_without_shared_memory_the_bits_are_the_same(lives, alone, tmp_path):
    run = begin(tmp_path / "two", MODERN)

    codes, said = train(lives, run.parent, 2, Plan(broken="no slots"))

    assert codes == [0, 0], said
    assert differing(run, alone[MODERN]) == []


def test_another_order_of_sums_is_noticed(lives, alone, tmp_path):
    run = begin(tmp_path / "two", GPT2)

    train(lives, run.parent, 2, Plan(broken="another order"))

    assert "run: model.safetensors" in differing(run, alone[GPT2])


def test_a_run_goes_on_in_any_number_of_processes_after_a_kill(lives, alone, tmp_path):
    run = begin(tmp_path / "some", GPT2)

    killed, said = train(lives, run.parent, 2, Plan(step=5), of=1)
    assert killed == [5, -signal.SIGKILL]
    assert saved_step(run) == 5  # the survivor saved what both had finished
    (line,) = said[0].splitlines()
    assert line.startswith("charlm: error: process 0 of 2: process 1 ended or stopped answering")
    killed, _ = train(lives, run.parent, 4, Plan(step=7))
    assert killed[0] == -signal.SIGKILL
    assert saved_step(run) == 5
    life = lives.live(run.parent, *command(run), plan=Plan(step=10))
    assert life.code == -signal.SIGKILL
    ended, said = train(lives, run.parent, 2)

    assert ended == [0, 0], said
    assert differing(run, alone[GPT2]) == []


def test_processes_that_are_started_again_go_on_with_the_run_that_one_of_them_knows(
    lives, alone, tmp_path
):
    run = begin(tmp_path / "some", GPT2)
    begins = command(run)
    here, there, new = logs = [tmp_path / name for name in ("here", "there", "new")]
    for log in logs:
        log.mkdir()

    killed = lives.together(run.parent, *begins, size=2, plan=Plan(step=5), logs=[here, there])
    assert killed[0].code == -signal.SIGKILL
    refused = lives.together(run.parent, *begins, size=2, logs=[new, new])
    assert [life.code for life in refused] == [2, 2]
    assert refused[1].stderr == ""
    assert "holds a run" in refused[0].stderr
    # The first machine was lost, and another one came, which has the first process now.
    ended = lives.together(run.parent, *begins, size=2, logs=[new, there])

    assert [life.code for life in ended] == [0, 0], ended
    assert differing(run, alone[GPT2]) == []


def test_processes_stop_together_where_one_is_asked_to(lives, alone, tmp_path):
    run = begin(tmp_path / "some", GPT2)

    stopped, said = train(lives, run.parent, 2, Plan(step=3, number=signal.SIGTERM), of=1)

    assert stopped == [143, 143], said
    assert saved_step(run) == 3
    assert train(lives, run.parent, 2)[0] == [0, 0]
    assert differing(run, alone[GPT2]) == []


def test_a_process_that_does_not_answer_is_named(lives, tmp_path):
    run = begin(tmp_path / "some", GPT2)
    plan = Plan(step=3, number=signal.SIGSTOP, broken="no patience")

    codes, said = train(lives, run.parent, 2, plan, of=1)

    assert codes == [5, -signal.SIGKILL], said
    assert "process 0 of 2: process 1 ended or stopped answering" in said[0]
    assert saved_step(run) == 3


def test_what_fails_in_one_process_is_said_once(lives, tmp_path):
    run = begin(tmp_path / "some", GPT2)
    config = run.parent / "config.yaml"
    config.write_text(
        config.read_text().replace("warmup_steps: 2", "warmup_steps: 0, learning_rate: 1e30")
    )

    codes, said = train(lives, run.parent, 2)

    assert codes == [6, 6]
    (line,) = "".join(said).splitlines()
    assert line.startswith("charlm: error: step 2: ")
    assert "nan, again when repeated" in line
