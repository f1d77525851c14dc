"""The longest span of a text that also stands in a part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.evaluation import copied as module
from charlm.evaluation.copied import longest_copied
from charlm.text import ByteTokenizer, CharTokenizer, IdArray
from tests.evaluation.test_known import LETTERS, part_of

PLAIN = CharTokenizer("abc")


def slow(text, part):
    """Return the length of the longest span of a text that is in a part, by trying all."""
    spans = {text[a:b] for a in range(len(text)) for b in range(a + 1, len(text) + 1)}
    return max((len(span) for span in spans if span in part), default=0)


@given(
    st.lists(st.text("abcd", max_size=12), min_size=1, max_size=5),
    st.text("abc", min_size=1, max_size=40),
    st.sampled_from([1, 7, 1 << 22]),
)
def test_it_is_that_of_a_slow_search(texts, part, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        found = longest_copied(texts, IdArray(PLAIN.encode(part)), PLAIN)

    assert found.lengths.tolist() == [slow(text, part) for text in texts]
    for text, first, length in zip(texts, found.starts, found.lengths, strict=True):
        assert text[first : first + length] in part


@given(
    st.lists(st.text("abc", max_size=9), min_size=1, max_size=5),
    st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=6),
)
def test_no_span_crosses_the_border_of_records(texts, records):
    found = longest_copied(texts, part_of(records), LETTERS)

    expected = [max(slow(text, record) for record in records) for text in texts]
    assert found.lengths.tolist() == expected


@pytest.mark.parametrize("before", range(8))
def test_a_span_may_lie_in_two_pieces(monkeypatch, before):
    monkeypatch.setattr(module, "PIECE", 1)
    part = "c" * before + "abaabb" + "c" * (20 - before)

    found = longest_copied(["abaabb"], IdArray(PLAIN.encode(part)), PLAIN)

    assert found.lengths.tolist() == [6]


def test_of_a_large_alphabet():
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
    tokenizer = CharTokenizer(alphabet)
    part = IdArray(tokenizer.encode(alphabet))

    apart = alphabet[44:50] + alphabet[306:312]  # as bytes, these would follow each other
    texts = ["☃" + alphabet[300:390] + "☃", alphabet[::-1], apart]
    found = longest_copied(texts, part, tokenizer)

    assert found.lengths.tolist() == [90, 1, 6]
    assert found.starts.tolist()[0] == 1


def test_of_bytes_that_are_not_text():
    part = IdArray(np.frombuffer(b"ab\xff\xfe\xffcd", np.uint8))

    found = longest_copied(["x\udcff\udcfe\udcffy", "é"], part, ByteTokenizer())

    assert found.lengths.tolist() == [3, 0]
    assert found.starts[0] == 1


def test_progress_ends_with_the_part(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 10)
    steps = []

    longest_copied(
        ["abc"], IdArray(PLAIN.encode("abc" * 20)), PLAIN, lambda *one: steps.append(one)
    )

    assert len(steps) == 6
    assert sum(done for _, done, _ in steps) == 60
