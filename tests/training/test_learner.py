import time

import pytest

from charlm.runs.records import TrainRecord
from charlm.training import Clock, Learner, TrainingLoop


@pytest.fixture
def now(monkeypatch):
    """The time, in a list, that only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_budget_is_spent_by_the_clock_less_the_last_evaluation(now):
    clock = Clock(began=1000.0, budget=60.0)
    now[0] += 25

    assert (clock.seconds(), clock.left()) == (25.0, 35.0)
    clock.reserved = 10.0
    assert clock.share() == 0.5


def test_time_before_a_stop_counts_and_the_wait_after_it_does_not(now):
    clock = Clock(began=1000.0)
    clock.add(5.0)
    assert clock.seconds() == 5.0

    now[0] += 500
    clock.add(5.0 - clock.seconds())
    assert clock.seconds() == 5.0


def test_a_budget_that_an_evaluation_fills_is_spent(now):
    assert Clock(began=999.0, budget=1.0, reserved=5.0).share() > 1


def test_a_loop_drives_any_learner(make_loop):
    """It evaluates, samples and saves for one that learns nothing at all."""

    class Idle(Learner):
        optimizers = {}  # noqa: RUF012
        total_steps = 3

        def __init__(self, job, state):
            self.model, self.state = job.model, state

        def spent(self):
            return self.state.step / self.total_steps

        def step(self):
            self.state.step += 1
            return TrainRecord(step=self.state.step, loss_nats=1.0, seconds=0.0)

    begun = make_loop("train.eval_every=2", "train.sample_every=2", "train.sample_chars=3")
    loop = TrainingLoop(begun.job, learner=Idle(begun.job, begun.state))

    kinds = [(record.kind, record.step) for record in loop.records()]

    assert kinds == [
        ("eval", 0), ("save", 0), ("train", 1), ("train", 2), ("eval", 2), ("sample", 2),
        ("train", 3), ("eval", 3), ("save", 3),
    ]  # fmt: skip
