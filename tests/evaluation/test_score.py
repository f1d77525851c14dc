import math

import numpy as np
import pytest

from charlm.evaluation import score as module
from charlm.evaluation.score import Interval, Score, Tally, block_bootstrap


def test_bits_and_perplexity_follow_from_nats():
    score = Score(chars=10, loss_nats=math.log(8), bytes=15)

    assert score.bits_per_symbol == pytest.approx(3)
    assert score.bits_per_byte == pytest.approx(2)
    assert score.perplexity == pytest.approx(8)


def test_bytes_that_were_not_counted_give_no_bits_per_byte():
    assert Score(chars=10, loss_nats=1.0).bits_per_byte is None


def test_a_hopeless_model_has_infinite_perplexity():
    assert Score(chars=1, loss_nats=1e4).perplexity == math.inf


@pytest.mark.parametrize("pieces", [1, 7, 999, 1000, 1001, 23_456])
def test_a_tally_sums_by_block_whatever_the_pieces(pieces):
    nats = np.random.default_rng(0).random(23_456)
    tally = Tally(len(nats))
    for first in range(0, len(nats), pieces):
        tally.add(nats[first : first + pieces])

    blocks = [nats[i : i + 1000].sum() for i in range(0, len(nats), 1000)]

    np.testing.assert_allclose(tally.sums, blocks)
    assert tally.mean() == pytest.approx(nats.mean())


def test_a_long_text_has_longer_blocks_not_more():
    tally = Tally(10**9)

    assert (tally.block_chars, len(tally.sums)) == (2 * 10**7, 50)


def test_the_interval_is_made_of_means_of_drawn_blocks(monkeypatch):
    monkeypatch.setattr(module, "FEWEST_BLOCKS", 3)
    monkeypatch.setattr(module, "RESAMPLES", 4)
    sums, counts = np.array([10.0, 41.0, 300.0]), np.array([10, 10, 5])
    # Four resamples of three blocks each, taken as they come from the generator of words.
    drawn = (np.random.Philox(key=module.SEED).random_raw(12) % 3).reshape(4, 3).tolist()
    means = sorted(sum(sums[i] for i in row) / sum(counts[i] for i in row) for row in drawn)
    assert len(set(means)) == 4

    low, high = block_bootstrap(sums, counts)

    # The 2.5th percentile of 4 values lies 0.075 of the way from the first to the second.
    assert low == pytest.approx(means[0] + 0.075 * (means[1] - means[0]))
    assert high == pytest.approx(means[3] - 0.075 * (means[3] - means[2]))


def test_a_shorter_last_block_counts_for_less():
    tally = Tally(20_500)
    tally.add(np.full(20_500, 2.0))

    interval = tally.interval()

    assert (interval.low, interval.high, interval.blocks) == (2.0, 2.0, 21)


def test_a_few_blocks_give_no_interval():
    assert Tally(19_000).interval() is None
    assert Tally(19_001).interval() == Interval(0.0, 0.0, 20, 1000)


def test_an_infinite_loss_gives_no_interval():
    assert block_bootstrap(np.array([1.0] * 30 + [math.inf]), np.ones(31)) is None


def test_the_interval_covers_the_truth_where_one_of_single_characters_does_not():
    """Neighbours go together: a moving average over 40 characters, whose true mean is 0."""
    generator = np.random.default_rng(0)
    trials, chars, reach = 200, 40_000, 40
    covered = covered_naively = 0
    for _ in range(trials):
        steps = np.cumsum(generator.standard_normal(chars + reach), dtype=np.float64)
        nats = (steps[reach:] - steps[:-reach]) / reach
        tally = Tally(chars)
        tally.add(nats)
        interval = tally.interval()
        covered += interval.low <= 0 <= interval.high
        covered_naively += abs(nats.mean()) <= 1.96 * nats.std() / math.sqrt(chars)

    assert 0.91 <= covered / trials <= 0.98
    assert covered_naively / trials < 0.4
