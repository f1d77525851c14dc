"""How processes find each other, played by threads that share a store."""

import threading

import pytest
from torch.distributed import DistNetworkError, HashStore, Store

from charlm.errors import Stopped, check_stop
from charlm.training.meeting import Meeting
from charlm.training.ranks import Group, LostError


def meet(store, size=3, earlier=("", "", "")):
    found = {}

    def come(rank):
        found[rank] = Meeting(store, rank, size, earlier=earlier[rank], timeout=200.0)

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

    first.send({"end": 0})

    assert [one.orders() for one in others] == [{"end": 0}] * 2


def test_only_the_first_that_fails_speaks_and_the_others_do_not_wait():
    first, second, third = meet(HashStore())

    assert [second.claim(), first.claim(), third.claim()] == [True, False, False]
    with pytest.raises(LostError):
        third.orders()


@pytest.mark.parametrize("earlier", [("", "", "runs/a"), ("runs/a", "", ""), ("", "", "")])
def test_the_first_learns_what_another_knows(earlier):
    first, *_ = meet(HashStore(), earlier=earlier)

    assert first.earlier == max(earlier)


def test_a_start_knows_nothing_of_the_start_before_it():
    store = HashStore()
    before = meet(store)
    before[0].send({"run": "runs/before"})
    before[1].claim()

    first, second, _ = meet(store, 3)
    first.send({"run": "runs/after"})

    assert second.orders() == {"run": "runs/after"}
    assert second.claim()


@pytest.mark.parametrize(
    "waits", [lambda one: one.orders(), lambda one: one.open(one.group())], ids=["orders", "open"]
)
def test_where_one_stops_the_others_wait_no_longer(waits):
    first, second, third = meet(HashStore())
    third.store.set("ready/2", "")  # it was, and then was stopped

    assert third.stop()

    for one in (first, second):
        with pytest.raises(Stopped):
            waits(one)


def test_who_is_asked_to_stop_when_all_have_agreed_to_begin_begins_too(monkeypatch):
    first, second = meet(HashStore(), 2)
    opened = []
    monkeypatch.setattr(Group, "open", lambda group: opened.append(group.rank))
    second.store.set("ready/1", "")
    first.open(first.group())  # all were ready
    second.should_stop = lambda: True
    monkeypatch.setattr(second, "_wait", lambda *_: check_stop(second.should_stop))

    second.open(second.group())

    assert opened == [0, 1]
    assert not second.stop()


def test_the_one_that_ends_last_waits_for_the_others():
    first, second = meet(HashStore(), 2)
    waits = threading.Thread(target=first.leave, args=[True])
    waits.start()
    waits.join(0.1)
    assert waits.is_alive()

    second.leave(False)
    waits.join(200)

    assert not waits.is_alive()


@pytest.mark.parametrize(
    "asks",
    [
        lambda one: one.orders(),
        lambda one: one.send({"end": 0}),
        lambda one: one.open(one.group()),
        lambda one: one.stop(),
        lambda one: one.leave(True),
        lambda one: Meeting(one.store, 0, 2),
        lambda one: Meeting(one.store, 1, 2),
    ],
    ids=["orders", "send", "open", "stop", "leave", "greet", "be greeted"],
)
def test_a_store_that_is_gone_is_told_in_a_line(asks):
    class Gone(Store):
        def check(self, keys):
            raise DistNetworkError("Broken pipe")

        def set(self, key, value):
            raise DistNetworkError("Broken pipe")

        def add(self, key, amount):
            raise DistNetworkError("Broken pipe")

        def compare_set(self, key, expected, desired):
            raise DistNetworkError("Broken pipe")

    one, _ = meet(HashStore(), 2)
    one.store = Gone()

    with pytest.raises(LostError, match="process 0 or its machine ended"):
        asks(one)
    assert one.claim() is None


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
