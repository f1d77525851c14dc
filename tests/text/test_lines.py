"""Line ends and first lines of a text, against Python's own ways to read them."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from charlm.config import DataConfig
from charlm.errors import DataError
from charlm.text import reading, scan_text
from charlm.text.lines import Lines
from charlm.text.tokenizer import code_points, of_code_points
from tests.text.test_corpus import make_corpus, source_of, whole

OF_LINES = st.text("ab\n\r", max_size=30)


def left_of(texts, newlines="keep", skip=0, size=3):
    """Return what is left of files that are read in chunks."""
    lines, found = Lines(newlines, skip), []
    for text in texts:
        lines.begin()
        codes = code_points(text)
        chunks = [lines.push(codes[i : i + size]) for i in range(0, len(codes), size)]
        found.append("".join(map(of_code_points, chunks)))
    return found


def with_newlines(text):
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(st.lists(OF_LINES), st.integers(1, 5))
def test_all_line_ends_become_newlines(texts, size):
    assert left_of(texts, "lf", size=size) == [with_newlines(text) for text in texts]


@given(st.lists(OF_LINES), st.integers(1, 5))
def test_all_line_ends_are_left_out(texts, size):
    assert left_of(texts, "none", size=size) == [
        "".join(with_newlines(t).split("\n")) for t in texts
    ]


@given(
    st.lists(OF_LINES),
    st.integers(0, 4),
    st.integers(1, 5),
    st.sampled_from(["keep", "lf", "none"]),
)
def test_the_first_lines_of_each_file_are_left_out(texts, skip, size, newlines):
    expected = []
    for text in texts:
        text = text if newlines == "keep" else with_newlines(text)
        rest = "\n".join(text.split("\n")[skip:])
        expected.append(rest.replace("\n", "") if newlines == "none" else rest)

    assert left_of(texts, newlines, skip, size) == expected


@pytest.mark.parametrize(
    ("unit", "encoding"), [("chars", "utf-8"), ("chars", "utf-16"), ("bytes", "utf-8")]
)
def test_a_text_of_another_system_is_the_same_text(tmp_path, monkeypatch, unit, encoding):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 5)
    text = "one é\ntwo\n\nthree\n"
    keys = {"unit": unit, "encoding": encoding}

    windows, tokenizer = make_corpus(
        tmp_path / "w", text.replace("\n", "\r\n").encode(encoding), newlines="lf", **keys
    )

    assert windows.facts["source_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert tokenizer.decode(whole(windows)) == text


def test_files_are_joined_by_what_is_left_of_them(tmp_path):
    parts = [b"name\r\nanna\r\n", b"name\r\n", b"name\r\nbob", b"name\r\nceda\r\n"]

    corpus, tokenizer = make_corpus(tmp_path / "t", *parts, newlines="lf", skip_lines=1)

    assert tokenizer.decode(whole(corpus)) == "anna\nbob\nceda\n"


def test_a_sequence_in_lines_of_equal_width_is_one_line(tmp_path):
    corpus, tokenizer = make_corpus(
        tmp_path / "t", b">chr1 of a plant\nACGT\nAAGC\nTT\n", newlines="none", skip_lines=1
    )

    assert tokenizer.decode(whole(corpus)) == "ACGTAAGCTT"


def test_records_are_lines_that_follow_a_header(tmp_path):
    parts = [b"name\nanna\nbob\n", b"name\nceda"]

    scan = scan_text(source_of(*parts), DataConfig(records="lines", skip_lines=1))

    assert (scan.records.records, scan.size) == (3, len("anna|bob|ceda|"))


@pytest.mark.parametrize(
    ("keys", "notes"),
    [
        (
            {},
            [
                "the text has carriage returns (\\r; Windows ends lines with \\r\\n), which are learned too; "
                "data.newlines=lf makes each line end a \\n"
            ],
        ),
        ({"newlines": "lf"}, ["data.newlines=lf made \\n of 2 line ends \\r\\n or \\r"]),
        ({"newlines": "none"}, ["data.newlines=none left out 3 line ends"]),
        (
            {"skip_lines": 1, "newlines": "lf"},
            [
                "data.skip_lines left out the first line: 'a,b\\n'",
                "data.newlines=lf made \\n of 2 line ends \\r\\n or \\r",
            ],
        ),
        ({"skip_lines": 2}, ["data.skip_lines left out the first 2 lines: 'a,b\\r\\nc\\n'"]),
    ],
)
def test_the_notes_say_what_was_done(monkeypatch, keys, notes):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 4)

    assert scan_text(source_of(b"a,b\r\nc\nde\r"), DataConfig(**keys)).notes[: len(notes)] == notes


def test_the_note_on_first_lines_counts_files_and_is_short():
    long = b"x" * 1000 + b"\nab\n"

    (note,) = scan_text(source_of(long, long), DataConfig(skip_lines=1)).notes

    assert note == f"data.skip_lines left out the first line of 2 files: {'x' * 60!r}"


def test_a_text_without_more_lines_is_refused():
    with pytest.raises(DataError) as caught:
        scan_text(source_of(b"one\ntwo"), DataConfig(skip_lines=3))

    assert str(caught.value) == (
        "here: nothing follows its first 3 lines; lower data.skip_lines, or name another text"
    )


@pytest.mark.parametrize("records", ["lines", "paragraphs"])
def test_records_that_end_at_line_ends_need_them(records):
    with pytest.raises(ValidationError, match=f"without line ends there are no {records}"):
        DataConfig(newlines="none", records=records)

    DataConfig(newlines="none", records="files")
    DataConfig(newlines="none", records=records, column="text")
