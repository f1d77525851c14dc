"""How processes find each other, played by threads that share a store."""

import threading

import pytest
from torch.distributed import HashStore

from charlm.errors import Stopped
from charlm.training.meeting import Meeting
from charlm.training.ranks import LostError


def meet(store, size=3):
    found = {}

    def come(rank):
        found[rank] = Meeting(store, rank, size, timeout=200.0)

    threads = [threading.Thread(target=come, args=[rank]) for rank in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    return [found[rank] for rank in range(size)]


def test_all_learn_what_the_first_says(monkeypatch):
    first, *others = meet(HashStore())

    first.send({"run": "runs/a", "checkpoint": None})

    assert [one.orders() for one in others] == [{"run": "runs/a", "checkpoint": None}] * 2


def test_only_the_first_that_fails_speaks_and_the_others_do_not_wait():
    first, second, third = meet(HashStore())

    assert [second.claim(), first.claim(), third.claim()] == [True, False, False]
    with pytest.raises(LostError):
        third.orders()


def test_a_start_knows_nothing_of_the_start_before_it():
    store = HashStore()
    before = meet(store)
    before[0].send({"run": "runs/before"})
    before[1].claim()

    first, second, _ = meet(store, 3)
    first.send({"run": "runs/after"})

    assert second.orders() == {"run": "runs/after"}
    assert second.claim()


def test_a_smaller_group_can_come_back():
    store = HashStore()
    meet(store, 3)

    first, second = meet(store, 2)
    first.send({"end": 0})

    assert second.orders() == {"end": 0}


def test_who_did_not_come_is_named():
    with pytest.raises(LostError, match="2 processes of 3 did not come"):
        Meeting(HashStore(), 0, 3, timeout=0.05)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_ends_the_wait(rank):
    with pytest.raises(Stopped):
        Meeting(HashStore(), rank, 2, lambda: True)
