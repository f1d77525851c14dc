"""Rare characters through the commands: train, resume, eval, sample, compare, baselines, compress."""

import json
import math
import random
from pathlib import Path

import pytest

KINDS = {
    "ngram": ["--config", "ngram", "model.order=3"],
    "gpt": ["--config", "gpt", "model.n_embd=16", "model.n_layer=1", "model.block_size=16"],
}


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text in which every third character is one of very many rare ones."""
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    text = "".join(
        random.choice("ab\ncd") if i % 3 else chr(random.randrange(0x4E00, 0x9000))
        for i in range(3000)
    )
    Path("text.txt").write_text(text)
    return text


RARE = "data.min_count=5"


def train(charlm, *options, out="run", kind="ngram"):
    result = charlm("train", *KINDS[kind], "data.source=text.txt", "--out", out, *options)
    assert result.code == 0, result.stderr
    return result


@pytest.mark.parametrize("protocol", ["windows", "sliding", "stream", "adaptive"])
def test_each_character_is_listed_with_its_cost(charlm, text, protocol):
    train(charlm, RARE)

    result = charlm("eval", "run", "--protocol", protocol, "--per-char", "chars.jsonl", "--json")

    score = json.loads(result.stdout)
    rows = [*map(json.loads, Path("chars.jsonl").read_text().splitlines())]
    val = text[-300:]
    assert "".join(row["char"] for row in rows) == val[1:]
    bits = [row["bits"] for row in rows]
    assert sum(bits) / len(bits) == pytest.approx(score["bits_per_char"], abs=1e-5)
    assert score["bits_per_byte"] == pytest.approx(sum(bits) / len(val[1:].encode()), abs=1e-5)
    assert score["escapes"] == sum(ord(c) > 0x4E00 for c in val[1:])
    vocab = json.loads(Path("run/tokenizer.json").read_text())["alphabet"]
    least = math.log2(0x110000 - len(vocab))
    assert all(row["bits"] > least for row in rows if ord(row["char"]) > 0x4E00)


def test_unknown_characters_of_another_text_are_escapes(charlm, text):
    train(charlm, RARE)
    Path("other.txt").write_text("aé\nb😀c\n" * 10)

    scored = charlm("eval", "run", "--file", "other.txt", "--per-char", "c.jsonl")

    assert scored.code == 0
    assert (
        "20 of them are rare or unknown ('é' (U+00E9), '😀' (U+1F600)): one symbol, and they cost "
        "20.09 bits more each"
    ) in scored.stderr
    rows = [*map(json.loads, Path("c.jsonl").read_text().splitlines())]
    assert "".join(row["char"] for row in rows) == ("aé\nb😀c\n" * 10)[1:]


def test_a_text_with_the_escape_cannot_be_scored(charlm, text, refused):
    train(charlm, RARE)
    Path("other.txt").write_text("ab\U0010fffe")

    (line,) = refused(3, "eval", "run", "--file", "other.txt")

    assert line == "other.txt: holds U+10FFFE, which stands for rare characters; remove it"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("records", ["none", "lines"])
def test_the_escape_is_never_written(charlm, text, kind, records):
    steps = ["train.max_steps=20", "train.sample_every=10", "train.sample_chars=60"]
    train(charlm, RARE, f"data.records={records}", *steps, kind=kind)

    asked = ["--temperature", "2", "--seed", "1", "--max-new-chars", "100"]
    for options in (["--allow", "[^a]"], [], ["--prompt", "a龘b", "--no-echo"], ["-n", "20"]):
        sampled = charlm("sample", "run", *asked, *options)
        assert sampled.code == 0, sampled.stderr
        assert set(sampled.stdout) <= set("ab\ncd")
    for sample in Path("run/samples").glob("*"):
        assert set(sample.read_text()) <= set("ab\ncd")


def test_a_prompt_is_shown_as_it_was_typed(charlm, text):
    train(charlm, RARE)

    sampled = charlm("sample", "run", "--prompt", "a龘b", "--seed", "1", "--json")

    assert json.loads(sampled.stdout)["prompt"] == "a龘b"
    assert charlm("sample", "run", "--prompt", "a龘b", "--seed", "1").stdout.startswith("a龘b")


def test_a_stop_text_cannot_hold_a_rare_character(charlm, text, refused):
    train(charlm, RARE)

    (line,) = refused(3, "sample", "run", "--stop", "龘")

    assert "not in this model's alphabet, so no text can have it" in line


def test_a_resumed_run_ends_with_the_same_bits(charlm, text):
    options = [RARE, "model.dropout=0.1", "train.schedule=constant", "train.warmup_steps=2"]
    train(charlm, *options, "train.max_steps=30", out="whole", kind="gpt")
    train(charlm, *options, "train.max_steps=12", out="parts", kind="gpt")

    resumed = charlm("train", "--resume", "--out", "parts", "train.max_steps=30")

    assert resumed.code == 0, resumed.stderr
    one, other = (
        Path(run, "checkpoints", "step-30", "model.safetensors").read_bytes()
        for run in ("parts", "whole")
    )
    assert one == other
    losses = [
        json.loads(charlm("eval", r, "--json").stdout)["loss_nats"] for r in ("parts", "whole")
    ]
    assert losses[0] == losses[1]
    assert charlm("verify", "parts").code == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--config", "context-mixing", "model.memory=1"],
        ["--config", "mixture", "model.combine=log-linear"],
        ["--config", "mixture", "model.combine=bitwise"],
    ],
)
def test_a_step_that_learns_all_counts_them_too(charlm, text, options):
    if "mixture" in options:
        options = [*options, "model.experts.counts.model.order=3", "model.tune_fraction=0.3"]
        options += ["model.experts.gpt.train.max_steps=5", "model.experts.gpt.model.n_embd=16"]
    result = charlm("train", *options, "data.source=text.txt", RARE, "--out", "run")

    assert result.code == 0, result.stderr
    rows = [*map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())]
    (step,) = [row for row in rows if row["kind"] == "train" and not row.get("expert")]
    score = json.loads(charlm("eval", "run", "--json").stdout)
    assert step["loss_nats"] == pytest.approx(score["loss_nats"], rel=0.1)
    assert score["loss_nats"] > math.log(1_100_000) / 3


def test_runs_with_and_without_are_in_one_table(charlm, text):
    train(charlm, RARE)
    train(charlm, out="all")
    train(charlm, "data.unit=bytes", out="bytes")

    result = charlm("compare", "run", "all")
    shown = charlm("compare", "run", "all", "bytes")
    three = charlm("compare", "run", "all", "bytes", "--json")

    for one in (result, shown):
        assert "texts: losses are comparable only within a table" not in one.stderr
    assert "runs of characters and of bytes are compared by bits per byte" in shown.stderr
    runs = {run["run"]: run for run in json.loads(three.stdout)["runs"]}
    assert {run["text"]["sha256"] for run in runs.values()} == {runs["all"]["text"]["sha256"]}
    score = json.loads(charlm("eval", "run", "--json").stdout)
    (alone,) = json.loads(charlm("compare", "run", "--json").stdout)["runs"]
    assert alone["scores"]["windows"]["loss_nats"] == pytest.approx(score["loss_nats"])


def test_a_text_of_rare_characters_comes_back_from_a_compressed_file(charlm, text):
    train(charlm, RARE)
    Path("other.txt").write_text("aé\nb\U0010fffe😀c\n" * 10)

    for name in ("text.txt", "other.txt"):
        assert charlm("compress", name, "--run", "run", "--out", "c").code == 0
        assert charlm("decompress", "c", "--run", "run", "--out", "back.txt").code == 0
        assert Path("back.txt").read_bytes() == Path(name).read_bytes()
        Path("c").unlink()
        Path("back.txt").unlink()


def test_a_text_of_rare_characters_alone_is_refused(charlm, text, refused):
    (line,) = refused(3, "train", *KINDS["ngram"], "data.source=text.txt", "data.min_count=2000")

    assert line == "data.min_count=2000: no character of text.txt occurs 2,000 times; lower it"


def test_a_score_tells_of_rare_characters(charlm, text):
    train(charlm, RARE, "data.records=lines")
    Path("some.txt").write_text("ab\na龘\n")

    said = charlm("score", "some.txt", "--run", "run").stderr

    assert (
        "1 text has characters that are rare in the run's text, or not in it; the model reads one "
        "symbol for all of them"
    ) in said
    assert "does not know" not in said
