"""`model.order: auto`: the order is chosen on the end of what will be counted, and then kept."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from charlm.config import load_config, read_config
from charlm.errors import CheckpointError, Stopped
from charlm.lifecycle.begin import create_run, prepare_text
from charlm.lifecycle.resume import resumed_config
from charlm.models import NGramModel, surprisal
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import smooth
from charlm.runs import RunFolder
from charlm.text.tokens import IdArray

LETTERS = "".join(np.random.default_rng(0).choice([*"abcd"], 3000))
TEXT = "".join(2 * LETTERS[at : at + 6] for at in range(0, 3000, 6))  # each six occur twice


@pytest.fixture
def begin(tmp_path):
    """Begin a run of a text with a model that leaves an order open."""

    def make(model, text=TEXT, should_stop=lambda: False):
        Path("text.txt").write_text(text)
        Path("c.yaml").write_text(f"data: {{source: text.txt}}\nmodel: {model}\n")
        config = load_config("c.yaml")
        prepared = prepare_text(config, print, lambda *_: None)
        Path("run").mkdir(exist_ok=True)
        return create_run(config, Path("run"), prepared, lambda *_: None, should_stop)

    return make


def best_order(train, vocab_size, smoothing="kneser-ney", **options):
    """The order whose model, fitted on nine tenths of these ids, predicts the last tenth best."""
    cut = len(train) - len(train) // 10
    x, y = (torch.from_numpy(train[cut + i : len(train) - 1 + i][None].astype(int)) for i in (0, 1))
    losses = {}
    for order in range(1, 11):
        model = NGramModel(vocab_size, 8, order, backs_off=smoothing != "add-k")
        model.set_tables(
            smooth(count_ngrams(IdArray(train[:cut]), vocab_size, order), smoothing, **options)
        )
        losses[order] = surprisal(model, x, y).double().mean().item()
    return min(losses, key=losses.get)


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ("smoothing: kneser-ney", {}),
        ("smoothing: witten-bell", {"smoothing": "witten-bell"}),
        ("smoothing: add-k, add_k: 0.1", {"smoothing": "add-k", "k": 0.1}),
        ("min_count: 2", {"min_count": 2}),
        ("last_chars: 2000", {}),
    ],
)
def test_the_best_order_on_the_end_of_what_will_be_counted_is_recorded(begin, keys, options):
    prepared = begin(f"{{type: ngram, order: auto, {keys}}}")

    train = prepared.corpus.splits["train"]
    ids = train.read(0, len(train))
    if "last_chars" in keys:
        ids = ids[-2000:]
    order = best_order(ids, prepared.tokenizer.vocab_size, **options)
    written = read_config((prepared.run.path / "config.yaml").read_bytes(), "config.yaml")
    assert written.model.order == prepared.config.model.order == order
    where = f"the last {len(ids) // 10:,} characters of the training part"
    assert prepared.notes == [f"model.order is {order}, the best on {where}"]


def test_validation_text_has_no_part_in_the_choice(begin):
    first = begin("{type: ngram, order: auto}")
    cut = len(first.corpus.splits["train"])
    (first.run.path / "config.yaml").unlink()

    other = begin("{type: ngram, order: auto}", TEXT[:cut] + TEXT[: len(TEXT) - cut])

    assert other.notes == first.notes


def test_an_expert_has_no_look_at_the_characters_that_weights_are_fitted_on(begin):
    prepared = begin("{type: mixture, experts: {a: {model: {type: ngram, order: auto}}, "
                     "b: {model: {type: ngram, order: 2}}}}")  # fmt: skip

    train, tuned = prepared.corpus.splits["train"], 540
    ids = train.read(0, len(train) - tuned)
    order = best_order(ids, prepared.tokenizer.vocab_size)
    experts = prepared.config.model.experts
    assert [experts[name].model.order for name in "ab"] == [order, 2]
    where = f"the training part before the {tuned} that weights are fitted on"
    assert prepared.notes == [
        f"model.experts.a.model.order is {order}, the best on the last 486 characters of {where}"
    ]


def test_a_stop_while_an_order_is_chosen_leaves_nothing(begin):
    asked = []
    begin(
        "{type: ngram, order: auto}", should_stop=lambda: asked.append(1)
    ).run.config_path.unlink()
    assert len(asked) > 20

    for last in range(0, len(asked), 5):
        polls = iter(range(last))
        with pytest.raises(Stopped):
            begin("{type: ngram, order: auto}", should_stop=partial(stops, polls))
        assert list(Path("run").iterdir()) == []


def stops(polls):
    return next(polls, None) is None


@pytest.mark.parametrize("given", [None, "c.yaml"])
def test_a_run_that_is_resumed_keeps_the_order_that_was_chosen(begin, given):
    prepared = begin("{type: ngram, order: auto}")

    for overrides in ([], ["model.order=auto"]):
        assert resumed_config(prepared.run, given, overrides).model == prepared.config.model
    with pytest.raises(CheckpointError, match=r"model\.order: the configuration says 2, "):
        resumed_config(prepared.run, given, ["model.order=2"])


def test_an_order_that_is_still_open_in_a_run_is_refused(begin):
    path = begin("{type: ngram, order: auto}").run.config_path
    order = read_config(path.read_bytes(), "c").model.order
    path.write_text(path.read_text().replace(f"order: {order}\n", "order: auto\n"))

    with pytest.raises(CheckpointError, match=r"config\.yaml: model\.order: auto, where a run has"):
        _ = RunFolder(path.parent).config


def test_the_line_about_the_choice_is_a_note_and_the_run_ends_like_one_of_that_order(charlm, tiny):
    ngram = ("train", "-c", "ngram", "data.source=text.txt", "eval.baselines=false", "run.seed=1")
    chosen = charlm(*ngram, "model.order=auto", "--out", "a")
    order = RunFolder(Path("a")).config.model.order
    fixed = charlm(*ngram, f"model.order={order}", "--out", "b")

    assert (
        f"note: model.order is {order}, the best on the last 232 characters of the" in chosen.stderr
    )
    losses = [charlm("eval", "--run", name, "--json").stdout.replace('"a"', '"b"') for name in "ab"]
    assert losses[0] == losses[1]
    assert charlm("verify", "a").code == fixed.code == 0


def test_a_number_is_needed_to_build_a_model():
    model = load_config("ngram", ["model.order=auto"]).model

    with pytest.raises(ValueError, match="order auto is chosen when a run begins"):
        model.sizes()
