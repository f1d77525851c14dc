import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from charlm.evaluation.score import Tally
from charlm.evaluation.scoring import Surprisals
from charlm.reporting.breakdown import Scored
from charlm.reporting.comparing import compare, difference_of, same_text
from charlm.reporting.opened import open_run
from charlm.runs import RunFolder
from charlm.text import IdArray


@pytest.fixture
def opened(trained):
    return open_run(RunFolder(trained), "cpu")


def worse(opened, trained, name, noise):
    """Return a copy of a run whose weights are disturbed."""
    copy = trained.with_name(name)
    if not copy.exists():
        shutil.copytree(trained, copy)
    other = open_run(RunFolder(copy), "cpu", name)
    object.__setattr__(other, "corpus", opened.corpus)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return other


def scored(nats):
    none = np.zeros(len(nats), np.int64)
    return Scored(8, Surprisals(nats, none, none, none))


@pytest.fixture
def hard():
    """Surprisals of a long text with hard and easy passages."""
    generator = np.random.default_rng(2)
    return np.repeat(generator.gamma(2, 1, 300), 100) * generator.random(30_000)


def test_a_run_does_not_differ_from_its_copy(opened, hard):
    found = difference_of(scored(hard), scored(hard.copy()), opened)

    assert found.nats == 0
    assert (found.interval.low, found.interval.high) == (0, 0)


def test_a_difference_is_that_of_the_means_and_more_certain_than_either(opened, hard):
    better = hard * 0.98 + 0.01 * np.random.default_rng(3).random(len(hard))

    found = difference_of(scored(better), scored(hard), opened)

    assert found.nats == pytest.approx(better.mean() - hard.mean())
    assert found.interval.low < found.nats < found.interval.high < 0
    tally = Tally(len(hard))
    tally.add(hard)
    alone = tally.interval()
    assert found.interval.high - found.interval.low < 0.1 * (alone.high - alone.low)


def test_records_are_the_blocks_of_a_difference(opened, hard):
    records = IdArray(np.zeros(0, np.int64), boundary=0)
    ends = np.zeros(len(hard), np.int64) + 1
    ends[4::5] = 0
    one, other = (Scored(8, Surprisals(nats, ends, ends, ends)) for nats in (hard, hard + 0.5))
    run = SimpleNamespace(of_records=True, tokenizer=records)

    found = difference_of(other, one, run)

    assert found.nats == pytest.approx(0.5)
    assert found.interval.low == pytest.approx(0.5)


def test_a_short_text_has_a_difference_without_an_interval(opened, trained):
    _, other = compare([opened, worse(opened, trained, "worse", 0.05)])

    assert other.difference.nats > 0
    assert other.difference.interval is None


def test_runs_on_another_part_are_not_compared(opened, trained):
    other = worse(opened, trained, "other", 0.0)
    shorter = opened.corpus.splits["val"].part(0, len(opened.val) - 1)
    splits = {**opened.corpus.splits, "val": shorter}
    object.__setattr__(other, "corpus", type(opened.corpus)(splits, opened.corpus.facts))

    rows = compare([opened, other])

    assert not same_text(opened, other)
    assert rows[1].difference is None
    assert rows[1].loss_nats is not None
