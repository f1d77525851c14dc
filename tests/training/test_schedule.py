import math

import pytest

from charlm.config import TrainConfig
from charlm.training import learning_rate

BASE = {"max_steps": 1000, "warmup_steps": 100, "learning_rate": 1e-3, "min_lr": 1e-4}


def train(**changes):
    return TrainConfig(**{**BASE, **changes})


def test_the_cosine_is_nanogpts_at_every_step():
    def nanogpt(it):  # its get_lr with lr_decay_iters = max_iters, written down from its formula
        if it < 100:
            return 1e-3 * (it + 1) / (100 + 1)
        ratio = (it - 100) / (1000 - 100)
        return 1e-4 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (1e-3 - 1e-4)

    for step in range(1001):
        assert learning_rate(train(), step) == pytest.approx(nanogpt(step), rel=1e-12)


def test_first_peak_middle_and_last_rates_by_hand():
    assert learning_rate(train(), 0) == pytest.approx(1e-3 / 101)
    assert learning_rate(train(), 99) == pytest.approx(1e-3 * 100 / 101)
    assert learning_rate(train(), 100) == pytest.approx(1e-3)
    assert learning_rate(train(), 550) == pytest.approx((1e-3 + 1e-4) / 2)
    assert learning_rate(train(), 1000) == pytest.approx(1e-4)


def test_wsd_is_stable_then_falls_in_a_line_over_the_last_fifth():
    wsd = train(schedule="wsd", warmup_steps=0)

    assert learning_rate(wsd, 0) == learning_rate(wsd, 799) == 1e-3
    assert learning_rate(wsd, 900) == pytest.approx((1e-3 + 1e-4) / 2)
    assert learning_rate(wsd, 1000) == pytest.approx(1e-4)


def test_constant_stays_at_the_peak_after_the_warmup():
    constant = train(schedule="constant")

    assert learning_rate(constant, 50) < 1e-3
    assert {learning_rate(constant, s) for s in (100, 500, 1000)} == {1e-3}


def test_with_a_clock_the_share_of_time_counts_and_steps_do_not():
    assert learning_rate(train(minutes=1), 5000, spent=0.5) == pytest.approx(5.5e-4)
    assert learning_rate(train(minutes=1), 5000, spent=1.0) == pytest.approx(1e-4)
    assert learning_rate(train(minutes=1), 5000, spent=1.7) == pytest.approx(1e-4)


def test_with_a_clock_the_warm_up_ends_with_a_tenth_of_the_time():
    """However few updates a busy machine does, the rate reaches its peak and falls to the end."""
    timed = train(minutes=1)

    assert learning_rate(timed, 10, spent=0.01) == pytest.approx(1e-3 * 11 / 101)
    assert learning_rate(timed, 1, spent=0.05) == pytest.approx(5e-4)
    assert learning_rate(timed, 2, spent=0.1) == pytest.approx(1e-3, rel=0.03)
    assert learning_rate(timed, 10, spent=0.9) < 2e-4


def test_no_warmup_and_no_steps_divide_nothing_by_zero():
    assert learning_rate(train(max_steps=0, warmup_steps=0), 0) == 1e-3
    assert learning_rate(train(max_steps=100, warmup_steps=100), 100) == 1e-3
