"""What a process does that torchrun started."""

import pytest
import typer
from torch.distributed import HashStore

from charlm.cli.launch import Launch
from charlm.errors import UsageError


class Claimed:
    """A meeting in which another process has failed first, or none."""

    def __init__(self, free):
        self.free, self.sent = free, []

    def claim(self):
        return self.free

    def send(self, orders):
        self.sent.append(orders)


@pytest.fixture
def launch(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    store = HashStore()

    def make(restarts=0, rank=0):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        found = Launch(rank, 2)
        found._store = store
        return found

    return make


def test_a_process_that_is_started_again_goes_on_with_its_run(launch, trained):
    assert launch().earlier_run() is None
    launch().remember(trained)

    again = launch(1).earlier_run()

    assert again.path == trained.absolute()


def test_a_run_that_was_taken_back_is_begun_again(launch, tmp_path):
    launch().remember(tmp_path / "gone")

    assert launch(1).earlier_run() is None


def test_a_run_that_this_launch_did_not_begin_is_not_gone_on_with(launch, trained):
    """Else a start that was refused, as the folder holds another run, would train that one."""
    assert launch(0).earlier_run() is None
    assert launch(1).earlier_run() is None


def test_without_torchrun_nothing_is_remembered(launch, trained, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    launch(1).remember(trained)

    assert launch(1).earlier_run() is None


def test_the_first_that_fails_says_why(launch):
    first = launch()
    first._meeting = Claimed(free=True)

    with pytest.raises(UsageError), first.speaking():
        raise UsageError("here", "wrong")

    assert first._meeting.sent == [{"end": 2}]


def test_one_that_fails_later_keeps_silent(launch):
    second = launch(rank=1)
    second._meeting = Claimed(free=False)

    with pytest.raises(typer.Exit) as ended, second.speaking():
        raise UsageError("here", "wrong")

    assert ended.value.exit_code == 2
    assert second._meeting.sent == []


def test_where_there_is_nothing_to_train_the_others_end_too(launch):
    first = launch()
    first._meeting = Claimed(free=True)

    with first.speaking():
        pass

    assert first._meeting.sent == [{"end": 0}]
