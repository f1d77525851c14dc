"""The number of threads follows the speed of steps. Nothing is timed here."""

import pytest
import torch

from charlm.training.threads import LATEST, PAUSE, TRIED, ThreadChoice


@pytest.fixture
def threads(monkeypatch):
    """A process that may use four threads."""
    now = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: now.__setitem__(0, number))
    return now


def steps(choice, threads, seconds, count):
    """Do steps that take `seconds(threads)`; return the numbers that they used, and remarks."""
    used, remarks = [], []
    for _ in range(count):
        used.append(threads[0])
        remarks.append(choice.took(seconds(threads[0])))
    return used, [text for text in remarks if text]


def quiet(number):
    return 1 / number


def busy(number):
    """Another program takes two of the cores."""
    return 1 / number if number <= 2 else 0.9


def test_a_quiet_machine_keeps_all_threads_and_says_nothing(threads):
    used, remarks = steps(ThreadChoice(), threads, quiet, 300)

    assert used[: 1 + 3 * TRIED] == [4, *[4] * TRIED, *[3] * TRIED, *[2] * TRIED]
    assert set(used[1 + 3 * TRIED :]) == {4}
    assert remarks == []


def test_a_busy_machine_gets_fewer_from_the_start(threads):
    used, remarks = steps(ThreadChoice(), threads, busy, PAUSE)

    assert set(used[1 + 3 * TRIED :]) == {2}
    assert remarks == [
        "a step takes 0.9 s with 4 threads and 0.5 s with 2, so 2 will be used while that lasts"
    ]


def test_steps_that_slow_down_are_tried_again_and_all_threads_come_back(threads):
    choice = ThreadChoice()
    steps(choice, threads, quiet, PAUSE)
    _, slower = steps(choice, threads, busy, PAUSE + LATEST + 3 * TRIED)
    assert threads == [2]
    _, faster = steps(choice, threads, quiet, PAUSE + 1 + 3 * TRIED)

    assert threads == [4]
    assert (len(slower), len(faster)) == (1, 1)
    choice.took(9.0)
    choice.restore()
    assert threads == [4]


def test_one_thread_is_no_choice(threads):
    threads[0] = 1
    choice = ThreadChoice()

    assert [choice.took(1.0) for _ in range(99)] == [None] * 99
    assert threads == [1]
