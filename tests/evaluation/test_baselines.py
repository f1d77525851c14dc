import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from charlm.evaluation import baselines, counted_bigram
from charlm.text import IdArray

TRAIN = "abracadabra alakazam"
HELD_OUT = "a cadabra zam"
ALPHABET = sorted(set(TRAIN))


def encode(text):
    return IdArray(np.array([ALPHABET.index(c) for c in text]))


def test_the_bigram_equals_counting_in_a_loop_with_one_added():
    pairs = Counter(pairwise(TRAIN))
    firsts = Counter(TRAIN[:-1])
    total = -sum(
        math.log((pairs[a, b] + 1) / (firsts[a] + len(ALPHABET))) for a, b in pairwise(HELD_OUT)
    )

    score = counted_bigram(encode(TRAIN), encode(HELD_OUT), len(ALPHABET))

    assert score.chars == len(HELD_OUT) - 1
    assert score.loss_nats == pytest.approx(total / (len(HELD_OUT) - 1))


def test_pieces_of_any_size_give_the_same_counts(monkeypatch):
    whole = counted_bigram(encode(TRAIN), encode(HELD_OUT), len(ALPHABET))
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(baselines, "CHUNK", size)
        score = counted_bigram(encode(TRAIN), encode(HELD_OUT), len(ALPHABET))
        assert score.loss_nats == pytest.approx(whole.loss_nats)
        assert score.chars == whole.chars


def test_a_table_too_large_for_its_worth_is_not_counted():
    assert counted_bigram(encode(TRAIN), encode(HELD_OUT), 5000) is None
