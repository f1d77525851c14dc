import math

import pytest
import torch

from charlm.errors import NonFiniteError
from charlm.runs.folder import read_metrics
from tests.training.conftest import state_hash, timeless

STEADY = ["train.schedule=constant", "train.max_steps=12", "train.eval_every=4"]


def poison(trainer, breaks, value=math.nan):
    """Make the loss of those steps (counted from 1) `value` for which `breaks` says so."""
    accumulate = trainer._accumulate

    def poisoned(first):
        loss = accumulate(first)
        return loss * value if breaks(trainer.state.step + 1) else loss

    trainer._accumulate = poisoned
    return trainer


def kinds(trainer):
    """What the run's log says of each step."""
    found = {}
    for record in read_metrics(trainer.run.metrics):
        if record["kind"] in ("train", "skip"):
            assert record["step"] not in found
            found[record["step"]] = record["kind"]
    return found


def test_what_happens_twice_is_the_recipes_fault(make_trainer):
    trainer = poison(make_trainer(*STEADY), lambda step: step == 6)

    with pytest.raises(
        NonFiniteError, match=r"loss nan at step 6, twice \(rate .*; step 4 is saved; lower train"
    ) as caught:
        list(trainer.records())

    assert len(f"charlm: error: {caught.value}") <= 200
    assert trainer.state.step == 5


def test_what_does_not_happen_again_is_the_machines_fault(make_trainer):
    """One bit of a weight's use flips in the first pass only."""
    trainer = make_trainer(*STEADY)
    passes = []
    trainer = poison(trainer, lambda step: step == 6 and (passes.append(step), len(passes) == 1)[1])

    with pytest.raises(NonFiniteError, match=r"6, not when run again .*; suspect the machine"):
        list(trainer.records())

    assert len(passes) == 2


@pytest.mark.parametrize("micro", [4, 1])
def test_the_worst_gradients_are_named_and_no_weight_changes(make_trainer, micro):
    trainer = make_trainer(*STEADY, f"train.micro_batch_size={micro}")
    accumulate = trainer._accumulate

    def poisoned(first):
        loss = accumulate(first)
        if trainer.state.step == 5 and first == 4 - micro:  # in the last micro-batch
            trainer.model.get_parameter("head.weight").grad[0, :3] = math.inf
        return loss

    trainer._accumulate = poisoned
    records = trainer.records()
    while next(records).get("step") != 5:
        pass
    before = [p.detach().clone() for p in trainer.model.parameters()]

    with pytest.raises(NonFiniteError, match=r"gradient norm (inf|nan) .*; in head\."):
        list(records)

    for then, now in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(then, now)


def test_steps_can_be_left_out(make_trainer):
    trainer = poison(make_trainer(*STEADY, "train.non_finite=skip"), lambda step: step in (3, 4, 9))
    before = {}
    original = trainer._non_finite

    def watched(*arguments):
        before[trainer.state.step] = [p.detach().clone() for p in trainer.model.parameters()]
        return original(*arguments)

    trainer._non_finite = watched
    for record in trainer.records():
        if record["kind"] == "skip":
            kept = before[record["step"] - 1]
            assert all(map(torch.equal, kept, trainer.model.parameters()))

    assert kinds(trainer) == {
        step: "skip" if step in (3, 4, 9) else "train" for step in range(1, 13)
    }


def test_no_more_than_three_in_a_row_are_left_out(make_trainer):
    trainer = poison(make_trainer(*STEADY, "train.non_finite=skip"), lambda step: step >= 6)

    with pytest.raises(NonFiniteError, match="at step 9"):
        list(trainer.records())


