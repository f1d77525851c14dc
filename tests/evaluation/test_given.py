from pathlib import Path

import pytest

from charlm.config import DataConfig
from charlm.errors import DataError
from charlm.evaluation.given import open_part, read_text
from charlm.runs import RunFolder
from charlm.text import ByteTokenizer, CharTokenizer

ALPHABET = CharTokenizer("abc")


def given(text, tmp_path, own=ALPHABET, **options):
    (tmp_path / "given.txt").write_text(text, encoding="utf-8")
    unit = "bytes" if isinstance(own, ByteTokenizer) else "chars"
    return read_text(str(tmp_path / "given.txt"), DataConfig(unit=unit), own, tmp_path, **options)


def test_a_known_text_has_the_ids_of_the_model(tmp_path):
    text = given("abcab", tmp_path)

    assert text.ids.read(0, 5).tolist() == ALPHABET.encode("abcab").tolist()
    assert (text.tokenizer, text.left_out, text.notes) == (ALPHABET, None, ())


def test_unknown_characters_are_set_apart(tmp_path):
    text = given("abécé", tmp_path, unknown="uniform")

    assert text.ids.read(0, 3).tolist() == ALPHABET.encode("abc").tolist()
    assert text.left_out.before.tolist() == [2, 3]
    assert text.tokenizer.decode(text.left_out.symbols) == "éé"


def test_a_python_caller_is_told_the_argument(tmp_path):
    with pytest.raises(
        DataError,
        match=r"'é' \(U\+00E9\) is not in .*; use unknown='uniform' to score the 1 unknown character by",
    ):
        given("abé", tmp_path)


def test_a_text_in_another_normal_form_is_answered_with_it(tmp_path):
    with pytest.raises(
        DataError, match="; convert it to the normal form NFC, as the run's text is,"
    ):
        given("abe\u0301", tmp_path, CharTokenizer("abeé"))
    with pytest.raises(DataError, match="; use unknown="):
        given("ab☃", tmp_path)


def test_bytes_know_every_text(tmp_path):
    assert len(given("☃", tmp_path, ByteTokenizer()).ids) == 3


def test_both_passes_are_reported(tmp_path):
    seen = []

    given("abc", tmp_path, progress=lambda what, read: seen.append((what, read)))

    assert seen == [("reading", 3), ("encoding", 3)]


def test_a_part_of_a_run_comes_with_the_facts_of_its_text(trained):
    part, facts = open_part(RunFolder(trained), "val")

    assert len(part) == 258
    assert (facts["source"], facts["unit"]) == ("text.txt", "chars")
    with pytest.raises(DataError, match=rf"{Path(trained).name}: its test part has 0 characters"):
        open_part(RunFolder(trained), "test")
