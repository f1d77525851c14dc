import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.errors import CheckpointError, DataError
from charlm.text import ByteTokenizer, CharTokenizer, load_tokenizer
from charlm.text.tokenizer import Tokenizer, normal_form

ALPHABET = "\n abcé—語😀"

any_character = st.characters()  # with lone surrogates, which a Python string may hold
any_utf_8 = st.characters(codec="utf-8")


def stream(tokenizer, ids):
    decoder = tokenizer.stream_decoder()
    return "".join([*(decoder(int(i)) for i in ids), decoder(None)])


@given(st.text(st.sampled_from(ALPHABET)))
def test_any_text_over_the_alphabet_comes_back(text):
    tokenizer = CharTokenizer(ALPHABET)

    ids = tokenizer.encode(text)

    assert ids.shape == (len(text),)
    assert tokenizer.decode(ids) == text
    assert stream(tokenizer, ids) == text


@given(st.text(any_character, min_size=1))
def test_the_alphabet_of_any_text_encodes_it(text):
    tokenizer = CharTokenizer(text)

    ids = tokenizer.encode(text)

    assert tokenizer.vocab_size == len(set(text))
    assert sorted(set(ids.tolist())) == list(range(tokenizer.vocab_size))
    assert tokenizer.decode(ids) == text


def test_ids_follow_unicode_order_whatever_order_the_characters_came_in():
    assert CharTokenizer("hello ").encode("hello").tolist() == [2, 1, 3, 3, 4]
    assert CharTokenizer("😀語a").alphabet == "a語😀"  # UTF-16 order would end with 語