def test_a_run_with_steps_left_out_is_resumed_exactly(make_trainer):
    options = [*STEADY, "train.non_finite=skip", "train.save_every=1"]
    bad = (4, 5, 6, 8)
    straight = poison(make_trainer(*options, out="straight"), lambda step: step in bad)
    list(straight.records())
    stopped = make_trainer(*options, should_stop=lambda: stopped.state.step == 5)
    list(poison(stopped, lambda step: step in bad).records())

    resumed = make_trainer(resume=True)
    assert resumed.state.skipped == 2
    list(poison(resumed, lambda step: step in bad).records())

    assert state_hash(resumed) == state_hash(straight)
    assert timeless(resumed.run.metrics) == timeless(straight.run.metrics)


def too_fast(trainer, limit):
    """Diverge at step 7 for as long as the learning rate is above a limit."""
    return poison(trainer, lambda step: step == 7 and trainer._learning_rate() > limit)


def test_a_run_can_return_to_its_best_checkpoint_and_go_on_slower(make_trainer):
    trainer = too_fast(make_trainer(*STEADY, "train.non_finite=rollback"), 3e-4)

    records = list(trainer.records())

    back = [r for r in records if r["kind"] == "rollback"]
    assert [r["rate_factor"] for r in back] == [0.5, 0.25]
    assert all(r["step"] == 4 for r in back)
    assert back[0]["reason"].startswith("loss nan at step 7")
    assert kinds(trainer) == dict.fromkeys(range(1, 13), "train")
    rates = [r["learning_rate"] for r in read_metrics(trainer.run.metrics) if r["kind"] == "train"]
    assert rates[3] == 1e-3
    assert rates[4:] == [2.5e-4] * 8


def test_it_returns_three_times_at_most(make_trainer):
    trainer = too_fast(make_trainer(*STEADY, "train.non_finite=rollback"), 0)

    with pytest.raises(NonFiniteError, match=r"at step 7, twice \(rate 0.000125\)"):
        list(trainer.records())


def test_without_a_checkpoint_there_is_nothing_to_return_to(make_trainer):
    trainer = make_trainer(*STEADY, "train.non_finite=rollback", "data.val_fraction=0")

    with pytest.raises(NonFiniteError, match="nothing is saved"):
        list(too_fast(trainer, 0).records())


@pytest.mark.parametrize("cut", [5, 8])
def test_a_run_that_returned_is_resumed_exactly(make_trainer, cut):
    options = [*STEADY, "train.non_finite=rollback"]
    straight = too_fast(make_trainer(*options, out="straight"), 3e-4)
    list(straight.records())
    killed = too_fast(make_trainer(*options), 3e-4)
    seen = []
    for record in killed.records():
        seen.append(record["step"])
        if seen.count(cut) == 2 or (record["kind"] == "train" and record["step"] == 8):
            break
    killed.metrics.close()  # what the system would do

    resumed = make_trainer(resume=True)
    list(too_fast(resumed, 3e-4).records())

    assert state_hash(resumed) == state_hash(straight)
    assert timeless(resumed.run.metrics) == timeless(straight.run.metrics)


def test_weights_that_an_update_broke_are_left_behind_by_returning(make_trainer):
    trainer = make_trainer(*STEADY, "train.non_finite=rollback")
    step = trainer._step

    def broken():
        record = step()
        if record["step"] == 8 and trainer.state.rate_factor == 1:
            with torch.no_grad():
                trainer.model.head.weight[0, 0] = math.inf
        return record

    trainer._step = broken
    records = list(trainer.records())

    assert [r["step"] for r in records if r["kind"] == "rollback"] == [4]
    assert trainer.state.step == 12
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_one_poisoned_gradient_is_the_one_that_is_named(make_trainer):
    """Clipping by a norm that is none would make all of them so."""
    for clip in (0, 1):
        trainer = make_trainer(*STEADY, f"train.grad_clip={clip}", out=f"run-{clip}")
        accumulate = trainer._accumulate

        def poisoned(first, trainer=trainer, accumulate=accumulate):
            loss = accumulate(first)
            trainer.model.get_parameter("head.weight").grad[0, 0] = math.nan
            return loss

        trainer._accumulate = poisoned
        with pytest.raises(NonFiniteError, match=r"; in head\.weight; step 0 is saved"):
            list(trainer.records())
