"""Texts that are compressed, in tables, or with line ends of another system, through the commands."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import sys
from pathlib import Path

import pytest

from charlm.runs import RunFolder
from charlm.text import open_corpus
from tests.conftest import TEXT

TRAIN = ("train", "--config", "tiny.yaml", "-q")
LIST = ("train", "--config", "bigram", "-q", "data.records=lines", "eval.baselines=false")
NAMES = [f"{a}{b}" for a in ("an", "be, ", 'co"', "d\n") for b in ("na", "li", "ra", "so")]


def rows(result):
    """Return the facts that a command printed."""
    return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())


def write_csv(name, values, header="name"):
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["n", header], *enumerate(values)])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_run_is_the_same_whether_its_text_is_packed(charlm, tiny, monkeypatch, pack):
    Path("packed").write_bytes(pack(TEXT.encode()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pack(TEXT.encode()))))

    results = [
        charlm(*TRAIN, f"data.source={name}", "--out", f"runs/{i}", "--json")
        for i, name in enumerate(["text.txt", "packed", "-"])
    ]

    assert [result.code for result in results] == [0, 0, 0], results[-1].stderr
    losses = [json.loads(result.stdout)["best_loss_nats"] for result in results]
    assert losses[0] == losses[1] == losses[2]


def test_a_packed_text_is_described_as_the_text(charlm):
    Path("a.gz").write_bytes(gzip.compress(TEXT.encode()))

    found = rows(charlm("data", "info", "a.gz"))

    assert found["size"] == f"{len(TEXT):,} characters"
    assert found["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()


def test_a_run_can_be_resumed_after_its_text_was_packed(charlm, tiny):
    assert charlm(*TRAIN, "--out", "run").code == 0
    Path("text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))

    result = charlm("train", "--resume", "run", "data.source=text.txt.gz", "train.max_steps=9")

    assert result.code == 0, result.stderr


@pytest.mark.parametrize("length", [20, 100])
def test_a_truncated_file_is_one_line(charlm, tiny, length):
    Path("a.gz").write_bytes(gzip.compress(TEXT.encode())[:length])

    for command in (("data", "info", "a.gz"), (*TRAIN, "data.source=a.gz")):
        result = charlm(*command)

        assert result.code == 3
        assert result.error == "a.gz: truncated gzip file; get a complete copy"


def test_a_column_is_a_list_of_records(charlm):
    write_csv("names.csv", NAMES)

    result = charlm(*LIST, "data.source=names.csv", "data.column=name", "--out", "run")
    scored = charlm("eval", "run", "--file", "names.csv", "--json")

    assert result.code == 0, result.stderr
    facts = open_corpus(RunFolder(Path("run")).text_path).facts
    assert facts["size"] == sum(len(name) + 1 for name in NAMES) + 2  # one more in each part
    assert scored.code == 0, scored.stderr
    assert json.loads(scored.stdout)["chars"] == sum(len(name) + 1 for name in NAMES)


@pytest.mark.parametrize(
    ("keys", "code", "core"),
    [
        (["data.column=nom"], 3, "names.csv: line 1: there is no column 'nom'; set data.column to"),
        (
            ["data.column=3"],
            3,
            "names.csv: line 1: there is no column 3, only 2 columns; lower data",
        ),
        (["data.column=0"], 2, "data.column=0: expected a name or a number from 1, got '0'"),
        (
            ["data.column=name", "data.records=none"],
            2,
            "data.column: needs data.records=lines, because each value becomes one record",
        ),
        (
            ["data.column=name", "data.records=files"],
            2,
            "each file would be one record, but data.column makes one of each value; use data.rec",
        ),
        (
            ["data.column=name", "data.source=text.txt"],
            3,
            "text.txt: no table: its name ends in none",
        ),
        (["data.newlines=crlf"], 2, "'crlf' is not one of keep, lf or none"),
        (["data.skip_lines=-1"], 2, "data.skip_lines=-1"),
        (["data.newlines=none"], 2, "without line ends there are no lines; use data.newlines=lf"),
    ],
)
def test_mistakes_are_answered(charlm, tiny, keys, code, core):
    write_csv("names.csv", NAMES)
    given = [] if any("source" in key for key in keys) else ["data.source=names.csv"]
    records = [] if any("records" in key for key in keys) else ["data.records=lines"]

    result = charlm("train", "--config", "bigram", *given, *records, *keys)

    assert (result.code, result.stdout) == (code, "")
    assert core in result.error


def test_notes_say_what_became_of_the_lines(charlm, tiny):
    Path("a.txt").write_bytes(b"a header\r\n" + TEXT.replace("\n", "\r\n").encode())

    result = charlm(
        *("train", "--config", "tiny.yaml", "data.source=a.txt", "--out", "run"),
        *("data.newlines=lf", "data.skip_lines=1"),
    )

    assert result.code == 0, result.stderr
    assert "note: data.skip_lines left out the first line: 'a header\\n'" in result.stderr
    assert "note: data.newlines=lf made \\n of 61 line ends \\r\\n or \\r" in result.stderr
    same = open_corpus(RunFolder(Path("run")).text_path).facts["source_sha256"]
    assert same == hashlib.sha256(TEXT.encode()).hexdigest()


def test_a_list_is_scored_by_a_run_of_a_column(charlm, monkeypatch):
    write_csv("names.csv", NAMES)
    Path("list.txt").write_text("anna\nanli\n")
    keys = ["data.source=names.csv", "data.column=2", "data.skip_lines=1"]
    assert charlm(*LIST, *keys, "--out", "run").code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"anna\nanli\n")))

    scores = [
        json.loads(charlm("eval", "run", "--file", name, "--json").stdout)
        for name in ("list.txt", "-")
    ]

    assert [score["chars"] for score in scores] == [10, 10]
    assert scores[0]["loss_nats"] == scores[1]["loss_nats"]


@pytest.mark.parametrize("named", [["names.csv"], ["--file", "names.csv"]])
def test_a_table_is_described(charlm, named):
    write_csv("names.csv", NAMES)

    result = charlm("data", "info", *named, "data.column=name", "data.records=lines")

    assert result.code == 0, result.stderr
    found = rows(result)
    assert found["records"] == f"{len(NAMES)}, of 4.8 characters on average, 6 at most"
    assert found["alphabet"] == repr("".join(sorted(set("".join(NAMES)))))
    assert found["symbols"] == f"{len(set(''.join(NAMES)))} different characters"


def test_baselines_read_a_table(charlm):
    write_csv("names.csv", NAMES * 5)

    result = charlm("baselines", "names.csv", "data.column=name", "data.records=lines", "--json")

    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["symbols"] == len(set("".join(NAMES)))


@pytest.mark.parametrize(
    ("keys", "core"),
    [
        (["model.type=gpt"], "model.type=gpt: only keys of the section data can be set here"),
        (["data.source=b.csv"], "data.source=b.csv: only keys of the section data can be set here"),
        (
            ["data.column=name"],
            "the options with data.column=name: data.column: needs data.records=lines",
        ),
        (["data.colum=name"], "data.colum=name: unknown key; did you mean 'column'?"),
        (["names.csv"], "names.csv: expected KEY=VALUE; a text is given as"),
        (["--file", "names.csv"], "--file: given twice: 'names.csv', then 'names.csv'; keep one"),
        (["data.unit=bytes", "data.records=lines"], "lines are made of characters; use data.unit="),
    ],
)
def test_wrong_keys_of_a_description_are_answered(charlm, keys, core):
    write_csv("names.csv", NAMES)

    result = charlm("data", "info", "names.csv", *keys)

    assert (result.code, result.stdout) == (2, "")
    assert core in result.error
