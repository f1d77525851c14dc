import pytest

from charlm.errors import DataError
from charlm.sampling import encode_prompt
from charlm.text import CharTokenizer


def test_an_empty_prompt_is_a_newline():
    assert encode_prompt(CharTokenizer("\nab"), "").tolist() == [0]
    assert encode_prompt(CharTokenizer(" \nab"), "").tolist() == [0]  # '\n' sorts before ' '


def test_an_empty_prompt_is_the_first_symbol_of_an_alphabet_without_newlines():
    assert encode_prompt(CharTokenizer("xyz"), "").tolist() == [0]


def test_an_unknown_character_is_named_with_its_position_and_a_way_on():
    with pytest.raises(DataError) as caught:
        encode_prompt(CharTokenizer("abc"), "aéb")

    assert str(caught.value) == (
        "prompt: character 2 'é' (U+00E9) not in this model's alphabet of 3; use "
        "unknown='nearest' to replace them by similar characters, or unknown='skip' to leave them out"
    )


def test_unknown_characters_can_be_left_out():
    tokenizer = CharTokenizer("abc")

    assert encode_prompt(tokenizer, "aéb", "skip").tolist() == [0, 1]
    assert encode_prompt(tokenizer, "éü", "skip").tolist() == [0]
