"""A surprise map says what `charlm eval --per-char` says."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from charlm.errors import DataError
from charlm.evaluation.given import open_part
from charlm.reporting.glyphs import Glyphs
from charlm.reporting.opened import open_run
from charlm.reporting.passage import passage_from, passage_of, predictions
from charlm.runs import RunFolder
from tests.reporting.conftest import KINDS, each


@pytest.mark.parametrize("name", each(*(name for name in KINDS if name != "unscored")))
@pytest.mark.parametrize("length", [40, pytest.param(100_000, marks=pytest.mark.slow)])
def test_bits_and_likeliest_are_those_of_eval(charlm, runs, opened, name, length):
    run = opened(name)
    passage = passage_of(run, length)

    whole = next(predictions(run.model, passage, name))

    assert charlm("eval", runs(name), "--per-char", "each.jsonl", "--device", "cpu").code == 0
    rows = [json.loads(line) for line in Path("each.jsonl").read_text().splitlines()]
    shown = [symbol for symbol, _, _ in passage.symbols(Glyphs(run.tokenizer))]
    assert len(whole.bits) == len(shown) - 1
    assert len(whole.bits) == len(rows) if length > len(rows) else len(whole.bits) >= length
    key = "byte" if name == "bytes" else "char"
    for i, row in enumerate(rows[: len(whole.bits)]):
        seen = run.tokenizer.encode(shown[i + 1]).tolist()[0] if name == "bytes" else shown[i + 1]
        assert row["position"] == i + 1
        assert row[key] == seen
        assert row["bits"] == pytest.approx(whole.bits[i], abs=1e-4)
        assert [p for _, p in row["likeliest"]] == pytest.approx(whole.p[i], abs=1e-4)
        best = whole.ids[i][0]
        assert row["likeliest"][0][0] == (best if name == "bytes" else run.tokenizer.decode([best]))


def test_without_a_validation_part_the_training_part_is_shown(opened):
    passage = passage_of(opened("unscored"), 50)

    assert passage.whence == "the training text"
    assert passage.shown == 51


@pytest.mark.parametrize("name", each("linear", "bitwise"))
def test_each_expert_predicts_as_its_mixture_uses_it(opened, name):
    run = opened(name)
    passage = passage_of(run, 60)  # in windows of 24, longer than the block of the GPT

    whole, *experts = predictions(run.model, passage, "mixture")

    assert [one.name for one in experts] == ["gpt", "counts"]
    ids = torch.from_numpy(passage.ids.ids)
    for one in experts:
        for first in range(0, 60, 24):
            x, y = ids[first : min(first + 24, 60)], ids[first + 1 : min(first + 24, 60) + 1]
            with torch.no_grad():
                log_p = run.model.experts[one.name].read(x[None])[0].log_softmax(dim=-1)
            bits = -log_p[torch.arange(len(y)), y] / math.log(2)
            np.testing.assert_allclose(one.bits[first : first + 24], bits, atol=1e-4)
    if name == "linear":  # with temperature t, p is proportional to (the weighted mean) ^ (1 / t)
        weights, temperature = run.model.weights.tolist(), float(run.model.temperature)
        x, y = ids[:24], ids[1:25]
        with torch.no_grad():
            each = [e.read(x[None])[0].softmax(dim=-1) for e in run.model.experts.values()]
        mean = sum(w * p for w, p in zip(weights, each, strict=True)) ** (1 / temperature)
        p = (mean / mean.sum(dim=-1, keepdim=True))[torch.arange(24), y]
        np.testing.assert_allclose(whole.bits[:24], -p.log2(), atol=1e-3)


def test_a_passage_of_records_ends_with_a_record(opened):
    run = opened("records")

    passage = passage_of(run, 20)

    ids, boundary = passage.ids.ids, run.tokenizer.boundary
    assert ids[0] == ids[-1] == boundary
    assert passage.shown == len(ids)
    part = open_part(run.run, "val")[0]
    np.testing.assert_array_equal(ids, part.read(0, len(ids)))
    assert not (ids[21:-1] == boundary).any()


def test_a_long_record_is_cut_and_has_no_end(charlm):
    Path("long.txt").write_text("\n".join(c * 300 for c in "abcdefghij"))
    keys = ["data.source=long.txt", "data.records=lines", "data.val_fraction=0.3", "--out", "long"]
    assert charlm("train", "--config", "bigram", "train.max_steps=2", *keys, "-q").code == 0
    run = open_run(RunFolder(Path("long")), "cpu")

    passage = passage_of(run, 50)
    whole = next(predictions(run.model, passage, "long"))

    assert passage.shown == 51
    assert len(whole.bits) == 50
    symbols = [one for one, _, _ in passage.symbols(Glyphs(run.tokenizer))]
    assert symbols[0] == "\U0010ffff"
    assert len(set(symbols[1:])) == 1


def test_a_given_text_is_scored_from_its_second_symbol(charlm, runs, opened):
    Path("given.txt").write_text("the lazy dog jumps.")
    run = opened("gpt")

    found = next(predictions(run.model, passage_from(run, "the lazy dog jumps."), "gpt"))

    scored = ("eval", runs("gpt"), "--file", "given.txt", "--per-char", "-", "--device", "cpu")
    rows = [json.loads(line) for line in charlm(*scored).stdout.splitlines()]
    assert found.bits == pytest.approx([row["bits"] for row in rows], abs=1e-4)


def test_lines_of_a_given_text_are_records(opened):
    run = opened("records")

    passage = passage_from(run, "anna\nbelin")

    symbols = [one for one, _, _ in passage.symbols(Glyphs(run.tokenizer))]
    assert "".join(symbols) == "\U0010ffffanna\U0010ffffbelin\U0010ffff"
    assert len(next(predictions(run.model, passage, "x")).bits) == 11


def test_rare_characters_are_shown_as_themselves(opened):
    run = opened("rare")
    glyphs = Glyphs(run.tokenizer)

    given = [*passage_from(run, "a☃b♞").symbols(glyphs)]

    assert [symbol for symbol, _, _ in given] == ["a", "☃", "b", "♞"]
    assert given[3][2] == "U+265E black chess knight, which is rare"


@pytest.mark.parametrize(
    ("text", "message"), [("a", "1 symbol"), ("", "0 symbols"), ("a☃", "2603")]
)
def test_a_given_text_that_cannot_be_scored_is_refused(opened, text, message):
    with pytest.raises(DataError, match=f"passage: .*{message}"):
        passage_from(opened("gpt"), text)
