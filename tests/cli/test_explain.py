from pathlib import Path

import pytest
import torch

from charlm.config import load_config, preset_names
from charlm.config.memory import human_bytes
from charlm.config.size import checkpoint_bytes
from charlm.models import build_model
from tests.conftest import TEXT

WITH_WEIGHTS = [n for n in preset_names() if load_config(n).model.trained_by == "gradients"]
MIXTURE = """\
data: {source: text.txt}
model:
  type: mixture
  experts:
    counts: {model: {type: ngram, order: 3, last_chars: 100}}
    old: {run: runs/old}
    known: {run: runs/known, model: {type: ngram}}
    gpt:
      model: {type: gpt, block_size: 8, n_layer: 1, n_embd: 16}
      train: {batch_size: 5, max_steps: 700}
"""


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_every_preset_with_weights_is_explained_with_its_parameters(charlm, name):
    result = charlm("explain", "--config", name, "--vocab-size", 65)

    total = next(line for line in result.stdout.splitlines() if line.split()[:1] == ["total"])
    assert (result.code, result.stderr) == (0, "")
    assert total.split()[1] == f"{load_config(name).model.parameter_count(65):,}"


def test_shapes_follow_the_configuration(charlm, tiny):
    result = charlm("explain", "--config", "tiny.yaml", "train.micro_batch_size=2")

    assert "gpt: V = 31 symbols, T = 8" in result.stdout
    shapes = {line.rsplit("(", 1)[-1] for line in result.stdout.splitlines()}
    assert {"2, 8)", "2, 8, 16)", "2, 2, 8, 8)", "2, 8, 31)", "16, 31)"} <= shapes


def test_symbols_are_counted_in_the_text(charlm, tiny, tmp_path):
    (tmp_path / "text.txt").write_text("abcabc")

    assert "V = 3 symbols" in charlm("explain", "--config", "tiny.yaml").stdout
    assert "V = 256 symbols" in charlm("explain", "-c", "tiny.yaml", "data.unit=bytes").stdout


@pytest.mark.parametrize("source", ["shakespeare", "nope.txt", "-"])
def test_a_text_that_is_not_here_is_assumed_with_a_note(charlm, tiny, source):
    result = charlm("explain", "--config", "tiny.yaml", f"data.source={source}")

    assert result.code == 0
    assert "V = 65 symbols" in result.stdout
    assert result.stderr.startswith(f"charlm: note: {source}")
    assert result.stderr.endswith("assuming 65 symbols\n")


def test_the_largest_sizes_are_explained_too(charlm, tiny):
    keys = ("model.n_layer", "model.block_size", "train.batch_size", "train.max_steps")

    result = charlm(
        "explain", "-c", "tiny.yaml", *(f"{key}={10**12}" for key in keys), f"model.n_embd={10**12}"
    )

    assert result.code == 0
    assert "EFLOP" in result.stdout
    assert "EiB" in result.stdout


def facts(stdout):
    """Read the rows of two columns."""
    rows = [line[2:].split("  ", 1) for line in stdout.splitlines() if line.startswith("  ")]
    return {name: value.strip() for name, value in rows}


def test_an_ngram_is_explained_by_its_orders_and_tables(charlm, tiny):
    keys = "data.source=text.txt", "model.order=7", "model.min_count=2"
    result = charlm("explain", "-c", "ngram", *keys)

    chars = len(TEXT) - int(len(TEXT) / 10)
    assert facts(result.stdout) == {
        "order": "7: the next character and at most 6 before it",
        "smoothing": "kneser-ney",
        "counted": f"the training part, {chars:,} characters",
        "left out": "n-grams that occur fewer than 2 times",
        "to score a character": "11 binary searches at most",
    }
    size = human_bytes(load_config("ngram", ["model.order=7"]).model.table_bytes(31, chars))
    assert result.stdout.startswith("ngram: V = 31 symbols, T = 256\n")
    assert result.stdout.endswith(
        f"\ntraining: counted in one step, no gradients\ntables on disk: at most {size}\n"
    )


