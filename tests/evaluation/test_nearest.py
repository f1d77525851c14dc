"""The nearest record of a part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.evaluation import nearest as module
from charlm.evaluation.nearest import Candidates, choose_candidates, nearest
from tests.evaluation.test_known import LETTERS, part_of

SOME = st.lists(st.text("ab", max_size=9), min_size=1, max_size=8)


def edits(a, b):
    """Return the edit distance, by the table of Wagner and Fischer (1974)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


@given(SOME, SOME, st.sampled_from([1, 5, 1 << 20]), st.sampled_from([0, 3]))
def test_it_is_that_of_a_slow_search(texts, records, pairs, bound):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAIRS", pairs)
        patch.setattr(module, "FIRST_BOUND", max(1, bound))
        found = nearest(texts, Candidates(records, len(records), len(records)))

    distances = [[edits(text, record) for record in records] for text in texts]
    assert found.distances.tolist() == [min(row) for row in distances]
    assert found.places.tolist() == [row.index(min(row)) for row in distances]


def test_distances_that_are_known():
    names = Candidates(["kitten", "saturday"], 2, 2)

    found = nearest(["sitting", "sunday", "kitten", ""], names)

    assert found.distances.tolist() == [3, 3, 0, 6]
    assert found.places.tolist() == [0, 1, 0, 0]


def test_each_record_is_compared_once():
    candidates = choose_candidates(part_of(["abc", "b", "abc", "a"]), LETTERS, ["a"])

    assert candidates.texts == ["a", "b", "abc"]  # in an order that is always the same
    assert (candidates.compared, candidates.of) == (4, 4)


def test_of_many_records_some_are_compared(monkeypatch):
    texts = [f"{a}{b}{c}" for a in "abc" for b in "abc" for c in "abc"]
    monkeypatch.setattr(module, "MOST_WORK", 100)

    few = choose_candidates(part_of(texts), LETTERS, ["a"] * 10)
    fewer = choose_candidates(part_of(texts), LETTERS, ["a" * 640] * 10)

    assert (few.compared, few.of) == (2, 27)
    assert set(few.texts) < set(texts)
    assert fewer.compared == 1


def test_progress_counts_each_kind_of_text_once():
    steps = []

    nearest(["a", "a", "b" * 90], Candidates(["a"], 1, 1), lambda *one: steps.append(one))

    assert sum(done for _, done, _ in steps) == 2
    assert np.unique([total for *_, total in steps]).tolist() == [2]
