import math

import pytest
import torch

from charlm.errors import NonFiniteError
from charlm.runs.metrics import read_metrics
from tests.training.conftest import state_hash, timeless

STEADY = ["train.schedule=constant", "train.max_steps=12", "train.eval_every=4"]


def poison(loop, breaks, value=math.nan):
    """Make the loss of those steps (counted from 1) `value` for which `breaks` says so."""
    accumulate = loop.learner._accumulate

    def poisoned(first):
        loss = accumulate(first)
        return loss * value if breaks(loop.state.step + 1) else loss

    loop.learner._accumulate = poisoned
    return loop


def kinds(loop):
    """What the run's log says of each step."""
    found = {}
    for record in read_metrics(loop.run.metrics_path):
        if record["kind"] in ("train", "skip"):
            assert record["step"] not in found
            found[record["step"]] = record["kind"]
    return found


def test_what_happens_twice_is_the_recipes_fault(make_loop):
    loop = poison(make_loop(*STEADY), lambda step: step == 6)

    with pytest.raises(
        NonFiniteError,
        match=r"step 6: loss nan, again when repeated \(learning rate .*; step 4 is saved; lower train",
    ) as caught:
        list(loop.records())

    assert len(f"charlm: error: {caught.value}") <= 200
    assert loop.state.step == 5


def test_what_does_not_happen_again_is_the_machines_fault(make_loop):
    """One bit of a weight's use flips in the first pass only."""
    loop = make_loop(*STEADY)
    passes = []
    loop = poison(loop, lambda step: step == 6 and (passes.append(step), len(passes) == 1)[1])

    with pytest.raises(
        NonFiniteError, match=r"^step 6: loss nan, not when repeated .*; suspect the machine"
    ):
        list(loop.records())

    assert len(passes) == 2


@pytest.mark.parametrize("micro", [4, 1])
def test_the_worst_gradients_are_named_and_no_weight_changes(make_loop, micro):
    loop = make_loop(*STEADY, f"train.micro_batch_size={micro}")
    accumulate = loop.learner._accumulate

    def poisoned(first):
        loss = accumulate(first)
        if loop.state.step == 5 and first == 4 - micro:  # in the last micro-batch
            loop.learner.model.get_parameter("head.weight").grad[0, :3] = math.inf
        return loss

    loop.learner._accumulate = poisoned
    records = loop.records()
    while (record := next(records)).kind != "train" or record.step != 5:
        pass
    before = [p.detach().clone() for p in loop.learner.model.parameters()]

    with pytest.raises(NonFiniteError, match=r"gradient norm (inf|nan), .*; in head\."):
        list(records)

    for then, now in zip(before, loop.learner.model.parameters(), strict=True):
        assert torch.equal(then, now)


def test_steps_can_be_left_out(make_loop):
    loop = poison(make_loop(*STEADY, "train.non_finite=skip"), lambda step: step in (3, 4, 9))
    before = {}
    original = loop.learner._non_finite

    def watched(*arguments):
        before[loop.state.step] = [p.detach().clone() for p in loop.learner.model.parameters()]
        return original(*arguments)

    loop.learner._non_finite = watched
    for record in loop.records():
        if record.kind == "skip":
            kept = before[record.step - 1]
            assert all(map(torch.equal, kept, loop.learner.model.parameters()))

    assert kinds(loop) == {step: "skip" if step in (3, 4, 9) else "train" for step in range(1, 13)}


def test_no_more_than_three_in_a_row_are_left_out(make_loop):
    loop = poison(make_loop(*STEADY, "train.non_finite=skip"), lambda step: step >= 6)

    with pytest.raises(NonFiniteError, match="step 9: "):
        list(loop.records())


