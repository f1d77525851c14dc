import time

import pytest
import torch

from charlm.runs.records import TrainRecord
from charlm.training import Clock, Learner, TrainingLoop, learner
from charlm.training.ranks import Ranks
from charlm.training.schedule import learning_rate
from charlm.training.threads import ThreadChoice


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


def test_time_before_the_first_step_is_no_share_of_the_schedule(now):
    """Baselines, an evaluation and a compilation end before the rate begins to move."""
    clock = Clock(began=1000.0, budget=60.0, reserved=10.0)
    now[0] += 20
    clock.before = 20.0
    assert clock.share() == 0.0

    now[0] += 15
    assert clock.share() == 0.5
    now[0] += 15
    assert clock.share() == 1.0


def test_a_step_that_would_be_mostly_over_the_budget_is_not_begun(now):
    clock = Clock(began=1000.0, budget=60.0, reserved=10.0)
    now[0] += 45

    assert not clock.is_over(coming=9.0)
    assert clock.is_over(coming=11.0)
    assert not Clock(began=0.0).is_over(coming=1e9)


def test_an_evaluation_takes_at_most_a_tenth_of_a_budget(make_loop, monkeypatch):
    loop = make_loop("train.minutes=1", "data.val_fraction=0.5")
    job, val = loop.job, loop.val
    monkeypatch.setattr(learner, "TRIED", 100)

    job.limit_scoring(len(val), seconds_a_char=6 / 200)

    assert job.score(val).chars <= 200
    assert job.score(val, share=0.5).chars <= 100
    assert job.take_remarks() == [
        f"evaluations score 200 of {len(val):,} characters, spread evenly: all would take "
        f"{6 / 200 * len(val):.0f} s, over a tenth of the budget"
    ]
    assert job.take_remarks() == []


def test_a_budget_measures_how_long_scoring_takes_before_it_scores(make_loop, monkeypatch):
    loop = make_loop("train.minutes=1")
    seen = []
    monkeypatch.setattr(loop.job, "limit_scoring", lambda *found: seen.append(found))
    loop.job.score(loop.val)

    assert [chars for chars, seconds in seen] == [len(loop.val)]
    assert seen[0][1] > 0


def test_a_run_in_a_budget_gives_back_the_threads_and_keeps_when_it_began(make_loop, monkeypatch):
    begun = torch.get_num_threads()
    monkeypatch.setattr(ThreadChoice, "took", lambda *_: torch.set_num_threads(1) or "fewer")
    records = [*make_loop("train.minutes=0.01").records()]

    assert torch.get_num_threads() == begun
    assert "fewer" in [r.text for r in records if r.kind == "note"]
    resumed = make_loop("train.minutes=0.02", resume=True)
    assert 0 < resumed.state.before < 0.6


def test_in_several_processes_a_budgets_schedule_begins_after_preparing_too(make_loop, monkeypatch):
    class Pair(Ranks):
        size = 2

    loop = make_loop("train.minutes=1", "train.micro_batch_size=2", ranks=Pair())
    loop.clock.began -= 30.0  # baselines took half of the budget

    def prepare():
        loop.clock.before = loop.clock.seconds()
        yield from ()

    monkeypatch.setattr(loop.learner, "prepare", prepare)
    first = next(record for record in loop.records() if record.kind == "train")

    assert loop.config.train.warmup_steps > 0
    assert first.learning_rate == learning_rate(loop.config.train, 0, 0.0)


def test_without_a_budget_the_number_of_threads_never_changes(make_loop, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("it changed"))
    loop = make_loop()
    assert [*loop.records()]
    assert loop.state.before == 0.0


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
