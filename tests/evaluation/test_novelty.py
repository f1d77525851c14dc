"""How much of some texts is new."""

import numpy as np
import pytest

from charlm.evaluation import nearest
from charlm.evaluation.novelty import Example, Novelty, measure
from charlm.text import ByteTokenizer, CharTokenizer, IdArray
from tests.evaluation.test_known import LETTERS, part_of


def test_records_are_found_and_the_nearest_ones_named():
    sets = [["abc", "abb", "abc"], ["cccc"]]

    first, second = measure(sets, part_of(["abc", "ca", "ca"]), LETTERS).sets

    assert first.found.tolist() == [True, False, True]
    assert first.distances.tolist() == [0, 1, 0]
    assert list(first.nearest) == ["abc", "abc", "abc"]
    assert first.repeats == pytest.approx(1 / 3)
    assert second.found.tolist() == [False]
    assert second.distances.tolist() == [3]
    assert (first.spans, second.spans, first.longest_span("chars")) == (None, None, "")


def test_a_training_record_that_is_not_compared_is_at_no_distance(monkeypatch):
    monkeypatch.setattr(nearest, "MOST_WORK", 8)

    measured = measure([["abb", "cbb"]], part_of(["aaa", "bbb", "abb"]), LETTERS)

    (one,) = measured.sets
    assert measured.candidates.texts == ["aaa", "bbb"]
    assert one.distances.tolist() == [0, 1]
    assert one.nearest == ["abb", "bbb"]


def test_examples_are_new_and_close_for_their_length():
    texts = ["ab", "aaaaaaaaab", "aa", "aaaaaaaaab", "cbb"]

    (one,) = measure([texts], part_of(["aa", "aaaaaaaaaa", "ccc"]), LETTERS).sets

    assert one.examples(9) == [
        Example("aaaaaaaaab", "aaaaaaaaaa", 1),
        Example("ab", "aa", 1),
        Example("cbb", "ccc", 2),
    ]
    assert one.examples(1) == one.examples(9)[:1]


def test_of_long_records_spans_are_sought():
    long = "ab" * 60
    sets = [["a", "c" + long], ["b"], ["c" * 101, "bcb" + "a" * 99]]

    found = measure(sets, part_of([long, "ccc"]), LETTERS).sets

    assert [list(one.long) for one in found] == [["c" + long], [], ["c" * 101, "bcb" + "a" * 99]]
    assert found[0].spans.tolist() == [120]
    assert found[1].spans is None
    assert found[2].spans.tolist() == [3, 2]
    assert [one.longest_span("chars") for one in found] == [long, "", "ccc"]


def test_without_records_there_are_only_spans():
    tokenizer = CharTokenizer("abc")

    measured = measure([["ab", "cca", "ab"]], IdArray(tokenizer.encode("abcc")), tokenizer)

    (one,) = measured.sets
    assert measured.candidates is None
    assert (one.found, one.distances, one.examples(3)) == (None, None, [])
    assert one.spans.tolist() == [2, 2, 2]
    assert one.repeats == pytest.approx(1 / 3)


def test_a_span_of_bytes_need_not_be_text():
    part = IdArray(np.frombuffer(b"\xff\xc3abc", np.uint8))

    (one,) = measure([["éé\udcff\udcc3ab", "é"]], part, ByteTokenizer()).sets

    assert one.spans.tolist() == [4, 1]
    assert one.longest_span("bytes") == "\udcff\udcc3ab"


def test_progress_may_stop_it():
    def stop(step, done, total):
        raise InterruptedError

    for part, tokenizer in (
        (part_of(["a"]), LETTERS),
        (IdArray(np.zeros(3, int)), ByteTokenizer()),
    ):
        with pytest.raises(InterruptedError):
            measure([["a"]], part, tokenizer, stop)


def test_all_are_repeats_but_the_first():
    assert Novelty(["a"] * 4).repeats == 0.75
