"""A list of records through every command: train, resume, score, sample, compare, verify."""

import json
from pathlib import Path

import pytest

NAMES = sorted(
    {
        f"{a}{b}{c}"
        for a in ("an", "be", "co", "da", "el", "fi")
        for b in ("na", "li", "ra", "so")
        for c in ("", "n", "ta", "mi", "rosa")
    }
)
MODELS = {
    "bigram": ["--config", "bigram", "train.max_steps=30"],
    "gpt": ["--config", "gpt", "train.max_steps=30", "model.n_embd=16", "model.n_layer=2"],
    "by hand": [
        *("--config", "gpt", "train.max_steps=30", "model.n_embd=16", "model.n_layer=1"),
        "train.gradients=by_hand",
    ],
    "ngram": ["--config", "ngram", "model.order=4"],
    "context-mixing": ["--config", "context-mixing", "model.memory=1"],
    "log-linear": [
        *("--config", "mixture", "model.combine=log-linear", "model.experts.counts.model.order=3"),
        *("model.experts.gpt.train.max_steps=30", "model.experts.gpt.model.n_embd=16"),
    ],
    "bitwise": [
        *("--config", "mixture", "model.experts.counts.model.order=3", "model.tune_fraction=0.3"),
        *("model.experts.gpt.train.max_steps=30", "model.experts.gpt.model.n_embd=16"),
    ],
}


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(NAMES) + "\n")
    return ["data.source=names.txt", "data.records=lines", "data.val_fraction=0.2"]


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_learns_records(charlm, names, kind):
    trained = charlm("train", *MODELS[kind], *names, "--out", "run", "train.sample_every=0")
    assert trained.code == 0, trained.stderr

    scored = charlm("eval", "run", "--json")
    score = json.loads(scored.stdout)
    adaptive = charlm("eval", "run", "--json", "--protocol", "adaptive")
    sampled = charlm("sample", "run", "-n", "5", "--seed", "1", "--temperature", "1")
    checked = charlm("verify", "run")

    assert score["records"] == 24
    assert score["nats_per_record"] == pytest.approx(score["loss_nats"] * score["chars"] / 24)
    assert adaptive.code == 0, adaptive.stderr
    assert json.loads(adaptive.stdout)["chars"] == score["chars"]
    assert sampled.code == 0, sampled.stderr
    assert len(sampled.stdout.splitlines()) == 5
    assert set(sampled.stdout) <= set("".join(NAMES)) | {"\n"}
    assert checked.code == 0, checked.stderr


def test_the_order_of_a_list_changes_nothing(charlm, names):
    found = []
    for i, order in enumerate((NAMES, NAMES[::-1])):
        Path("names.txt").write_text("\n".join(order) + "\n")
        charlm("train", *MODELS["gpt"], *names, "--out", f"{i}", "run.dtype=float32")
        found.append(json.loads(charlm("eval", f"{i}", "--json").stdout)["loss_nats"])

    assert found[0] == found[1]


def test_a_resumed_run_of_records_ends_with_the_same_bits(charlm, names):
    options = [
        *("--config", "gpt", "model.n_embd=16", "model.n_layer=2", "model.dropout=0.1", *names),
        *("train.micro_batch_size=4", "train.schedule=constant", "train.warmup_steps=1"),
    ]
    charlm("train", *options, "train.max_steps=30", "--out", "whole")
    charlm("train", *options, "train.max_steps=12", "--out", "parts")

    resumed = charlm("train", "--resume", "--out", "parts", "train.max_steps=30")

    assert resumed.code == 0, resumed.stderr
    whole, parts = (
        Path(run, "checkpoints", "step-30", "model.safetensors").read_bytes()
        for run in ("whole", "parts")
    )
    assert whole == parts


def test_an_old_text_without_records_is_untouched(charlm, names):
    result = charlm("train", *MODELS["bigram"], "data.source=names.txt", "--out", "run")

    assert result.code == 0
    assert "boundary" not in json.loads(Path("run/tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("\n\n\n", "no records in it"),
        ("one\n", "1 record, and its parts need 2"),
        ("a\U0010ffffb\nc\n", "U+10FFFF"),
    ],
)
def test_what_is_no_list_is_one_line(refused, names, content, message):
    Path("names.txt").write_text(content)

    (line,) = refused(3, "train", "--config", "bigram", *names)

    assert message in line