def test_what_is_said_of_an_ngram_follows_its_keys(charlm):
    keys = "model.order=1", "model.smoothing=add-k", "model.add_k=0.5"
    result = charlm("explain", "-c", "ngram", *keys, "--vocab-size", 5)
    keys = "model.order=7", "model.last_chars=100"
    last = charlm("explain", "-c", "ngram", *keys, "--vocab-size", 5)

    found = facts(result.stdout)
    assert found["order"] == "1: the next character alone"
    assert found["smoothing"] == "add-k, 0.5 to every count"
    assert (found["counted"], found["to score a character"]) == (
        "the training part",
        "0 binary searches at most",
    )
    assert result.stdout.endswith("tables on disk: at most 24 bytes for each n-gram that occurs\n")
    assert facts(last.stdout)["counted"] == "the last 100 characters of the training part"
    assert last.stdout.endswith("tables on disk: at most 10.87 KiB\n")  # 5 + 25 + 5 * 100 of them
    assert "FLOP" not in result.stdout


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_look_ups_of_an_ngram_are_those_of_the_model(charlm, monkeypatch, order):
    config = load_config("ngram", [f"model.order={order}"])
    model, calls = build_model(config.model, 5), []
    find = model._find
    monkeypatch.setattr(model, "_find", lambda k, keys: calls.append(k) or find(k, keys))
    idx = torch.zeros(1, 9, dtype=torch.int64)

    model.log_probability(idx, idx)

    said = charlm("explain", "-c", "ngram", f"model.order={order}", "--vocab-size", 5).stdout
    assert facts(said)["to score a character"] == f"{len(calls)} binary searches at most"


def test_a_mixture_is_explained_expert_by_expert(charlm, tiny):
    Path("mixture.yaml").write_text(MIXTURE)

    result = charlm("explain", "-c", "mixture.yaml")

    assert (result.code, result.stderr) == (0, "")
    config = load_config("mixture.yaml")
    chars = len(TEXT) - int(len(TEXT) / 10)
    heading, experts, counts, table, *rest = result.stdout.split("\n\n")
    assert heading == "mixture: V = 31 symbols, T = 256"
    assert experts.startswith("experts, joined log-linear\n")
    assert facts(experts) == {
        "counts": "ngram, counted here",
        "old": "from runs/old: charlm explain -c runs/old/config.yaml",
        "known": "from runs/known: charlm explain -c runs/known/config.yaml",
        "gpt": "gpt, trained here",
        "weights": "4 and a temperature, fitted on the last 10 % of the training part, "
        f"{int(chars / 10)} characters",
    }
    assert counts == "counts: ngram"
    assert facts(table)["counted"] == "the last 100 characters of the training part"
    alone = "\n\n".join(rest[1:])
    assert rest[1] == "gpt: gpt"
    assert "  idx (B, T)                      (5, 8)\n" in alone
    assert "\nwhole run: 700 steps, " in alone
    count = config.model.parameter_count(31)
    size = human_bytes(checkpoint_bytes(config, 31, chars))
    assert result.stdout.endswith(
        f"\nin all: {count:,} parameters, without those of runs\n"
        f"checkpoints on disk, including the experts': {size}\n"
    )


def test_the_experts_of_a_mixture_share_its_minutes(charlm):
    result = charlm("explain", "-c", "mixture", "train.minutes=3", "--vocab-size", 5)

    planned = "train.plan chooses the size for the budget"
    clock = f"whole run: its share of 3 minutes of wall time; {planned}\n"
    assert result.stdout.count(clock) == 1
    assert result.stdout.endswith(", and tables: at most 24 bytes for each n-gram that occurs\n")


def test_bytes_are_read_for_the_sake_of_tables_alone(charlm, tiny):
    counted = charlm("explain", "-c", "ngram", "data.source=text.txt", "data.unit=bytes")
    trained = charlm("explain", "-c", "bigram", "data.source=none.txt", "data.unit=bytes")
    missing = charlm("explain", "-c", "ngram", "data.source=none.txt", "data.unit=bytes")

    chars = len(TEXT) - int(len(TEXT) / 10)
    assert facts(counted.stdout)["counted"] == f"the training part, {chars:,} bytes"
    assert trained.stderr == ""
    assert missing.stderr.endswith("; assuming 256 symbols\n")
    for result in (counted, trained, missing):
        assert "V = 256 symbols" in result.stdout


@pytest.mark.parametrize("size", [0, 2**21 + 1, "many"])
def test_a_vocabulary_is_at_most_all_of_unicode(charlm, size):
    result = charlm("explain", "--config", "gpt", "--vocab-size", size)

    assert (result.code, result.stdout) == (2, "")
    assert "--vocab-size " in result.error


def test_a_configuration_is_asked_for(charlm):
    result = charlm("explain")

    assert result.code == 2
    assert result.error == (
        "--config: missing; name a YAML file or a preset, such as quickstart or gpt "
        "(charlm config list)"
    )


def test_a_run_by_the_clock_has_no_number_of_steps(charlm, tiny):
    result = charlm("explain", "-c", "tiny.yaml", "train.minutes=2.5")

    assert "whole run: 2.5 minutes of wall time" in result.stdout
