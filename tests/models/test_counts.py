import errno
import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charlm.models import counts
from charlm.models.counts import count_ngrams
from charlm.text.tokens import IdArray


def spelled(found):
    """The n-gram of every node, by order."""
    orders = [[()]]
    for level in found.levels:
        pairs = (divmod(key, found.vocab_size) for key in level.keys.tolist())
        orders.append([(*orders[-1][parent], symbol) for parent, symbol in pairs])
    return orders[1:]


def as_counters(found):
    """How often every n-gram occurs, by order: [{(3,): 5, ...}, ...]."""
    pairs = zip(spelled(found), found.levels, strict=True)
    return [+Counter(dict(zip(n, level.counts.tolist(), strict=True))) for n, level in pairs]


def counted_slowly(text, order):
    windows = (
        [tuple(text[i : i + k]) for i in range(len(text) - k + 1)] for k in range(1, order + 1)
    )
    return [Counter(some) for some in windows]


@st.composite
def texts(draw):
    """A text over few of V symbols, so that n-grams repeat: (ids, V)."""
    vocab_size = draw(st.sampled_from([1, 2, 3, 7, 256, 65_536]))
    symbols = st.sampled_from(draw(st.lists(st.integers(0, vocab_size - 1), min_size=1)))
    return draw(st.lists(symbols, min_size=1, max_size=80)), vocab_size


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts(), st.integers(1, 14), st.integers(0, 3000), st.integers(1, 9))
def test_counts_equal_those_of_a_loop_in_memory_and_on_disk(tmp_path, drawn, order, budget, stride):
    text, vocab_size = drawn
    ids = IdArray(np.array(text, np.uint32))
    expected = counted_slowly(text, order)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "STRIDE", stride)  # blocks end inside nodes of several levels
        patch.setattr(counts, "PIECE", 3 * stride)
        whole = count_ngrams(ids, vocab_size, order)
        pieces = count_ngrams(ids, vocab_size, order, scratch=tmp_path, budget=budget)

    for found in (whole, pieces):
        assert as_counters(found) == expected
        opening = [n[node] for n, node in zip(spelled(found), found.opening, strict=False)]
        assert opening == [tuple(text[:k]) for k in range(1, min(order, len(text)) + 1)]


@pytest.mark.parametrize(("vocab_size", "order"), [(256, 12), (65_536, 12), (1 << 20, 32)])
def test_windows_wider_than_64_bits_differ_in_their_last_character_alone(vocab_size, order):
    window = [vocab_size - 1 - i for i in range(order)]
    other = [*window[:-1], 0]

    found = as_counters(count_ngrams(IdArray(np.array(window + other)), vocab_size, order))

    assert found[-1][tuple(window)] == 1
    assert found[-1][tuple(other)] == 1


def test_counts_go_beyond_32_bits(tmp_path):
    packing = counts._Packing(vocab_size=3, order=2)
    windows = packing.pack(np.array([0, 1, 2]), count=3)
    runs = [(np.sort(windows), np.array([5, 2**40, 2**52])) for _ in range(2)]

    blocks = map(packing.unpacked, counts._merged(runs, block=1))
    first, second = counts._tree(blocks, 3, 2, tmp_path, lambda: None)

    assert first.counts.tolist() == [10, 2**41, 2**53]
    assert second.counts.tolist() == [10, 2**41]  # (0, 1), (1, 2)


def test_what_is_on_disk_has_no_name_and_is_written_before_it_is_mapped(tmp_path, monkeypatch):
    found = count_ngrams(IdArray(np.arange(100)), 100, 3, scratch=tmp_path, budget=100)
    assert found.scratch == tmp_path
    assert isinstance(found.levels[1].keys, np.memmap)
    assert not list(tmp_path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(OSError, match="No space left"):
        found.zeros(10, np.int64)


def test_a_stop_is_asked_for_between_pieces_and_between_blocks(tmp_path, monkeypatch):
    def times(**options):
        asked = []
        count_ngrams(ids, 100, 3, should_stop=lambda: asked.append(1), **options)
        return len(asked)

    monkeypatch.setattr(counts, "STRIDE", 10)
    ids = IdArray(np.arange(100))

    assert times() == 1 + 10
    assert times(scratch=tmp_path, budget=1000) > 10 + 5
    monkeypatch.setattr(counts, "PIECE", 20)
    assert times() >= 5 + 10