@pytest.mark.parametrize(
    "content", ["a\nb\n", "a\nbb\nccc\n", "x" * 3000 + "\ny\nz\n", "same\n" * 40 + "other\n"]
)
@pytest.mark.parametrize("kind", ["bigram", "ngram", "gpt"])
def test_small_and_odd_lists_are_learned(charlm, names, content, kind):
    Path("names.txt").write_text(content)
    own = ["--config", "ngram", "model.order=2"] if kind == "ngram" else MODELS[kind]

    result = charlm("train", *own, *names, "--out", "run")

    assert result.code == 0, result.stderr
    assert charlm("eval", "run").code == 0


def test_a_run_of_records_compresses_no_file(charlm, names):
    charlm("train", *MODELS["ngram"], *names, "--out", "run")

    result = charlm("compress", "names.txt", "--run", "run")

    assert result.code == 2
    assert "learned lines" in result.stderr
    assert not Path("names.txt.clm").exists()


def test_records_of_allowed_characters_still_end(charlm, names):
    charlm("train", *MODELS["ngram"], *names, "--out", "run")

    result = charlm("sample", "run", "-n", "20", "--allow", "[a-n]", "--json", "--seed", "1")

    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {one["ended"] for one in found} == {"boundary"}
    assert set("".join(one["text"] for one in found)) <= set("abcdefghijklmn")


@pytest.mark.parametrize("kind", ["log-linear", "bitwise"])
def test_a_mixture_learns_its_weights_on_the_last_record_however_long(charlm, names, kind):
    records = [*NAMES[:8], "annabelin" * 60]
    Path("names.txt").write_text("\n".join(records) + "\n")
    text = [*names[:2], "data.shuffle=false", "data.val_fraction=0.0"]

    result = charlm("train", *MODELS[kind], *text, "--out", "run")

    assert result.code == 0, result.stderr


def test_a_mixture_of_one_record_is_refused(refused, names):
    Path("names.txt").write_text("anna" * 20 + "\nbertha\n")

    (line,) = refused(3, "train", "--config", "mixture", *names)

    assert "needs 2 records to train on" in line


def test_an_expert_that_read_the_list_in_another_order_is_noted(charlm, names):
    charlm("train", *MODELS["ngram"], *names, "data.shuffle_seed=1", "--out", "other")

    Path("joined.yaml").write_text(
        "model:\n  type: mixture\n  combine: log-linear\n  experts:\n"
        "    other: {run: other}\n    own: {model: {type: ngram, order: 2}}\n"
    )
    result = charlm("train", "--config", "joined.yaml", *names, "--out", "run")

    assert "other has read this text in another order" in result.stderr, result.stderr


def test_symbols_are_counted_alike_everywhere(charlm, names):
    count = len(set("".join(NAMES)))
    charlm("train", *MODELS["ngram"], *names, "--out", "run")
    Path("other.txt").write_text("zzz\n")

    planned = charlm("train", *MODELS["ngram"], *names, "--dry-run").stdout
    told = charlm("data", "info", "names.txt", "data.records=lines").stdout
    scored = charlm(
        "baselines", "names.txt", "data.records=lines", "--max-order", 2, "--json"
    ).stdout
    refused = charlm("eval", "run", "--file", "other.txt").error
    explained = charlm("explain", *MODELS["ngram"], *names).stdout

    assert f"; {count} symbols\n" in planned
    assert f"symbols  {count} different characters\n" in told
    assert json.loads(scored)["symbols"] == count
    assert f"not in the alphabet of this run, which has {count} symbols" in refused
    assert f"V = {count + 1} symbols with the end of a record, T" in explained


def test_runs_of_one_text_that_was_read_otherwise_have_titles_of_their_own(charlm, names):
    for out, keys in {
        "lines": [],
        "text": ["data.records=none"],
        "seed": ["data.shuffle_seed=1"],
        "order": ["data.shuffle=false"],
    }.items():
        own = [name for name in names if not any(k.startswith(name.split("=")[0]) for k in keys)]
        result = charlm("train", *MODELS["ngram"], *own, *keys, "--out", f"runs/{out}", "-q")
        assert result.code == 0, result.stderr

    two = charlm("compare", "runs/lines", "runs/text")
    three = charlm("compare", "runs/lines", "runs/seed", "runs/order")

    titles = [[line for line in r.stdout.splitlines() if " scored" in line] for r in (two, three)]
    assert len(set(titles[0])) == 2
    for kind in ("lines", "one text"):
        assert sum(f": val, read as {kind}, " in title for title in titles[0]) == 1
    assert len(set(titles[1])) == 3
    for order in ("shuffled by seed 0", "shuffled by seed 1", "in its own order"):
        assert sum(f": val, {order}, " in title for title in titles[1]) == 1
    assert "note: 3 tables: losses are comparable only within one" in three.stderr
