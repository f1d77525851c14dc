import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from charlm.config import load_config
from charlm.errors import MachineError, Stopped
from charlm.evaluation.scoring import score_windows
from charlm.lifecycle.begin import create_run, prepare_text
from charlm.lifecycle.resume import open_run, resumed_config
from charlm.models import NGramModel, build_model, counts
from charlm.models.smoothing import smooth
from charlm.runs import RunFolder
from charlm.runs.load import load_model
from charlm.text import IdArray
from charlm.training import Job, TrainingLoop, counting
from tests.training.conftest import ignore, timeless


@pytest.fixture
def make_loop(tiny, tmp_path):
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
        model = build_model(config.model, prepared.tokenizer.vocab_size)
        job = Job(config, prepared.run, prepared.corpus, prepared.tokenizer, model, **kwargs)
        return TrainingLoop(job, prepared.checkpoint)

    return make


def same_tables(one, other):
    tables, others = one.state_dict(), other.state_dict()
    return tables.keys() == others.keys() and all(torch.equal(tables[n], others[n]) for n in tables)


def test_a_fit_is_one_step_scored_and_saved_after_it_alone(make_loop):
    loop = make_loop()

    records = list(loop.records())

    kinds = [(r.kind, r.step) for r in records]
    assert kinds == [("train", 1), ("eval", 1), ("save", 1)]
    saved = load_model(RunFolder(loop.run.path))
    for record, part in ((records[0], "train"), (records[1], "val")):
        score = score_windows(saved.model, loop.job.corpus.splits[part], 16)
        assert record.loss_nats == pytest.approx(score.loss_nats)
    assert (saved.step, saved.model.order) == (1, 3)
    assert same_tables(saved.model, loop.learner.model)


@pytest.mark.parametrize("budget", [None, 20_000])
def test_a_stop_is_obeyed_wherever_it_falls_and_the_model_stays_what_it_was(
    make_loop, monkeypatch, budget
):
    loop = make_loop()
    untouched = build_model(loop.config.model, loop.tokenizer.vocab_size)
    monkeypatch.setattr(counts, "BUDGET", budget or counts.BUDGET)

    def fit_until(last):
        polls = iter(range(last))
        counting.count_text(
            loop.learner.model,
            loop.config.model,
            loop.job.corpus.splits["train"],
            loop.run,
            lambda: next(polls, None) is None,
        )

    for last in range(14 if budget else 6):  # fewer times than a fit asks
        with pytest.raises(Stopped):
            fit_until(last)
        assert not list(loop.run.path.glob(".tmp-*"))
        assert same_tables(loop.learner.model, untouched)
    fit_until(1000)
    assert not same_tables(loop.learner.model, untouched)


def test_a_stopped_fit_resumes_to_the_same_tables_and_records(make_loop):
    straight = make_loop(out="straight")
    list(straight.records())
    asked = iter(range(6))
    stopped = make_loop(should_stop=lambda: next(asked, None) is None)
    list(stopped.records())
    assert (stopped.stopped, stopped.state.step) == (True, 0)

    resumed = make_loop(resume=True)
    list(resumed.records())

    assert same_tables(resumed.learner.model, straight.learner.model)
    assert timeless(resumed.run.metrics_path) == timeless(straight.run.metrics_path)


def test_a_finished_fit_that_is_resumed_has_nothing_left_to_do(make_loop):
    first = make_loop()
    list(first.records())

    again = make_loop(resume=True)

    assert list(again.records()) == []
    assert same_tables(again.learner.model, first.learner.model)


@pytest.mark.parametrize("where", ["posix_fallocate", "tables"])
def test_what_does_not_fit_is_one_line_and_leaves_no_scratch(make_loop, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    loop = make_loop()
    if where == "tables":
        monkeypatch.setattr(counting, "machine_bytes", lambda: 1000)
        message = "model.order: the tables up to order 2 need .* lower model.order, or leave rare"
    else:
        monkeypatch.setattr(counts, "BUDGET", 1000)
        monkeypatch.setattr(os, "posix_fallocate", full)
        message = "No space left on device; free some space there or choose another place"

    with pytest.raises(MachineError, match=message):
        list(loop.records())

    assert not list(loop.run.path.glob(".tmp-*"))
    assert same_tables(
        loop.learner.model, build_model(loop.config.model, loop.tokenizer.vocab_size)
    )


def test_counting_on_disk_gives_the_same_tables(make_loop, monkeypatch):
    def watched(counts, *arguments, **options):
        folders.append(counts.scratch)
        return smooth(counts, *arguments, **options)

    folders = []
    monkeypatch.setattr(counting, "smooth", watched)
    whole, parts = make_loop(), make_loop(out="parts")
    list(whole.records())
    monkeypatch.setattr(counts, "BUDGET", 1000)
    list(parts.records())

    assert folders[0] is None
    assert folders[1].parent == parts.run.path
    assert same_tables(whole.learner.model, parts.learner.model)


def test_last_chars_counts_the_end_of_the_training_part_alone(make_loop, monkeypatch):
    loop = make_loop("model.last_chars=40", "model.smoothing=add-k", "model.order=2")
    clock = iter(range(0, 1000, 8))
    monkeypatch.setattr(counting.time, "perf_counter", lambda: next(clock))
    records = {record.kind: record for record in loop.records()}
    train = loop.job.corpus.splits["train"]
    ids = train.read(len(train) - 40, 40)

    expected = NGramModel(loop.tokenizer.vocab_size, 16, 2, backs_off=False)
    counted = counts.count_ngrams(IdArray(ids), expected.vocab_size, 2)
    expected.set_tables(smooth(counted, "add-k", k=1.0))

    assert same_tables(loop.learner.model, expected)
    assert records["train"].chars_per_second == 40 / 8  # one tick of the clock before, one after


def test_what_is_not_fitted_is_never_the_best(make_loop):
    letters = np.random.default_rng(0).choice(list("abcdefgh"), 500)
    Path("text.txt").write_text("".join(letters))  # nothing in it is worth counting
    loop = make_loop("model.smoothing=add-k", "model.add_k=1e-6", "model.order=9")

    list(loop.records())

    assert loop.state.val_loss_nats > math.log(loop.tokenizer.vocab_size)
    assert loop.run.checkpoints.choose("best").step == 1
