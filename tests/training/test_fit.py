import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from charlm.config import load_config
from charlm.errors import MachineError, Stopped
from charlm.lifecycle.begin import create_run, prepare_text
from charlm.lifecycle.resume import open_run, resumed_config
from charlm.models import NGramModel, build_model
from charlm.models import counts as counting
from charlm.models.smoothing import smooth
from charlm.runs import RunFolder
from charlm.runs.weights import load_model
from charlm.text import IdArray
from charlm.training import fit
from charlm.training.fit import Fitter
from tests.training.conftest import ignore, timeless


@pytest.fixture
def make_fitter(tiny, tmp_path):
    """Begin or resume a fit of a trigram to the tiny text."""
    tiny.write_text(
        "data: {source: text.txt}\nmodel: {type: ngram, block_size: 16, order: 3}\n"
        "run: {device: cpu}\n"
    )

    def make(*overrides, out="run", resume=False, **kwargs):
        folder = tmp_path / out
        if resume:
            config = resumed_config(RunFolder(folder), None, overrides)
            prepared = open_run(config, RunFolder(folder), ignore)
        else:
            config = load_config("tiny.yaml", overrides)
            folder.mkdir()
            prepared = create_run(config, folder, prepare_text(config, ignore, ignore), ignore)
        return Fitter(
            config,
            prepared.run,
            prepared.corpus,
            prepared.tokenizer,
            build_model(config.model, prepared.tokenizer.vocab_size),
            checkpoint=prepared.checkpoint,
            **kwargs,
        )

    return make


def same_tables(one, other):
    tables, others = one.state_dict(), other.state_dict()
    return tables.keys() == others.keys() and all(torch.equal(tables[n], others[n]) for n in tables)


def test_a_fit_is_one_step_scored_and_saved_after_it_alone(make_fitter):
    fitter = make_fitter()

    records = list(fitter.records())

    kinds = [(r["kind"], r["step"]) for r in records]
    assert kinds == [("train", 1), ("eval", 1), ("save", 1)]
    assert records[0]["loss_nats"] < records[1]["loss_nats"]
    saved = load_model(RunFolder(fitter.run.path))
    assert (saved.step, saved.model.order) == (1, 3)
    assert same_tables(saved.model, fitter.model)


@pytest.mark.parametrize("budget", [None, 20_000])
def test_a_stop_is_obeyed_wherever_it_falls_and_the_model_stays_what_it_was(
    make_fitter, monkeypatch, budget
):
    fitter = make_fitter()
    untouched = build_model(fitter.asked, fitter.tokenizer.vocab_size)
    monkeypatch.setattr(counting, "BUDGET", budget or counting.BUDGET)

    def fit_until(last):
        asked = iter(range(last))

        def should_stop():
            return next(asked, None) is None

        fit.fit_ngram(fitter.ngram, fitter.asked, fitter.train, fitter.run, should_stop)

    for last in range(14 if budget else 6):  # fewer times than a fit asks
        with pytest.raises(Stopped):
            fit_until(last)
        assert not list(fitter.run.path.glob(".tmp-*"))
        assert same_tables(fitter.model, untouched)
    fit_until(1000)
    assert not same_tables(fitter.model, untouched)


def test_a_stopped_fit_resumes_to_the_same_tables_and_records(make_fitter):
    straight = make_fitter(out="straight")
    list(straight.records())
    asked = iter(range(6))
    stopped = make_fitter(should_stop=lambda: next(asked, None) is None)
    list(stopped.records())
    assert (stopped.stopped, stopped.state.step) == (True, 0)

    resumed = make_fitter(resume=True)
    list(resumed.records())

    assert same_tables(resumed.model, straight.model)
    assert timeless(resumed.run.metrics) == timeless(straight.run.metrics)


def test_a_finished_fit_that_is_resumed_has_nothing_left_to_do(make_fitter):
    first = make_fitter()
    list(first.records())

    again = make_fitter(resume=True)

    assert list(again.records()) == []
    assert same_tables(again.model, first.model)


@pytest.mark.parametrize("where", ["posix_fallocate", "tables"])
def test_what_does_not_fit_is_one_line_and_leaves_no_scratch(make_fitter, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fitter = make_fitter()
    if where == "tables":
        monkeypatch.setattr(fit, "machine_bytes", lambda: 1000)
        message = "model.order: the tables up to order 2 need .* lower model.order, or leave rare"
    else:
        monkeypatch.setattr(counting, "BUDGET", 1000)
        monkeypatch.setattr(os, "posix_fallocate", full)
        message = "No space left on device; free some space there or choose another place"

    with pytest.raises(MachineError, match=message):
        list(fitter.records())

    assert not list(fitter.run.path.glob(".tmp-*"))
    assert same_tables(fitter.model, build_model(fitter.config.model, fitter.tokenizer.vocab_size))


def test_counting_on_disk_gives_the_same_tables(make_fitter, monkeypatch):
    def watched(counts, *arguments, **options):
        folders.append(counts.arrays.folder)
        return smooth(counts, *arguments, **options)

    folders = []
    monkeypatch.setattr(fit, "smooth", watched)
    whole, parts = make_fitter(), make_fitter(out="parts")
    list(whole.records())
    monkeypatch.setattr(counting, "BUDGET", 1000)
    list(parts.records())

    assert folders[0] is None
    assert folders[1].parent == parts.run.path
    assert same_tables(whole.model, parts.model)


def test_last_chars_counts_the_end_of_the_training_part_alone(make_fitter, monkeypatch):
    fitter = make_fitter("model.last_chars=40", "model.smoothing=add-k", "model.order=2")
    clock = iter(range(0, 1000, 8))
    monkeypatch.setattr(fit.time, "perf_counter", lambda: next(clock))
    records = {record["kind"]: record for record in fitter.records()}
    ids = fitter.train.read(len(fitter.train) - 40, 40)

    expected = NGramModel(fitter.tokenizer.vocab_size, 16, 2, backs_off=False)
    counts = counting.count_ngrams(IdArray(ids), expected.vocab_size, 2)
    expected.set_tables(smooth(counts, "add-k", k=1.0))

    assert same_tables(fitter.model, expected)
    assert records["train"]["chars_per_second"] == 40 / 8  # one tick of the clock before, one after


def test_only_a_counted_model_is_fitted(make_fitter):
    fitter = make_fitter()
    fitter.model = torch.nn.Linear(1, 1)

    with pytest.raises(TypeError, match="is trained, not fitted"):
        fitter._prepare()


def test_what_is_not_fitted_is_never_the_best(make_fitter):
    letters = np.random.default_rng(0).choice(list("abcdefgh"), 500)
    Path("text.txt").write_text("".join(letters))  # nothing in it is worth counting
    fitter = make_fitter("model.smoothing=add-k", "model.add_k=1e-6", "model.order=9")

    list(fitter.records())

    assert fitter.state.val_loss_nats > math.log(fitter.tokenizer.vocab_size)
    assert fitter.run.choose("best").step == 1
