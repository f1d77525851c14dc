"""A mixer of contexts is trained, saved, scored, sampled and joined like every other."""

import json
from pathlib import Path

import pytest

CONTEXT = """\
data: {source: text.txt}
model: {type: context-mixing, block_size: 32, contexts: ["1", 1 2, word word-1]}
run: {device: cpu, out: runs/context}
"""
MIXED = """\
data: {source: text.txt}
model:
  type: mixture
  block_size: 16
  experts:
    ngram: {model: {type: ngram, order: 3}}
    words: {model: {type: context-mixing, contexts: ["1", word word-1]}}
run: {device: cpu, out: runs/mixed}
"""


def evaluated(charlm, *options):
    return json.loads(charlm("eval", "--json", *options).stdout)


def test_every_command_takes_it(charlm, tiny):
    Path("context.yaml").write_text(CONTEXT)

    assert charlm("train", "-c", "context.yaml", "-q").code == 0
    windows, adaptive = (evaluated(charlm, "--protocol", p) for p in ("windows", "adaptive"))

    records = map(json.loads, Path("runs/context/metrics.jsonl").read_text().splitlines())
    (reported,) = [one["loss_nats"] for one in records if one["kind"] == "eval"]
    assert windows["loss_nats"] == pytest.approx(reported, abs=1e-6)
    assert adaptive["learned"] == ["counts"]
    assert adaptive["chars"] == windows["chars"]
    sample = charlm("sample", "-p", "the ", "-n", 2, "--max-new-chars", 40, "--json")
    assert [len(json.loads(line)["text"]) for line in sample.stdout.splitlines()] == [44, 44]
    assert "word word-1" in charlm("explain", "-c", "context.yaml").stdout
    assert charlm("compare").code == charlm("verify").code == 0


def test_it_is_an_expert_of_a_mixture(charlm, tiny):
    Path("mixed.yaml").write_text(MIXED)

    assert charlm("train", "-c", "mixed.yaml", "-q").code == 0

    assert evaluated(charlm)["loss_nats"] < 1.5
    assert charlm("sample", "-p", "the ", "--max-new-chars", 20).code == 0


def test_what_is_joined_bit_by_bit_shows_no_fixed_weights(charlm, tiny):
    Path("mixed.yaml").write_text(MIXED)

    said = charlm(
        "train", "-c", "mixed.yaml", "model.combine=bitwise", "eval.baselines=false"
    ).stderr

    assert "at the end of the training part, each scored before it was learned from" in said
    assert "alone  ngram" in said
    assert "weight" not in said


@pytest.mark.parametrize(
    ("looks_at", "said"),
    [
        ("1 33", "unknown part '33'; use numbers from 1 to 32, and word, word-1"),
        ("words", "unknown part 'words'"),
        ("", "expected 1 to 32 parts, got 0"),
        ("1 " * 33, "expected 1 to 32 parts, got 33"),
    ],
)
def test_parts_that_there_are_not_are_refused(charlm, tiny, looks_at, said):
    Path("context.yaml").write_text(CONTEXT)

    result = charlm("train", "-c", "context.yaml", f"model.contexts=word;{looks_at}")

    assert (result.code, result.stdout) == (2, "")
    assert said in result.error
