import io
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charlm.sampling import allowed_ids
from charlm.text import CharTokenizer
from tests.fuzz import targets
from tests.fuzz.inputs import amiss, fuzzed

SIGNS = "[]^-\\wdsNuxU{}&|~()*+?ab\n"
CLASSES = st.text(SIGNS, max_size=12).map(lambda text: f"[{text}]".encode())


@fuzzed(60)
@given(st.binary(max_size=40) | amiss("text"))
@example(
    b"\x02\x02\xff\0\0\x0f\0\0\0\xef\xbb\xbf\0\0\xfe\xfe"
)  # UTF-32 without a mark, twice wrong
def test_a_text_in_any_encoding_is_read_or_refused(data):
    targets.text(data)


TABLE = st.lists(st.sampled_from(list(b'a,"\t\r\n{}[]:1\\')), max_size=20).map(bytes)


@fuzzed(100)
@given(
    st.tuples(st.integers(0, 3), TABLE | st.just(b"a,b\n")).map(lambda t: bytes([t[0]]) + t[1])
    | amiss("column")
)
def test_a_column_of_any_table_is_read_or_refused(data):
    targets.column(data)


@fuzzed(80)
@given(st.binary(max_size=20) | st.text(max_size=20).map(str.encode) | amiss("prompt"))
def test_a_prompt_of_any_content_is_encoded_or_refused(data):
    targets.prompt(data)


@fuzzed(80)
@given(st.lists(st.sampled_from(list(b"ab\n|\0\xe2\x98\x83")), max_size=30).map(bytes))
@example(b"\xef\xbf\xbd|\xe2a")
@example(b"\xef\xbf\xbd|a\xe2")  # was passed over where the text ends within a character
def test_a_text_ends_before_the_first_of_its_stops(data):
    targets.stops(data)


@fuzzed(120)
@given(st.binary(max_size=12) | CLASSES)
@example(b"[b-\n]")  # the reason quoted the line break as it was
def test_what_is_allowed_is_read_or_refused(data):
    targets.allow(data)


@pytest.mark.parametrize(
    "given_one",
    [
        "[" + "a" * 40_000 + "]",
        "[" + "\\]" * 20_000 + "]",
        "[" + "\\]" * 20_000,
        "[^" + "a-" * 20_000 + "]",
        "[]" + "\\\\" * 20_000 + "x",
        "[" * 40_000,
        "(a*)*" * 20_000,
    ],
    ids=["long", "escaped", "open", "ranges", "open-escapes", "brackets", "no-class"],
)
def test_what_is_allowed_is_read_in_a_time_that_grows_with_it_alone(given_one):
    began = time.process_time()

    targets.allow(given_one.encode())

    assert time.process_time() - began < 2


def test_a_class_of_the_largest_alphabet_is_read_soon():
    tokenizer = CharTokenizer(map(chr, range(0x20, 0x3000)))
    began = time.process_time()

    assert allowed_ids(tokenizer, "[a-z]").sum() == 26

    assert time.process_time() - began < 2


@fuzzed(60)
@given(st.text("ab1.+-*/() \n#,=ﬁ\0", max_size=20).map(str.encode) | amiss("expression"))
def test_an_expression_of_any_content_is_drawn_or_refused(data):
    targets.expression(data)


def test_a_conversation_goes_on_after_a_line_that_is_not_utf_8(trained, charlm, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\nthe\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)

    result = charlm("sample", "--run", trained, "-i", "--max-new-chars", 3, "--seed", 1)

    assert result.code == 0
    assert "not UTF-8" in result.stderr
    assert result.stdout.startswith("the")
