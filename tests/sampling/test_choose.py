import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.sampling.choose import (
    Settings,
    draw,
    keep_allowed,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    log_softmax,
    next_probabilities,
    penalize_repetition,
    softmax,
)

INF = math.inf


def row(*values):
    return np.array([values], dtype=np.float64)


def kept(logits):
    return np.flatnonzero(np.isfinite(logits[0])).tolist()


def test_top_k_keeps_the_likeliest():
    assert keep_top_k(row(1, 3, 2, 0), 2).tolist() == [[-INF, 3, 2, -INF]]


def test_top_k_keeps_exactly_k_of_equals():
    for k in (1, 2, 3, 4):
        assert len(kept(keep_top_k(row(5, 5, 5, 5), k))) == k


def test_top_k_beyond_the_vocabulary_keeps_all():
    assert keep_top_k(row(1, 2), 7).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.3, [0]),
        (0.5, [0]),
        (0.51, [0, 2]),
        (0.79, [0, 2]),
        (0.81, [0, 1, 2]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(p, expected):
    logits = np.log(row(0.5, 0.15, 0.3, 0.05))  # sums to 1; in order: 0.5, 0.3, 0.15, 0.05

    assert kept(keep_top_p(logits, p)) == expected


def test_top_p_is_never_empty():
    assert len(kept(keep_top_p(row(0, 0, 0), 1e-12))) == 1


@pytest.mark.parametrize(
    ("p", "expected"),
    [(1.0, [0]), (0.61, [0]), (0.59, [0, 2]), (0.29, [0, 1, 2]), (0.09, [0, 1, 2, 3])],
)
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(p, expected):
    logits = np.log(row(0.5, 0.15, 0.3, 0.05))  # over the largest: 1, 0.3, 0.6, 0.1

    assert kept(keep_min_p(logits, p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"), [(0.2, [1]), (0.26, [0, 1]), (0.74, [0, 1]), (1.0, [0, 1, 2, 3])]
)
def test_typical_keeps_what_is_about_as_surprising_as_is_to_be_expected(p, expected):
    """Surprises 0.69, 1.39, 2.08, 2.08; expected 1.21. Nearest: 1.39, then 0.69, then the rest."""
    assert kept(keep_typical(np.log(row(0.5, 0.25, 0.125, 0.125)), p)) == expected


def test_typical_may_leave_out_the_likeliest():
    logits = np.log(row(0.4, *[0.1] * 6))  # expected surprise 1.75: 0.1 has 2.30, 0.4 has 0.92

    assert 0 not in kept(keep_typical(logits, 0.3))


def test_typical_counts_what_is_impossible_for_nothing():
    assert kept(keep_typical(row(0, -INF, 0), 1.0)) == [0, 2]


def test_a_penalty_makes_what_came_lately_less_likely_whatever_the_sign_of_its_logit():
    for logits in (row(1, 2, 3), row(-1, -2, -3), row(-1, 0, 1)):
        repeated = np.array([[True, False, True]])
        found = penalize_repetition(logits, repeated, 2.0)
        before = log_softmax(logits)
        np.testing.assert_allclose(found[0], before[0] * [2, 1, 2])
        assert (softmax(found)[0, 1] > softmax(logits)[0, 1]).all()


def test_what_is_allowed_is_drawn_however_large_the_penalty():
    allowed = np.array([False, True, True])
    repeated = np.array([[True, True, True]])
    for penalty in (1e308, 1e9):
        settings = Settings(repetition_penalty=penalty, allowed=allowed, temperature=1e-310)
        found = next_probabilities(np.log(row(0.5, 0.3, 0.2)), settings, repeated)
        assert found[0, 0] == 0
        assert found.sum() == 1


def test_what_is_not_allowed_is_ruled_out():
    assert keep_allowed(row(1, 2, 3), np.array([True, False, True])).tolist() == [[1, -INF, 3]]


def test_temperature_divides_the_logits():
    found = next_probabilities(row(0, math.log(4)), Settings(temperature=2.0))

    np.testing.assert_allclose(found, row(1 / 3, 2 / 3))


def test_temperature_zero_takes_the_likeliest_and_so_does_top_1():
    logits = row(1, 4, 4, 2)

    greedy = next_probabilities(logits, Settings(temperature=0.0))

    assert greedy.tolist() == next_probabilities(logits, Settings(top_k=1)).tolist()
    assert greedy.tolist() == [[0, 1, 0, 0]]


def test_temperature_zero_takes_the_likeliest_of_what_is_allowed():
    allowed = np.array([True, False, True])

    found = next_probabilities(row(1, 3, 2), Settings(temperature=0.0, allowed=allowed))

    assert found.tolist() == [[0, 0, 1]]


def test_a_tiny_temperature_does_not_overflow():
    found = next_probabilities(row(1000.0, -1000.0, 999.0), Settings(temperature=1e-300))

    assert found.tolist() == [[1, 0, 0]]


FILTERS = {
    "none": Settings(),
    "temperature": Settings(temperature=0.8),
    "top-k": Settings(top_k=3),
    "top-p": Settings(temperature=0.8, top_p=0.9),
    "min-p": Settings(min_p=0.1),
    "typical": Settings(typical_p=0.8),
    "penalty": Settings(repetition_penalty=1.5),
    "allowed": Settings(allowed=np.array([True, False, True, True, True])),
}


@pytest.mark.parametrize("settings", FILTERS.values(), ids=FILTERS)
def test_rows_do_not_touch_each_other(settings):
    logits = np.random.default_rng(1).normal(size=(4, 5))
    repeated = np.random.default_rng(2).random((4, 5)) < 0.5

    together = next_probabilities(logits, settings, repeated)

    for i in range(4):
        alone = next_probabilities(logits[i : i + 1], settings, repeated[i : i + 1])
        assert np.array_equal(together[i : i + 1], alone)
    np.testing.assert_allclose(together.sum(axis=1), 1)


def test_a_number_falls_into_the_share_of_its_character():
    p = np.repeat(row(0.5, 0.0, 0.25, 0.25), 6, axis=0)
    uniform = np.array([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-53])

    assert draw(p, uniform).tolist() == [0, 0, 2, 2, 3, 3]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_what_is_impossible_is_never_drawn(weights, number):
    p = row(*weights)
    if p.sum() == 0:
        p[0, 0] = 1.0
    p = p / p.sum()

    assert p[0, draw(p, np.array([number]))[0]] > 0


# What each setting makes of these probabilities, worked out apart from the code under test.
BASE = np.array([0.1, 0.2, 0.4, 0.05, 0.25])
LATELY = np.array([[False, True, True, False, False]])
BY_HAND = {
    "none": BASE,
    "temperature": BASE**1.25,
    "top-k": BASE * [0, 1, 1, 0, 1],
    "top-p": (BASE**1.25) * [1, 1, 1, 0, 1],
    "min-p": BASE,
    "typical": BASE * [0, 1, 1, 0, 1],
    "penalty": np.where(LATELY[0], BASE**1.5, BASE),
    "allowed": BASE * [1, 0, 1, 1, 1],
}
# 99.9 % quantiles of chi square by degrees of freedom. Seeds are fixed, so tests never flicker.
QUANTILE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}


@pytest.mark.parametrize("name", FILTERS)
def test_many_draws_match_the_distribution_that_is_stated(name):
    n = 100_000
    p = next_probabilities(np.log(BASE)[None], FILTERS[name], LATELY)
    uniform = np.random.default_rng(5).random(n)
    counts = np.bincount(draw(np.repeat(p, n, axis=0), uniform), minlength=5)

    stated = BY_HAND[name] / BY_HAND[name].sum()
    possible = stated > 0
    expected = n * stated[possible]
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()

    assert counts[~possible].sum() == 0
    assert chi_square < QUANTILE[possible.sum() - 1]