@given(st.text(any_character, min_size=1))
def test_ids_are_the_same_after_saving_and_loading(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer = CharTokenizer(text)
    path.write_text(tokenizer.to_json())

    loaded = load_tokenizer(path)

    assert loaded.alphabet == tokenizer.alphabet
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_unknown_characters_are_named_with_code_and_position():
    with pytest.raises(DataError) as caught:
        CharTokenizer("abc").encode("abéaé😀")

    assert str(caught.value) == (
        "character 3 'é' (U+00E9), character 6 '😀' (U+1F600) are not in this model's alphabet of 3"
    )


def test_an_unknown_backslash_is_shown_as_one():
    with pytest.raises(DataError, match=r"^character 2 '\\' \(U\+005C\) is not in"):
        CharTokenizer("abn").encode(r"a\n")


def test_many_unknown_characters_are_counted():
    with pytest.raises(
        DataError, match=r"2 'b' .*, character 5 'e' \(U\+0065\) and 2 more are not in"
    ):
        CharTokenizer("a").encode("abcdefg")


@given(st.text(st.sampled_from("abcdexyz")))
def test_skip_leaves_out_what_is_unknown_and_nothing_else(text):
    tokenizer = CharTokenizer("bxz")

    ids = tokenizer.encode(text, unknown="skip")

    assert tokenizer.decode(ids) == "".join(c for c in text if c in "bxz")


def test_an_empty_alphabet_knows_nothing():
    tokenizer = CharTokenizer("")

    assert tokenizer.encode("abc", unknown="skip").tolist() == []
    with pytest.raises(DataError, match="'a'"):
        tokenizer.encode("abc")


@given(st.text(any_character, min_size=1))
def test_the_table_agrees_with_encode(text):
    tokenizer = CharTokenizer(text)

    table = tokenizer.table(np.uint32)

    assert [int(table[ord(c)]) for c in text] == tokenizer.encode(text).tolist()


@given(st.text(any_utf_8))
def test_any_text_comes_back_from_its_bytes(text):
    tokenizer = ByteTokenizer()

    ids = tokenizer.encode(text)

    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_bytes_decode_from_an_array_of_any_type(dtype):
    assert ByteTokenizer().decode(np.array([104, 105], dtype)) == "hi"


@given(st.binary())
def test_streamed_bytes_decode_as_all_bytes_at_once(data):
    assert stream(ByteTokenizer(), data) == ByteTokenizer().decode(data)


@given(st.text(any_utf_8, max_size=8))
def test_a_streamed_character_appears_with_its_last_byte(text):
    decoder = ByteTokenizer().stream_decoder()

    for character in text:
        *first, last = character.encode()
        assert [decoder(byte) for byte in first] == [""] * len(first)
        assert decoder(last) == character
    assert decoder(None) == ""


def test_the_bytes_of_an_unfinished_character_come_at_the_end():
    decoder = ByteTokenizer().stream_decoder()

    assert decoder("é".encode()[0]) == ""
    assert decoder(None) == "\udcc3"


@given(st.binary())
def test_any_bytes_come_back_from_their_text(data):
    text = ByteTokenizer().decode(data)

    assert ByteTokenizer().encode(text).tolist() == list(data)


def test_bytes_of_the_command_line_that_are_not_utf_8_arrive_as_they_were():
    argument = b"caf\xe9".decode("utf-8", "surrogateescape")  # how Python hands them over

    assert ByteTokenizer().encode(argument).tolist() == list(b"caf\xe9")


def test_half_a_surrogate_pair_has_no_bytes():
    tokenizer = ByteTokenizer()

    with pytest.raises(DataError, match=r"character 3 \(U\+D83D\) is half a surrogate pair"):
        tokenizer.encode("ab\ud83dc")
    assert tokenizer.encode("ab\ud83dc", unknown="skip").tolist() == list(b"abc")


def test_a_byte_tokenizer_is_the_same_after_saving_and_loading(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(ByteTokenizer().to_json())

    assert isinstance(load_tokenizer(path), ByteTokenizer)


@pytest.mark.parametrize("tokenizer", [CharTokenizer("ab"), ByteTokenizer()])
def test_both_tokenizers_keep_the_contract(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert json.loads(tokenizer.to_json())["unit"] == tokenizer.unit


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not found"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"7",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "unit": "chars"}',
        b'{"format": 1, "unit": "words", "alphabet": "ab"}',
        b'{"format": 1, "unit": "chars", "alphabet": 7}',
        b'{"format": 1, "unit": "chars", "alphabet": "ba"}',
        b'{"format": 1, "unit": "chars", "alphabet": "aab"}',
        b'{"format": 1, "unit": "chars", "alphabet": ["a", "b"]}',
        b'{"format": 1, "unit": "chars", "alphabet": ["ab", 3]}',
        b'{"format": 1, "unit": "chars", "alphabet": {"a": "b"}}',
        b'{"format": 1, "unit": "chars", "alphabet": "a\xff"}',
        b"\x80\x04\x95pickle",
        b"[" * 100_000,
        b'{"format": 1, "unit": "chars", "alphabet": "' + b"a" * (16 << 20) + b'"}',
    ],
    ids=lambda content: repr(content[:60]),
)
def test_a_hostile_tokenizer_is_refused_by_name(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(path)


@pytest.mark.parametrize("found", ["2", '"' + "x" * 5000 + '"'])
def test_a_tokenizer_of_another_format_asks_for_an_upgrade(tmp_path, found):
    path = tmp_path / "tokenizer.json"
    path.write_text(f'{{"format": {found}}}')

    with pytest.raises(CheckpointError, match=r"format .{1,40}, this charlm reads 1; upgrade"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("caf\u00e9", "cafe"),
        ("\u201cOh\u201d\u2014no\u2026", '"oh"-no...'),
        ("stra\u00dfe \u1e9e", "strasse ss"),
        ("\u00de \u00f0 \u0141 \u0127", "th d l h"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("\u00bd", "1/2"),
        ("\u2603x", "x"),
    ],
)
def test_the_nearest_characters_stand_for_what_an_alphabet_lacks(text, expected):
    tokenizer = CharTokenizer('abcdefghijklmnopqrstuvwxyz \n-".,/12')

    assert tokenizer.decode(tokenizer.encode(text, "nearest")) == expected


def spelled(alphabet, text):
    tokenizer = CharTokenizer(alphabet)
    return tokenizer.decode(tokenizer.encode(text, "nearest"))


@pytest.mark.parametrize(
    ("alphabet", "text", "expected"),
    [
        ("tée", "e\u0301te\u0301", "été"),
        ("aç", "c\u0327a", "ça"),
        ("ça", "c\u0327a", "ça"),
        ("e\u0301", "é", "e\u0301"),
        ("e\u0301", "e\u0301", "e\u0301"),  # as it is
        ("한", "\u1112\u1161\u11ab", "한"),
        ("\u1112\u1161\u11ab", "한", "\u1112\u1161\u11ab"),
        ("ê", "e\u0302\u0301", "ê"),  # the accent that is known stays
        ("ê", "ế", "ê"),
        ("é", "E\u0301", "é"),
        ("\u00c5", "\u212b", "\u00c5"),
        ("fi1 ", "ﬁ\u2460\u3000", "fi1 "),  # compatible characters
        ("क\u093c", "\u0958", "क\u093c"),
        ("a\u0301 ", "ж\u0301 a", " a"),  # an accent does not move to another letter
        ("❤", "❤\ufe0f", "❤"),
        ("'", "´", "'"),
    ],
)
def test_an_alphabet_in_another_normal_form_keeps_accents(alphabet, text, expected):
    assert spelled(alphabet, text) == expected


@given(st.text(st.sampled_from("aeo\u0301\u0302\u0327çéêếộ한\u1112\u1161 \n"), max_size=8))
def test_a_text_that_is_known_in_a_normal_form_loses_no_accent(text):
    for form in ("NFC", "NFD"):
        known = unicodedata.normalize(form, text)
        for other in ("NFC", "NFD"):
            found = spelled(known, unicodedata.normalize(other, text))
            assert unicodedata.normalize(form, found) == known


@given(st.text(max_size=12), st.text(max_size=12))
def test_nothing_unknown_is_left_by_nearest(alphabet, text):
    assert set(spelled(alphabet, text)) <= set(alphabet)


@pytest.mark.parametrize(
    ("strange", "alphabet", "form"),
    [("\u0301", "aé", "NFC"), ("é", "e\u0301", "NFD"), ("é\u0301", "é", ""), ("é", "abc", "")],
)
def test_the_normal_form_of_an_alphabet_is_told(strange, alphabet, form):
    assert normal_form(strange, alphabet) == form
