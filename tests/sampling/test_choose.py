import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.sampling import draw, keep_top_k, keep_top_p, next_probabilities

INF = math.inf


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_top_k_keeps_the_likeliest():
    assert keep_top_k(row(1, 3, 2, 0), 2).tolist() == [[-INF, 3, 2, -INF]]


def test_top_k_keeps_exactly_k_of_equals():
    for k in (1, 2, 3, 4):
        assert int(keep_top_k(row(5, 5, 5, 5), k).isfinite().sum()) == k


def test_top_k_beyond_the_vocabulary_keeps_all():
    assert keep_top_k(row(1, 2), 7).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.3, [0]),
        (0.5, [0]),
        (0.51, [0, 2]),
        (0.79, [0, 2]),
        (0.81, [0, 1, 2]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    logits = torch.log(row(0.5, 0.15, 0.3, 0.05))  # sums to 1; in order: 0.5, 0.3, 0.15, 0.05

    found = keep_top_p(logits, p).isfinite()[0].nonzero()[:, 0].tolist()

    assert found == kept


def test_top_p_is_never_empty():
    assert keep_top_p(row(0, 0, 0), 1e-12).isfinite().sum() == 1


def test_temperature_divides_the_logits():
    found = next_probabilities(row(0, math.log(4)), temperature=2.0)

    torch.testing.assert_close(found, row(1 / 3, 2 / 3))


def test_temperature_zero_takes_the_likeliest_and_so_does_top_1():
    logits = row(1, 4, 4, 2)

    greedy = next_probabilities(logits, temperature=0.0)

    assert greedy.tolist() == next_probabilities(logits, top_k=1).tolist()
    assert greedy.sum() == 1
    assert greedy.max() == 1


def test_a_tiny_temperature_does_not_overflow():
    found = next_probabilities(row(1000.0, -1000.0, 999.0), temperature=1e-300)

    assert found.tolist() == [[1, 0, 0]]


def test_rows_do_not_touch_each_other(generator):
    logits = torch.randn(4, 9, generator=generator)

    together = next_probabilities(logits, temperature=0.7, top_k=5, top_p=0.9)

    for i in range(4):
        alone = next_probabilities(logits[i : i + 1], temperature=0.7, top_k=5, top_p=0.9)
        assert torch.equal(together[i : i + 1], alone)


def test_a_number_falls_into_the_share_of_its_character():
    p = row(0.5, 0.0, 0.25, 0.25).expand(6, -1)
    uniform = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-53], dtype=torch.float64)

    assert draw(p, uniform).tolist() == [0, 0, 2, 2, 3, 3]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_what_is_impossible_is_never_drawn(weights, number):
    p = torch.tensor([weights], dtype=torch.float64)
    if p.sum() == 0:
        p[0, 0] = 1.0
    p = p / p.sum()

    chosen = draw(p, torch.tensor([number], dtype=torch.float64))

    assert p[0, chosen.item()] > 0


def test_many_draws_match_the_distribution():
    p = next_probabilities(row(0.0, 1.0, 2.0, -1.0, 0.5), temperature=0.8, top_p=0.97)
    n = 100_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    counts = torch.bincount(draw(p.expand(n, -1), uniform), minlength=5)

    possible = p[0] > 0
    expected = n * p[0][possible]
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum().item()

    assert counts[~possible].sum() == 0
    assert (~possible).any()
    # 99.9 % quantile for 3 degrees of freedom: 16.27. The seed is fixed, so it never flickers.
    assert chi_square < 16.27
