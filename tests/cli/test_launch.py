"""What a process does that torchrun started."""

import threading
from pathlib import Path

import pytest
import typer
from torch.distributed import HashStore

from charlm.cli.launch import Launch
from charlm.cli.signals import StopSignals
from charlm.errors import CheckpointError, Stopped, UsageError
from charlm.runs import RunFolder
from charlm.training.ranks import LostError


class Claimed:
    """A meeting in which another process has failed first, or none; None: its store is gone."""

    def __init__(self, free):
        self.free, self.sent, self.stopped, self.left = free, [], False, None

    def claim(self):
        return self.free

    def send(self, orders):
        self.sent.append(orders)

    def stop(self):
        self.stopped = True

    def leave(self, last):
        self.left = last


@pytest.fixture
def launch(monkeypatch, tmp_path):
    def make(attempt=0, rank=0, size=1, agent="one", store=None):
        place = tmp_path / agent / f"attempt_{attempt}" / str(rank)
        place.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place / "error.json"))
        found = Launch(rank, size)
        found._store = store
        return found

    return make


def earlier_run(launch):
    return launch.earlier_run(StopSignals())


def test_a_process_that_is_started_again_goes_on_with_its_run(launch, trained):
    assert earlier_run(launch()) is None
    launch().remember(trained)

    assert earlier_run(launch(1)).path == trained.absolute().relative_to(Path.cwd())


def test_a_run_that_was_taken_back_is_begun_again(launch, tmp_path):
    launch().remember(tmp_path / "gone")

    assert earlier_run(launch(1)) is None


def test_a_run_that_this_launch_did_not_begin_is_not_gone_on_with(launch, trained):
    """Else a start that was refused, as the folder holds another run, would train that one."""
    launch(agent="another").remember(trained)

    assert earlier_run(launch(0)) is None
    assert earlier_run(launch(1)) is None


def test_another_command_of_the_same_torchrun_begins_a_run_of_its_own(launch, trained, monkeypatch):
    launch().remember(trained)
    monkeypatch.setattr("sys.argv", ["charlm", "train", "-c", "another"])

    assert earlier_run(launch()) is None


def test_without_torchrun_nothing_is_remembered(launch, trained, monkeypatch):
    launch()
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    Launch(0, 1).remember(trained)

    assert earlier_run(Launch(0, 1)) is None


def test_the_first_of_a_new_machine_learns_the_run_from_one_that_was_there(launch, trained):
    store = HashStore()
    launch(rank=1, agent="old").remember(trained)
    stayed = launch(rank=1, size=2, agent="old", store=store)
    new = launch(size=2, agent="new", store=store)

    other = threading.Thread(target=stayed.meet, args=[StopSignals()])
    other.start()
    found = earlier_run(new)
    other.join(200)

    assert found.path == trained.absolute().relative_to(Path.cwd())


def test_a_first_process_that_does_not_see_the_run_begins_no_other(launch, tmp_path):
    new = launch(size=2)
    new._meeting = Claimed(free=True)
    new._meeting.earlier = str(tmp_path / "not mounted")

    with pytest.raises(CheckpointError, match="let every machine see the folder"):
        earlier_run(new)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_is_stopped_the_others_are_told(launch, rank):
    one = launch(rank=rank, size=2)
    one._meeting = Claimed(free=True)

    with pytest.raises(Stopped), one.speaking():
        raise Stopped

    assert one._meeting.stopped
    assert one._meeting.sent == []


def test_the_first_that_fails_says_why(launch):
    first = launch(size=2)
    first._meeting = Claimed(free=True)

    with pytest.raises(UsageError), first.speaking():
        raise UsageError("here", "wrong")

    assert first._meeting.sent == [{"end": 2}]


def test_one_that_fails_later_keeps_silent(launch):
    second = launch(rank=1, size=2)
    second._meeting = Claimed(free=False)

    with pytest.raises(typer.Exit) as ended, second.speaking():
        raise UsageError("here", "wrong")

    assert ended.value.exit_code == 2
    assert second._meeting.sent == []


@pytest.mark.parametrize("free", [None, True], ids=["gone before", "gone after the first spoke"])
def test_where_the_store_is_gone_one_on_each_machine_says_why(launch, free):
    errors = []
    for rank, agent in enumerate(["one", "one", "two", "two"]):
        process = launch(rank=rank, size=4, agent=agent)
        process._meeting = Claimed(free if rank == 0 else None)
        with pytest.raises((UsageError, typer.Exit)) as error, process.speaking():
            raise UsageError("here", "wrong")
        errors.append(error.type)

    assert errors == [UsageError, typer.Exit] * 2


@pytest.mark.parametrize(("local_rank", "error"), [("0", UsageError), ("1", typer.Exit)])
def test_without_torchrun_the_first_of_each_machine_says_why(
    launch, monkeypatch, local_rank, error
):
    launch()
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    process = Launch(3, 4)
    process._meeting = Claimed(free=None)

    with pytest.raises(error), process.speaking():
        raise UsageError("here", "wrong")


@pytest.mark.parametrize(("shared", "last"), [("True", False), ("False", True)])
def test_the_first_ends_last_if_it_has_the_store(launch, monkeypatch, shared, last):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    processes = [launch(rank=rank, size=2) for rank in range(2)]
    for process in processes:
        process._meeting = Claimed(free=True)
        with process.speaking():
            pass

    assert [process._meeting.left for process in processes] == [last, False]


@pytest.mark.parametrize("by_torchrun", [True, False])
def test_a_process_of_torchrun_stops_when_that_has_ended(launch, monkeypatch, by_torchrun):
    if by_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    stop, process = StopSignals(), launch()
    process.parent += 1  # it had another then

    process.watch(stop)

    assert (stop.orphaned, stop.requested(), stop.repeated) == (by_torchrun,) * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_where_torchrun_has_ended_the_first_says_what_is_saved(
    launch, trained, monkeypatch, capfd, rank
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stop, process = StopSignals(), launch(rank=rank, size=2)
    process.parent += 1
    process.watch(stop)
    process.remember(trained)
    process._meeting = Claimed(free=None)

    with pytest.raises(typer.Exit) as ended, process.speaking():
        raise LostError("process 0 of 2", "another one ended")  # the store ended with torchrun

    assert ended.value.exit_code == 143
    said = capfd.readouterr().err.splitlines()
    last = RunFolder(trained).checkpoints.last().step
    place = trained.absolute().relative_to(Path.cwd())
    assert said == [
        f"torchrun has ended; step {last} is saved; continue with:",
        f"torchrun ... -m charlm train --resume --out {place}",
    ] * (rank == 0)


def test_one_that_stops_with_another_ends_as_by_sigterm(launch):
    process, stop = launch(rank=1, size=2), StopSignals()
    process._meeting = Claimed(free=True)
    process.watch(stop)

    with pytest.raises(Stopped), process.speaking():
        raise Stopped

    assert stop.exit_code == 143


def test_where_there_is_nothing_to_train_the_others_end_too(launch):
    first = launch(size=2)
    first._meeting = Claimed(free=True)

    with first.speaking():
        pass

    assert first._meeting.sent == [{"end": 0}]
