from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.errors import DataError
from charlm.text import Batches, Split, TokenFile, window_starts
from charlm.text.batches import DATA_STREAM, DROPOUT_STREAM, INIT_STREAM, random_words

LENGTH, BLOCK, BATCH = 50, 8, 6

seeds = st.integers(min_value=0, max_value=2**63 - 1)
steps = st.integers(min_value=0, max_value=10**9)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Ids that are their own positions, 0 to 49, inside a longer file."""
    path = tmp_path_factory.mktemp("tokens") / "ids.bin"
    np.concatenate([np.full(7, 255), np.arange(LENGTH), np.full(5, 255)]).astype("u1").tofile(path)
    return Split(TokenFile(path, np.dtype("u1"), 7 + LENGTH + 5), 7, 7 + LENGTH)


@given(seeds, steps)
def test_targets_are_inputs_moved_by_one(split, seed, step):
    x, y = Batches(split, BLOCK, BATCH, seed).get(step)

    assert x.shape == y.shape == (BATCH, BLOCK)
    assert x.dtype == y.dtype == np.int64
    assert (y == x + 1).all()  # ids are positions here
    assert (x[:, 1:] == y[:, :-1]).all()


def test_every_legal_window_is_drawn_and_none_runs_past_the_end(split):
    batches = Batches(split, BLOCK, BATCH, seed=0)

    starts = {int(start) for step in range(200) for start in batches.get(step)[0][:, 0]}

    assert starts == set(range(LENGTH - BLOCK))  # the last target of the last window is id 49
    assert max(starts) + BLOCK == LENGTH - 1


def test_a_text_with_room_for_one_window_only_draws_that(split):
    x, y = Batches(split, LENGTH - 1, 2, seed=3).get(9)

    assert x.tolist() == [list(range(LENGTH - 1))] * 2
    assert y[0, -1] == LENGTH - 1


@pytest.mark.parametrize("block_size", [LENGTH, LENGTH + 100])
def test_a_text_too_short_for_one_window_is_refused(split, block_size):
    with pytest.raises(DataError, match=f"needs a text of {block_size + 1} and this one has 50"):
        Batches(split, block_size, BATCH, seed=0)


def test_a_text_too_large_to_hold_gives_the_same_batches(split, monkeypatch):
    held = Batches(split, BLOCK, BATCH, seed=5)
    monkeypatch.setattr("charlm.text.batches.HELD", LENGTH - 1)
    read = Batches(split, BLOCK, BATCH, seed=5)

    assert held.held is not None
    assert read.held is None
    for step in range(20):
        for a, b in zip(held.get(step), read.get(step), strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)


@given(seeds, steps, st.lists(st.integers(0, BATCH), max_size=4).map(sorted))
def test_slices_of_a_batch_join_to_the_whole(split, seed, step, cuts):
    batches = Batches(split, BLOCK, BATCH, seed)
    whole_x, whole_y = batches.get(step)

    bounds = [0, *cuts, BATCH]
    shares = [batches.get(step, a, b - a) for a, b in pairwise(bounds)]

    assert (np.concatenate([x for x, _ in shares]) == whole_x).all()
    assert (np.concatenate([y for _, y in shares]) == whole_y).all()
    rest, _ = batches.get(step, first=bounds[1])
    assert (rest == whole_x[bounds[1] :]).all()


def test_a_batch_is_the_same_whichever_came_before(split):
    forward = Batches(split, BLOCK, BATCH, seed=5)
    in_order = [forward.get(step)[0].tolist() for step in range(10)]

    backward = Batches(split, BLOCK, BATCH, seed=5)
    reversed_order = [backward.get(step)[0].tolist() for step in reversed(range(10))]

    assert in_order == reversed_order[::-1]
    assert len({str(batch) for batch in in_order}) == 10


@given(seeds, st.integers(0, 10**15), st.integers(0, 30), st.integers(0, 30))
def test_a_stream_of_words_may_be_entered_anywhere(seed, first, skipped, count):
    whole = random_words(seed, DATA_STREAM, first, skipped + count)

    assert random_words(seed, DATA_STREAM, first + skipped, count).tolist() == (
        whole[skipped:].tolist()
    )


def test_the_data_order_never_changes_silently():
    # Recorded when the format was settled: an old seed must keep meaning the same batches.
    assert random_words(0, DATA_STREAM, 0, 3).tolist() == [
        213000021201967259,
        4455796210202625458,
        2055444239878205049,
    ]
    assert random_words(1337, DATA_STREAM, 10**12 + 1, 2).tolist() == [
        17242329253131164634,
        3298166426319581295,
    ]
    assert random_words(1337, DROPOUT_STREAM, 0, 1).tolist() == [9561986537356867994]
    assert random_words(1337, INIT_STREAM, 0, 1).tolist() == [9728503146761872639]
    assert window_starts(1337, 7, 6, 1_003_790).tolist() == [
        279816,
        966466,
        416897,
        77530,
        676801,
        241833,
    ]


def test_seeds_streams_and_steps_draw_different_words():
    draws = [
        random_words(seed, stream, first, 4)
        for seed in (0, 1, 2**63 - 1)
        for stream in (DATA_STREAM, DROPOUT_STREAM, INIT_STREAM)
        for first in (0, 4)
    ]

    assert len(np.unique(draws)) == 4 * len(draws)


def test_starts_are_uniform():
    windows, draws = 100, 100_000
    starts = window_starts(1, 0, draws, windows)

    observed = np.bincount(starts, minlength=windows)
    chi_square = ((observed - draws / windows) ** 2 / (draws / windows)).sum()

    assert len(observed) == windows
    # 99 degrees of freedom: 99 on average, between 60 and 149 all but once in a thousand.
    assert 60 < chi_square < 149


def test_neighbouring_starts_are_independent():
    starts = window_starts(1, 0, 100_000, 10)

    pairs = np.bincount(starts[:-1] * 10 + starts[1:], minlength=100)
    chi_square = ((pairs - 999.99) ** 2 / 999.99).sum()

    assert 60 < chi_square < 149


@given(seeds, steps, st.integers(min_value=1, max_value=2**40))
def test_starts_lie_inside_a_text_of_any_size(seed, step, windows):
    starts = window_starts(seed, step, BATCH, windows)

    assert starts.dtype == np.int64
    assert starts.shape == (BATCH,)
    assert (starts >= 0).all()
    assert (starts < windows).all()


def test_starts_reach_beyond_four_gibibytes():
    assert window_starts(0, 0, 100, 2**40).max() > 2**39
