import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charlm.errors import CheckpointError
from charlm.reporting.curves import Series, extremes, read_curves, thinned

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


def series(values):
    values = np.array(values, float)
    return Series(np.arange(1.0, len(values) + 1), 0.5 * np.arange(len(values)), values)


def write_log(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_log_is_read_into_its_curves(tmp_path):
    log = write_log(
        tmp_path / "metrics.jsonl",
        [
            {"kind": "eval", "step": 0, "split": "val", "loss_nats": 4.0, "seconds": 0.5},
            {"kind": "train", "step": 1, "loss_nats": 3.5, "learning_rate": 0.1, "seconds": 1.0},
            {"kind": "skip", "step": 2, "reason": "loss nan", "seconds": 2.0},
            {"kind": "train", "step": 3, "loss_nats": 3.0, "grad_norm": 2.0, "seconds": 3.0},
            {"kind": "sample", "step": 3, "text": "x", "seconds": 3.5},
            {"kind": "eval", "step": 3, "split": "val", "loss_nats": 3.25, "seconds": 4.0},
            {"kind": "end", "step": 3},
        ],
    )

    curves = read_curves(log)

    assert curves.train.steps.tolist() == [1, 3]
    assert curves.train.values.tolist() == [3.5, 3.0]
    assert curves.val.seconds.tolist() == [0.5, 4.0]
    assert curves.learning_rate.values.tolist() == [0.1]
    assert curves.grad_norm.steps.tolist() == [3]
    assert len(curves.speed) == 0
    assert curves.best == (3, 3.25)
    assert curves.setbacks == ((2, "skip: loss nan"),)


def test_without_a_log_there_are_no_curves(tmp_path):
    curves = read_curves(tmp_path / "metrics.jsonl")

    assert (len(curves.train), len(curves.val), curves.best) == (0, 0, None)


@pytest.mark.parametrize(
    "record",
    [
        {"step": 1},
        {"kind": "train", "loss_nats": 1.0, "seconds": 1.0},
        {"kind": "train", "step": 1, "loss_nats": "high", "seconds": 1.0},
        {"kind": "eval", "step": 1, "seconds": 1.0},
        {"kind": "train", "step": [], "loss_nats": 1.0, "seconds": 1.0},
    ],
)
def test_a_damaged_log_is_named_with_its_line(tmp_path, record):
    first = {"kind": "end", "step": 0}

    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: not a record of charlm"):
        read_curves(write_log(tmp_path / "metrics.jsonl", [first, record]))


@given(values=NUMBERS, most=st.integers(1, 70))
@settings(max_examples=60)
def test_thinning_keeps_means_extremes_and_every_step(values, most):
    whole = series(values)

    thin = thinned(whole, most)

    assert len(thin.mean) == min(most, len(values))
    assert thin.size.sum() == len(values)
    assert thin.size.max() - thin.size.min() <= 1
    first = 0
    for mean, low, high, step, count in zip(
        thin.mean, thin.low, thin.high, thin.steps, thin.size, strict=True
    ):
        group = whole.values[first : first + count]
        assert mean == pytest.approx(group.mean(), abs=1e-6)
        assert (low, high) == (group.min(), group.max())
        assert step == pytest.approx(whole.steps[first : first + count].mean())
        first += count


@given(values=NUMBERS, most=st.integers(4, 70))
@example(values=[0.0, 1.0, 5.0, 1.0, -5.0, 1.0, 0.0], most=4)
@settings(max_examples=60)
def test_points_as_they_are_keep_the_extremes_and_both_ends(values, most):
    whole = series(values)

    few = extremes(whole, most)

    assert len(few) <= max(most, 4)
    assert {whole.values.min(), whole.values.max()} <= set(few.values.tolist())
    assert [few.steps[0], few.steps[-1]] == [whole.steps[0], whole.steps[-1]]
    for step, seconds, value in zip(few.steps, few.seconds, few.values, strict=True):
        at = int(step) - 1
        assert (whole.seconds[at], whole.values[at]) == (seconds, value)


def test_an_empty_series_stays_empty():
    assert len(thinned(series([])).mean) == 0
    assert len(extremes(series([]))) == 0
