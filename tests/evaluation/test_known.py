"""Which texts a part holds as a whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.evaluation import known as module
from charlm.evaluation.known import Known, as_records, as_texts, records_of
from charlm.text import CharTokenizer, IdArray
from charlm.text.tokenizer import BOUNDARY
from tests.text.test_corpus import make_corpus

LETTERS = CharTokenizer("abc", boundary=True)
TEXTS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12)


def part_of(texts, tokenizer=LETTERS):
    whole = BOUNDARY + "".join(text + BOUNDARY for text in texts)
    return IdArray(tokenizer.encode(whole), tokenizer.boundary)


@given(TEXTS, st.lists(st.text("abcd☃", max_size=4), max_size=12))
def test_a_text_is_known_if_it_is_a_record(texts, others):
    known = Known.of_part(part_of(texts), LETTERS)

    assert known.holds(others).tolist() == [other in texts for other in others]
    assert known.holds(texts).all()


@pytest.mark.parametrize(("at_once", "symbols"), [(1, 99), (4096, 1), (4096, 7), (4096, 1 << 22)])
def test_records_are_read_some_at_a_time(monkeypatch, at_once, symbols):
    monkeypatch.setattr(module, "RECORDS", at_once)
    monkeypatch.setattr(module, "SYMBOLS", symbols)
    steps = []

    known = Known.of_part(part_of(["ab", "b", "ab", "cc"]), LETTERS, lambda *one: steps.append(one))

    assert len(known.keys) == 4  # repeats are few, and need no room of their own
    assert known.holds(["cc", "c", "ab"]).tolist() == [True, False, True]
    assert sum(done for _, done, _ in steps) == 4
    assert {total for *_, total in steps} == {4}
    assert len(steps) == (1 if symbols > 99 else 2 if symbols == 7 else 4)


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=5))
def test_texts_are_records_and_back(texts):
    assert as_texts(as_records(texts)) == texts


@pytest.mark.parametrize("at_once", [1, 4096])
def test_rare_characters_are_told_apart(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(module, "RECORDS", at_once)
    names = ["aa☃", "aa☀", "ab", "☀", "bb"]
    keys = {"records": "lines", "val_fraction": 0, "min_count": 3}
    corpus, tokenizer = make_corpus(tmp_path / "t", "\n".join(names).encode(), **keys)
    part = corpus.splits["train"]

    known = Known.of_part(part, tokenizer)

    assert tokenizer.escape is not None
    assert known.holds([*names, "aa☂", "aa\ufffd"]).tolist() == [True] * 5 + [False] * 2
    for most in (None, 8):
        found = [text for some in records_of(part, tokenizer, most) for text in as_texts(some)]
        assert set(found) <= set(names)
        assert len(found) == (5 if most is None else 2)


def test_some_records_are_spread_over_a_part():
    texts = [f"{a}{b}" for a in "abc" for b in "abc"]

    found = [as_texts(some) for some in records_of(part_of(texts), LETTERS, most=9)]

    assert np.concatenate(found).tolist() == ["aa", "ba", "ca"]