def test_a_run_with_steps_left_out_is_resumed_exactly(make_loop):
    options = [*STEADY, "train.non_finite=skip", "train.save_every=1"]
    bad = (4, 5, 6, 8)
    straight = poison(make_loop(*options, out="straight"), lambda step: step in bad)
    list(straight.records())
    stopped = make_loop(*options, should_stop=lambda: stopped.state.step == 5)
    list(poison(stopped, lambda step: step in bad).records())

    resumed = make_loop(resume=True)
    assert resumed.state.skipped == 2
    list(poison(resumed, lambda step: step in bad).records())

    assert state_hash(resumed) == state_hash(straight)
    assert timeless(resumed.run.metrics_path) == timeless(straight.run.metrics_path)


def too_fast(loop, limit):
    """Diverge at step 7 for as long as the learning rate is above a limit."""
    return poison(loop, lambda step: step == 7 and loop.learner.learning_rate() > limit)


def test_a_run_can_return_to_its_best_checkpoint_and_go_on_slower(make_loop):
    loop = too_fast(make_loop(*STEADY, "train.non_finite=rollback"), 3e-4)

    records = list(loop.records())

    back = [r for r in records if r.kind == "rollback"]
    assert [r.rate_factor for r in back] == [0.5, 0.25]
    assert all(r.step == 4 for r in back)
    assert back[0].reason.startswith("step 7: loss nan, again when repeated (")
    assert kinds(loop) == dict.fromkeys(range(1, 13), "train")
    rates = [
        r["learning_rate"] for r in read_metrics(loop.run.metrics_path) if r["kind"] == "train"
    ]
    assert rates[3] == 1e-3
    assert rates[4:] == [2.5e-4] * 8


def test_it_returns_three_times_at_most(make_loop):
    loop = too_fast(make_loop(*STEADY, "train.non_finite=rollback"), 0)

    with pytest.raises(NonFiniteError, match=r"^step 7: .* \(learning rate 0.000125\)"):
        list(loop.records())


def test_without_a_checkpoint_there_is_nothing_to_return_to(make_loop):
    loop = make_loop(*STEADY, "train.non_finite=rollback", "data.val_fraction=0")

    with pytest.raises(NonFiniteError, match="nothing is saved"):
        list(too_fast(loop, 0).records())


@pytest.mark.parametrize("cut", [5, 8])
def test_a_run_that_returned_is_resumed_exactly(make_loop, cut):
    options = [*STEADY, "train.non_finite=rollback"]
    straight = too_fast(make_loop(*options, out="straight"), 3e-4)
    list(straight.records())
    killed = too_fast(make_loop(*options), 3e-4)
    seen = []
    for record in killed.records():
        seen.append(record.step)
        if seen.count(cut) == 2 or (record.kind == "train" and record.step == 8):
            break
    killed.metrics.close()  # what the system would do

    resumed = make_loop(resume=True)
    list(too_fast(resumed, 3e-4).records())

    assert state_hash(resumed) == state_hash(straight)
    assert timeless(resumed.run.metrics_path) == timeless(straight.run.metrics_path)


def test_weights_that_an_update_broke_are_left_behind_by_returning(make_loop):
    loop = make_loop(*STEADY, "train.non_finite=rollback")
    step = loop.learner.step

    def broken():
        record = step()
        if record.step == 8 and loop.state.rate_factor == 1:
            with torch.no_grad():
                loop.learner.model.head.weight[0, 0] = math.inf
        return record

    loop.learner.step = broken
    records = list(loop.records())

    assert [r.step for r in records if r.kind == "rollback"] == [4]
    assert loop.state.step == 12
    assert all(p.isfinite().all() for p in loop.learner.model.parameters())


def test_one_poisoned_gradient_is_the_one_that_is_named(make_loop):
    """Clipping by a norm that is none would make all of them so."""
    for clip in (0, 1):
        loop = make_loop(*STEADY, f"train.grad_clip={clip}", out=f"run-{clip}")
        accumulate = loop.learner._accumulate

        def poisoned(first, loop=loop, accumulate=accumulate):
            loss = accumulate(first)
            loop.learner.model.get_parameter("head.weight").grad[0, 0] = math.nan
            return loss

        loop.learner._accumulate = poisoned
        with pytest.raises(NonFiniteError, match=r"; in head\.weight; step 0 is saved"):
            list(loop.records())
