import pytest

from charlm.errors import DataError, UsageError
from charlm.sampling import CONFIGURED, allowed_ids, encode_prompt, encode_stops
from charlm.text import ByteTokenizer, CharTokenizer


def test_an_empty_prompt_is_a_newline():
    assert encode_prompt(CharTokenizer("\nab"), "").tolist() == [0]
    assert encode_prompt(CharTokenizer(" \nab"), "").tolist() == [0]  # '\n' sorts before ' '


def test_an_empty_prompt_is_the_first_symbol_of_an_alphabet_without_newlines():
    assert encode_prompt(CharTokenizer("xyz"), "").tolist() == [0]


def test_an_unknown_character_is_named_with_its_position_and_a_way_on():
    with pytest.raises(DataError) as caught:
        encode_prompt(CharTokenizer("abc"), "aéb")

    assert str(caught.value) == (
        "prompt: character 2 'é' (U+00E9) is not in this model's alphabet of 3; use "
        "unknown='nearest' to take similar characters instead, or unknown='skip' to leave such "
        "characters out"
    )


def test_unknown_characters_can_be_left_out():
    tokenizer = CharTokenizer("abc")

    assert encode_prompt(tokenizer, "aéb", "skip").tolist() == [0, 1]
    assert encode_prompt(tokenizer, "éü", "skip").tolist() == [0]


def test_a_stop_text_becomes_ids():
    assert encode_stops(CharTokenizer("\nab"), ["b\n", "a"])[0].tolist() == [2, 0]
    assert encode_stops(ByteTokenizer(), ["é\udcff"])[0].tolist() == [0xC3, 0xA9, 0xFF]


def test_a_stop_text_that_no_text_can_have_is_refused():
    with pytest.raises(DataError) as caught:
        encode_stops(CharTokenizer("\nendx"), ["x", "<end>"])

    assert str(caught.value) == (
        "stop='<end>': character 1 '<' (U+003C), character 5 '>' (U+003E) are not in this "
        "model's alphabet of 5, so no text can have it; leave it out"
    )


def test_a_stop_text_that_is_not_allowed_is_refused():
    known = CharTokenizer("\nab")

    assert len(encode_stops(known, ["ab"], allowed_ids(known, "ab"))) == 1
    with pytest.raises(UsageError, match=r"^stop='a\\n': allow leaves out a character of it"):
        encode_stops(known, ["a\n"], allowed_ids(known, "ab"))


def test_an_empty_stop_text_is_refused():
    with pytest.raises(UsageError, match=r"stop='': empty, so each text would end at once"):
        encode_stops(CharTokenizer("ab"), [""])


@pytest.mark.parametrize(
    ("typed", "mend"),
    [
        (r"a\nb", r"for a newline, write {}='a\nb'"),
        (r"\r\n", r"for a carriage return, write {}='\r\n'"),
        (r"\t", r"for a tab, write {}='\t'"),
    ],
)
def test_an_escape_that_nothing_read_is_answered_with_how_to_write_it(typed, mend):
    known = CharTokenizer("\n\r\tabnrt")
    for name, encode in (("prompt", encode_prompt), ("stop", lambda k, t: encode_stops(k, [t]))):
        with pytest.raises(DataError) as caught:
            encode(known, typed)
        assert str(caught.value).endswith(f"; {mend.format(name)}")
    with pytest.raises(UsageError, match="has no backslash; for a"):
        allowed_ids(known, typed)


def test_a_backslash_that_a_model_knows_is_one():
    known = CharTokenizer("abn\\")

    assert len(encode_prompt(known, r"a\n")) == 3
    assert [len(stop) for stop in encode_stops(known, [r"\n"])] == [2]
    assert allowed_ids(known, r"\n").sum() == 2


def test_an_escape_in_a_configuration_is_answered_in_its_own_words():
    with pytest.raises(DataError) as caught:
        encode_prompt(CharTokenizer("\nab"), r"a\n", where=CONFIGURED)

    assert str(caught.value).startswith("sample.prompt: character")
    assert str(caught.value).endswith(
        r"; for a newline, put the value in double quotes in the file, or write sample.prompt=a\n"
    )
    with pytest.raises(DataError, match=r"character 2 .*; use characters of the text"):
        encode_prompt(CharTokenizer("\nab"), "a☃", where=CONFIGURED)


def test_an_escape_in_a_file_is_answered_too():
    with pytest.raises(DataError, match=r"^p\.txt: .*; write a newline itself$"):
        encode_prompt(CharTokenizer("\nab"), r"a\n", where="p.txt")
