"""charlm novelty, and what charlm sample leaves out: records that are not new."""

import io
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from charlm.cli.main import run
from charlm.evaluation.given import open_part
from charlm.runs import RunFolder
from tests.cli.test_records import NAMES

TRAIN = ("train", "--config", "ngram", "model.order=3", "eval.baselines=false", "-q")
PARAGRAPHS = "\n\n".join(f"{a}\n{b}" for a in NAMES[:30] for b in ("la", "do"))


@pytest.fixture(scope="module")
def _runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("novelty")
    here = Path.cwd()
    os.chdir(folder)
    try:
        Path("names.txt").write_text("\n".join(NAMES))
        Path("paragraphs.txt").write_text(PARAGRAPHS)
        Path("long.txt").write_text("\n".join(f"{name} " * 20 for name in NAMES))
        for out, text, kind in (
            ("lines", "names", "lines"),
            ("paragraphs", "paragraphs", "paragraphs"),
            ("long", "long", "lines"),
            ("plain", "names", "none"),
        ):
            keys = [f"data.source={text}.txt", f"data.records={kind}", "data.val_fraction=0.2"]
            assert run([*TRAIN, *keys, "--out", out]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def runs(_runs, tmp_path):
    """Runs on lines, paragraphs, long lines, and a text without records."""
    shutil.copytree(_runs, tmp_path, dirs_exist_ok=True)


def records(name, part):
    """Return the records of a part."""
    folder = RunFolder(Path(name))
    split = open_part(folder, part)[0]
    text = folder.tokenizer.decode(split.read(0, len(split)))
    return text.strip(text[0]).split(text[0])


def samples(charlm, *arguments):
    result = charlm("sample", *arguments, "--json")
    assert result.code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_lines_are_sampled_as_lines(charlm, runs):
    result = charlm("sample", "lines", "-n", 20, "--seed", 1)

    found = samples(charlm, "lines", "-n", 20, "--seed", 1)
    assert result.stdout == "".join(f"{one['text']}\n" for one in found)
    assert {one["ended"] for one in found} == {"boundary"}
    assert "\U0010ffff" not in result.stdout


def test_paragraphs_are_sampled_with_empty_lines_between(charlm, runs):
    result = charlm("sample", "paragraphs", "-n", 6, "--seed", 1)

    found = [one["text"] for one in samples(charlm, "paragraphs", "-n", 6, "--seed", 1)]
    assert result.stdout == "\n\n".join(found) + "\n"
    assert any("\n" in text for text in found)


def test_json_says_how_a_record_ended(charlm, runs):
    def ended(*arguments):
        return [one["ended"] for one in samples(charlm, "lines", "--seed", 1, *arguments)]

    assert ended() == ["boundary"]
    assert ended("--max-new-chars", 1) == ["length"]
    (text,) = [one["text"] for one in samples(charlm, "lines", "--seed", 1)]
    assert ended("--stop", text[-1]) == ["stop"]
    assert ended("--best-of", 3) == ["boundary"]
    # The last character may be the last that is allowed: then nothing shows that it is the end.
    assert ended("--max-new-chars", len(text)) == ["length"]
    assert ended("--max-new-chars", len(text) + 1) == ["boundary"]


def test_a_record_goes_on_after_its_beginning(charlm, runs):
    found = samples(charlm, "lines", "-n", 9, "-p", "anna", "--seed", 1)

    assert {one["ended"] for one in found} == {"boundary"}
    assert all(one["text"].startswith("anna") for one in found)
    assert any(one["text"] == "anna" for one in found)


def test_novel_samples_are_no_training_records(charlm, runs):
    train = set(records("lines", "train"))
    plain = samples(charlm, "lines", "-n", 99, "--seed", 1)
    assert any(one["text"] in train for one in plain)

    found = samples(charlm, "lines", "-n", 30, "--seed", 1, "--novel")

    new = [(one["seed"], one["text"]) for one in plain if one["text"] not in train]
    assert [(one["seed"], one["text"]) for one in found] == new[:30]
    prompted = samples(charlm, "lines", "-n", 5, "--seed", 1, "--novel", "-p", "anna")
    assert not {one["text"] for one in prompted} & train
    shown = charlm("sample", "lines", "-n", 30, "--seed", 1, "--novel")
    assert shown.stdout.splitlines() == [text for _, text in new[:30]]
    assert re.fullmatch(r"\d+ drawn: \d+ in the training part\n", shown.stderr)
    assert charlm("sample", "lines", "-n", 30, "--seed", 1, "--novel", "-q").stderr == ""


def test_unique_samples_differ(charlm, runs):
    plain = [one["text"] for one in samples(charlm, "lines", "-n", 99, "--seed", 1)]
    assert len(set(plain)) < 99

    found = [one["text"] for one in samples(charlm, "lines", "-n", 40, "--seed", 1, "--unique")]

    assert found == list(dict.fromkeys(plain))[:40]
    assert len(samples(charlm, "plain", "-n", 3, "--max-new-chars", 1, "--unique")) == 3
    assert samples(charlm, "lines", "-n", 2, "--unique", "--best-of", 2)


def test_repeats_are_of_one_command_with_several_prompts(charlm, runs, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("anna\nanna\n"))

    result = charlm("sample", "lines", "-n", 3, "--unique", "--seed", 1, "-q", "-i")

    names = result.stdout.split()
    assert len(set(names)) == len(names) == 6


def test_the_next_prompt_goes_on_with_the_next_seed(charlm, runs, monkeypatch):
    train = set(records("lines", "train"))
    plain = samples(charlm, "lines", "-n", 40, "-p", "anna", "--seed", 1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("anna\nanna\n"))

    result = charlm("sample", "lines", "-n", 3, "--novel", "--seed", 1, "-q", "-i")

    new = [one["text"] for one in plain if one["text"] not in train]
    assert result.stdout.split() == new[:6]


def test_too_few_new_samples_are_a_note(charlm, runs):
    result = charlm("sample", "lines", "--novel", "--temperature", 0, "--seed", 1)
    assert (result.code, result.stdout) == (0, "")
    assert result.stderr == ("charlm: note: found 0 of 1 text; 1 drawn: 1 in the training part\n")

    result = charlm(
        "sample", "lines", "-n", 9, "--unique", "--temperature", 0.01, "--seed", 1, "-q"
    )
    assert (result.code, found := len(result.stdout.splitlines())) == (0, found) < (0, 9)
    assert result.stderr == (
        f"charlm: note: found {found} of 9 texts; 900 drawn: {900 - found} repeated\n"
    )

    result = charlm("sample", "lines", "-n", 2, "--novel", "--max-new-chars", 1, "--json")
    assert (result.code, result.stdout) == (0, "")
    assert result.stderr == "charlm: note: found 0 of 2 texts; 200 drawn: 200 cut off\n"


def test_new_samples_need_records(charlm, runs):
    result = charlm("sample", "plain", "--novel")

    assert (result.code, result.stdout) == (2, "")
    assert result.error == (
        "--novel: this run's text has no records, so no sample is whole; use a run that was "
        "trained with data.records=lines"
    )


def rows(charlm, *arguments):
    result = charlm("novelty", *arguments, "--json")
    assert (result.code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_the_share_that_is_recited_is_that_of_sample(charlm, runs):
    train = records("lines", "train")
    command = ("lines", "-n", 70, "--seed", 5)
    drawn = [one["text"] for one in samples(charlm, *command, "--temperature", 0.7) if one["text"]]

    found = rows(charlm, *command, "--temperature", 0.7, "--temperature", 1.5)

    first, second, held_out = found["rows"]
    assert found["training"] == {"records": len(train), "compared": len(train)}
    assert [first["temperature"], second["temperature"], held_out["split"]] == [0.7, 1.5, "val"]
    assert first["in_training"] == pytest.approx(sum(one in train for one in drawn) / 70)
    assert first["repeats"] == pytest.approx(1 - len(set(drawn)) / 70)
    assert second["in_training"] < first["in_training"]
    assert held_out["texts"] == len(records("lines", "val"))
    assert held_out["in_training"] == 0
    assert held_out["distance"]["mean"] >= 1
    for one in first["examples"]:
        assert one["text"] not in train
        assert one["nearest"] in train


def test_the_table_fits_a_terminal(charlm, runs, monkeypatch):
    monkeypatch.setattr("charlm.cli.output.width", lambda stream: 80)
    table = charlm("novelty", "long", "--file", "long.txt", "-n", 20).stdout
    assert "the longest copied span" in table
    assert max(map(len, table.splitlines())) <= 80
    for name in ("lines", "paragraphs", "long", "plain"):
        result = charlm("novelty", name, "-n", 20)

        assert result.code == 0
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert [line.split("  ")[0] for line in lines[1:5]] == [
            *("temperature 0.5", "temperature 0.8", "temperature 1", "held-out part")
        ]
    assert charlm("novelty", "lines", "-n", 5, "-q").stderr == ""


def test_given_texts_are_measured(charlm, runs):
    train = records("lines", "train")
    Path("mine").write_text(f"{train[0]}\n{train[1]}x☃\n{train[0]}\n")

    own, _ = rows(charlm, "lines", "--file", "mine")["rows"]

    assert (own["file"], own["texts"]) == ("mine", 3)
    assert own["in_training"] == pytest.approx(2 / 3)
    assert own["repeats"] == pytest.approx(1 / 3)
    assert own["distance"]["most"] in (1, 2)
    table = charlm("novelty", "lines", "--file", "mine").stdout.splitlines()
    assert table[1].split()[:4] == ["mine", "3", "66.7", "%"]
    few = charlm("novelty", "lines", "--file", "names.txt", "-n", 10)
    assert "note: names.txt: 10 of its 120 texts, spread evenly; for more, raise -n" in few.stderr


def test_copied_spans(charlm, runs):
    first, *_ = rows(charlm, "plain", "-n", 4, "--chars", 50)["rows"]
    assert (first["texts"], first["long_texts"]) == (4, 4)
    assert "in_training" not in first
    assert first["longest_span"] in Path("names.txt").read_text()
    assert len(first["longest_span"]) == first["copied_span"]["most"]

    text = Path("names.txt").read_text()
    Path("mine").write_text(text[20:60] + "☃" + text[100:109])
    own, _ = rows(charlm, "plain", "--file", "mine")["rows"]
    assert own["longest_span"] == text[20:60]

    long = records("long", "train")[0]
    Path("mine").write_text(f"☃{long[:90]}☃{long[3:50]}\nshort\n")
    own, held_out = rows(charlm, "long", "--file", "mine")["rows"]
    assert (own["long_texts"], own["copied_span"]["most"]) == (1, 90)
    assert held_out["long_texts"] > 0


def test_samples_that_are_cut_off_are_left_out(charlm, runs):
    result = charlm("novelty", "lines", "-n", 50, "--chars", 5, "--temperature", 1, "--json")
    (row, _) = json.loads(result.stdout)["rows"]
    assert row["texts"] + row["cut_off"] == 50
    assert row["cut_off"] > 0
    assert (
        f"note: temperature 1: {row['cut_off']} of 50 samples cut off at --chars 5, and "
        "left out" in result.stderr
    )

    result = charlm("novelty", "lines", "-n", 50, "--chars", 1)
    assert result.code == 2
    assert result.error == "--chars 1: no sample ended before it; raise it"


def test_mistakes(charlm, runs):
    def error(code, *arguments):
        result = charlm("novelty", *arguments)
        assert (result.code, result.stdout) == (code, "")
        return result.error

    assert error(2, "lines", "--file", "names.txt", "--temperature", 1) == (
        "--temperature 1: a --file is not sampled; leave one out"
    )
    assert error(3, "lines", "--file", "nothing").startswith("nothing: ")
    Path("empty").write_text("\n\n")
    assert error(3, "lines", "--file", "empty") == ("empty: no records in it; name another text")
    assert "--temperature" in error(2, "lines", "--temperature", -1)
    assert "--seed" in error(2, "lines", "--seed", -1)
    shutil.rmtree("lines/tokens")
    assert error(4, "lines").startswith("lines: has no text")


def test_without_a_held_out_part(charlm, runs):
    keys = ("data.source=names.txt", "data.records=lines", "data.val_fraction=0")
    assert charlm(*TRAIN, *keys, "--out", "all").code == 0

    result = charlm("novelty", "all", "-n", 9)

    assert "held-out" not in result.stdout
    assert "note: this run has no held-out part to compare with" in result.stderr


def test_a_signal_ends_it(charlm, runs, monkeypatch):
    monkeypatch.setattr(
        "charlm.evaluation.novelty.choose_candidates",
        lambda *arguments: os.kill(os.getpid(), signal.SIGINT),
    )
    monkeypatch.setattr("charlm.evaluation.novelty.nearest", lambda e, c, step: step("a", 1, 1))

    result = charlm("novelty", "lines", "-n", 5)

    assert (result.code, result.stdout) == (130, "")


def test_texts_are_whole_in_a_pipe_and_fill_a_terminal(charlm, runs, monkeypatch):
    asked = ("novelty", "long", "-n", 20, "--temperature", 1)
    rows = json.loads(charlm(*asked, "--json").stdout)["rows"]
    example, span = rows[0]["examples"][0]["text"], rows[0]["longest_span"]
    assert len(example) > 100

    piped = charlm(*asked, "-q").stdout
    monkeypatch.setattr("charlm.cli.output.width", lambda stream: 120)
    shown = charlm(*asked, "-q").stdout.splitlines()

    assert example.strip() in piped
    assert span.strip() in piped
    assert "…" not in piped
    assert 119 <= max(map(len, shown)) <= 120
    title = next(line for line in shown if line.startswith("new"))
    assert 40 < title.index("nearest in training") < 50  # both texts have as much room


def test_greedy_decoding_is_measured_by_one_text(charlm, runs):
    rows = json.loads(charlm("novelty", "lines", "--temperature", 0, "--json").stdout)["rows"]

    assert rows[0]["texts"] == 1


@pytest.mark.parametrize("option", ["--novel", "--unique"])
@pytest.mark.parametrize("greedy", [("--temperature", 0), ("--top-k", 1)])
def test_greedy_decoding_is_not_repeated_in_vain(charlm, runs, monkeypatch, option, greedy):
    result = charlm("sample", "lines", option, "-n", 5, *greedy)
    one = charlm("sample", "lines", option, *greedy)
    plain = charlm("sample", "lines", "-n", 2, *greedy)
    best = charlm("sample", "lines", "--best-of", 2, *greedy)

    what = "greedy decoding (--temperature 0 or --top-k 1) gives the same text each time"
    assert (result.code, result.stdout) == (2, "")
    assert result.error == f"-n 5: {what}; raise the temperature or --top-k, or leave out -n"
    assert one.code == 0
    assert "1 drawn" in one.stderr
    assert f"note: -n 2: {what}\n" in plain.stderr
    assert f"note: --best-of 2: {what}\n" in best.stderr
    assert len(set(plain.stdout.splitlines())) == 1


def test_records_with_empty_lines_are_told_apart(charlm, runs):
    Path("notes").mkdir()
    for i, name in enumerate(NAMES[:40]):
        Path("notes", f"{i}.txt").write_text(f"{name}\n\n{name}\n")
    keys = ["data.source=notes", "data.records=files", "data.val_fraction=0.2"]
    assert run([*TRAIN, *keys, "--out", "files"]) == 0

    shown = charlm("sample", "files", "-n", 12, "--seed", 1).stdout
    chosen = charlm("sample", "files", "-n", 12, "--seed", 1, "--separator", "=").stdout

    texts = [one["text"] for one in samples(charlm, "files", "-n", 12, "--seed", 1)]
    assert any("\n\n" in text for text in texts)
    assert shown == "---\n".join(f"{text.removesuffix(chr(10))}\n" for text in texts)
    assert chosen == shown.replace("---\n", "=\n")


def test_records_that_are_cut_off_are_said_to_be(charlm, runs):
    cut = charlm("sample", "lines", "-n", 3, "--seed", 1, "--max-new-chars", 1)
    whole = charlm("sample", "lines", "-n", 3, "--seed", 1)
    of_one_text = charlm("sample", "plain", "-n", 3, "--seed", 1, "--max-new-chars", 1)

    note = "note: 3 samples were cut off after 1 character, before the end; raise --max-new-chars"
    assert note in cut.stderr
    assert "cut off" not in whole.stderr + of_one_text.stderr


def test_a_file_in_another_encoding_is_answered_as_in_an_evaluation(charlm, trained):
    Path("latin.txt").write_bytes("café\n".encode("latin-1") * 9)

    errors = [charlm(verb, trained, "--file", "latin.txt").error for verb in ("novelty", "eval")]

    assert errors[0] == errors[1]
    assert errors[0].endswith("; convert it to UTF-8 first, with iconv")
