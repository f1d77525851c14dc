"""The loss of rare characters: the model's nats for the escape, and a uniform code for which it is."""

import math

import numpy as np
import pytest
import torch

from charlm.evaluation import climb, score_text, score_windows
from charlm.evaluation.protocols import sliding, windows
from charlm.evaluation.scoring import utf8_lengths
from charlm.evaluation.unknown import (
    escape_nats,
    mean_escape_nats,
    uniform_nats,
    uniform_on,
    with_escapes,
)
from charlm.models import next_token_loss
from charlm.text import CharTokenizer, IdArray
from tests.evaluation.fakes import Window, one_by_one
from tests.text.test_corpus import make_corpus

CODE_POINTS = 0x110000
RNG = np.random.default_rng(0)
TEXT = "".join(RNG.permutation([*"abcde" * 12, *"é☃😀ñ"]))


def of_text(folder, text=TEXT, **keys):
    corpus, tokenizer = make_corpus(folder, text.encode(), val_fraction=0, min_count=2, **keys)
    return corpus.splits["train"], tokenizer


def test_the_code_lengths_of_all_continuations_sum_to_one():
    """Kraft: each code point that may follow, and the end of a record, is counted once."""
    tokenizer = CharTokenizer("abcde", boundary=True, escape=True)
    V, context = tokenizer.vocab_size, [0, 3, tokenizer.escape, 1]
    model, total = Window(vocab_size=V), 0.0
    for following in range(V):
        ids = IdArray(np.array([*context, following]), escape=tokenizer.escape)
        heard = []
        score_text(model, ids, windows(12), each=heard.append)
        ways = CODE_POINTS - V if following == tokenizer.escape else 1
        total += ways * math.exp(-heard[0].nats[-1])

    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("cut", [windows(12), windows(5), sliding(12, 3)])
