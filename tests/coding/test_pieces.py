import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.coding.pieces import put_together, take_apart
from charlm.text import ByteTokenizer, CharTokenizer

LETTERS = CharTokenizer("abc é\n")
ENCODINGS = ["utf-8", "latin-1", "utf-16", "utf-16-le", "cp1252", "utf-7", "shift_jis"]


def there_and_back(data, tokenizer, encoding):
    ids, rest = take_apart(data, tokenizer, encoding)
    return put_together(ids, rest, len(data), tokenizer, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(data=st.binary() | st.text("abc é\n漢😀").map(str.encode))
def test_any_bytes_come_back(data, encoding):
    assert there_and_back(data, LETTERS, encoding) == data


@given(st.binary())
def test_a_run_of_bytes_knows_all(data):
    ids, rest = take_apart(data, ByteTokenizer(), "utf-8")

    assert rest == b""
    assert put_together(ids, rest, len(data), ByteTokenizer(), "utf-8") == data


def test_a_text_of_the_alphabet_has_no_rest():
    ids, rest = take_apart("abé".encode(), LETTERS, "utf-8")

    assert LETTERS.decode(ids) == "abé"
    assert rest == b""


def test_unknown_characters_are_left_out_of_what_the_model_reads():
    ids, rest = take_apart("a漢b\udc80c".encode("utf-8", "surrogateescape"), LETTERS, "utf-8")

    assert LETTERS.decode(ids) == "abc"
    assert 0 < len(rest) < 40


def test_a_damaged_rest_is_refused_and_fills_no_memory():
    ids, rest = take_apart(b"axbxc" * 9, LETTERS, "utf-8")

    for place in range(len(rest)):
        changed = bytearray(rest)
        changed[place] ^= 0x11
        try:
            assert len(put_together(ids, bytes(changed), 45, LETTERS, "utf-8")) <= 4 * 45
        except ValueError:
            continue