def test_each_rare_character_costs_its_code_point_too(tmp_path, cut):
    ids, tokenizer = of_text(tmp_path / "t")
    text, model, heard = ids.read(0, len(ids)), Window(vocab_size=6), []

    score = score_text(model, ids, cut, byte_lengths=utf8_lengths(tokenizer), each=heard.append)

    if cut.name == "windows":
        slow = one_by_one(model, text, lambda i: (i - 1) // cut.length * cut.length)
    else:
        slow = one_by_one(model, text, lambda i: max(0, -(-(i - 12) // 3) * 3) if i > 12 else 0)
    slow += (text[1:] == 5) * math.log(CODE_POINTS - 6)
    records = [one for some in heard for one in some.records(tokenizer, tokenizer)]
    assert score.loss_nats == pytest.approx(slow.mean(), abs=1e-6)
    assert [one["bits"] for one in records] == pytest.approx(slow / math.log(2), abs=1e-4)
    assert "".join(one["char"] for one in records) == TEXT[1:]
    assert score.bytes == len(TEXT[1:].encode())
    assert score.escapes == sum(c not in "abcde" for c in TEXT[1:])


def test_training_reports_the_same_loss(tmp_path):
    ids, _ = of_text(tmp_path / "t")
    model = Window(vocab_size=6)

    score = score_windows(model, ids, 12)

    assert score.loss_nats == pytest.approx(score_text(model, ids, windows(12)).loss_nats)
    assert score.escapes == score_text(model, ids, windows(12)).escapes > 0


def test_records_cost_the_same(tmp_path):
    names = "\n".join(TEXT[i : i + 4] for i in range(0, len(TEXT), 4))
    ids, tokenizer = of_text(tmp_path / "t", names, records="lines")
    text, model, heard = ids.read(0, len(ids)), Window(vocab_size=7), []

    score = score_text(
        model, ids, windows(12), byte_lengths=utf8_lengths(tokenizer), each=heard.append
    )

    starts = np.flatnonzero(text == tokenizer.boundary)
    slow = one_by_one(model, text, lambda i: starts[np.searchsorted(starts, i) - 1])
    slow += (text[1:] == tokenizer.escape) * math.log(CODE_POINTS - 7)
    assert score.loss_nats == pytest.approx(slow.mean(), abs=1e-6)
    assert score_windows(model, ids, 12).loss_nats == pytest.approx(score.loss_nats)
    assert score.bytes == len(names.encode()) + 1
    chars = [one["char"] for some in heard for one in some.records(tokenizer, tokenizer)]
    assert sorted("".join(chars).split("\U0010ffff")[:-1]) == sorted(names.split("\n"))


def test_baselines_cost_the_same(tmp_path):
    text = "".join(RNG.permutation([*"abcde" * 500, *"é☃😀ñ" * 5, *"ßøłþ"]))
    plain, its = make_corpus(tmp_path / "plain", text.encode(), val_fraction=0.5)
    corpus, tokenizer = make_corpus(tmp_path / "t", text.encode(), val_fraction=0.5, min_count=9)
    train, val = corpus.splits["train"], corpus.splits["val"]
    V, ids = tokenizer.vocab_size, val.read(0, len(val))

    ladder = climb(train, val, tokenizer)

    arrays = (IdArray(part.read(0, len(part))) for part in (train, val))
    bare = climb(*arrays, CharTokenizer(tokenizer.alphabet))
    share = (ids[1:] == tokenizer.escape).mean()
    wide = climb(plain.splits["train"], plain.splits["val"], its)
    for rung, without, with_all in zip(ladder.rungs, bare.rungs, wide.rungs, strict=True):
        if rung.adaptive:  # compressors read the text itself
            assert rung.score == with_all.score
        else:
            cost = share * math.log(CODE_POINTS - V)
            assert rung.score.loss_nats == pytest.approx(without.score.loss_nats + cost)
            assert rung.score.bytes == with_all.score.bytes
    assert ladder.loss_nats("uniform") == pytest.approx(uniform_on(val, V))


def test_guessing_by_hand():
    assert uniform_nats(6) == math.log(6)
    assert uniform_nats(6, 3, 30) == pytest.approx(math.log(6) + 0.1 * math.log(1_114_106))
    assert escape_nats(6) == math.log(1_114_106)


def test_what_escapes_add_by_hand():
    ids = IdArray(np.array([5, 1, 5, 2, 5]), escape=5)

    assert mean_escape_nats(ids, 6) == pytest.approx(0.5 * math.log(1_114_106))
    assert mean_escape_nats(IdArray(ids.ids), 6) == 0


def test_without_an_escape_nothing_is_added():
    nats = np.ones(3)

    assert with_escapes(nats, np.arange(3), None, 3) is nats


def test_the_loss_of_a_training_step_counts_them(tmp_path, tiny):
    from charlm.config import load_config
    from charlm.lifecycle.begin import create_run, prepare_text
    from charlm.models import build_model
    from charlm.training import Job, TrainingLoop

    (tmp_path / "text.txt").write_text(TEXT * 20)
    config = load_config("tiny.yaml", ["data.min_count=30", "train.micro_batch_size=2"])
    text = prepare_text(config, lambda *_: None, lambda *_: None)
    (tmp_path / "run").mkdir()
    made = create_run(config, tmp_path / "run", text, lambda *_: None)
    model = build_model(config.model, made.tokenizer.vocab_size, 0)
    learner = TrainingLoop(Job(made.config, made.run, made.corpus, made.tokenizer, model)).learner
    V, escape = made.tokenizer.vocab_size, made.tokenizer.escape
    met = 0
    for step in range(20):
        x, y = map(torch.from_numpy, learner.batches.get(step))
        learner.state.step, met = step, met + int((y == escape).sum())
        expected = next_token_loss(learner.model(x), y).item()
        expected += (y == escape).double().mean().item() * math.log(CODE_POINTS - V)

        assert learner.gradients()[0] == pytest.approx(expected, abs=1e-4)
    assert met > 20
