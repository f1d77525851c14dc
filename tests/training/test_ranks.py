"""What several processes decide together, with the others played by the test."""

import numpy as np
import pytest

from charlm.errors import Stopped
from charlm.evaluation import score_windows
from charlm.evaluation.scoring import score_of_passes, sums_of_passes
from charlm.training.ranks import ONE, Met, Ranks, in_turn
from charlm.training.schedule import learning_rate


class Second(Ranks):
    """The second of two processes: the first tells it the time, and has the same gradients."""

    rank, size = 1, 2

    def __init__(self, shares, stop_at=-1):
        self.shares, self.stop_at, self.met = shares, stop_at, 0

    def meet(self, stop, save, spent, share):
        share = self.shares[self.met]
        self.met += 1
        return Met(self.met == self.stop_at, save, share, share)

    def first_does(self, work):
        return None

    def rows(self, own):
        return [own, own]


def test_the_clock_of_the_first_process_counts_for_all(make_loop):
    shares = [0.25, 0.5, 0.75, 1.0]
    keys = ("train.minutes=1000", "train.micro_batch_size=1", "train.warmup_steps=0")
    loop = make_loop(*keys, ranks=Second(shares))

    records = list(loop.records())

    steps = [record for record in records if record.kind == "train"]
    rates = [learning_rate(loop.config.train, i, share) for i, share in enumerate(shares[:-1])]
    assert [step.learning_rate for step in steps] == rates
    assert not loop.stopped


def test_a_process_that_was_not_asked_stops_with_another(make_loop):
    loop = make_loop("train.micro_batch_size=1", ranks=Second([0.0] * 9, stop_at=3))

    list(loop.records())

    assert loop.stopped
    assert loop.state.step == 2


def test_only_the_first_process_writes(make_loop):
    loop = make_loop(
        "train.micro_batch_size=1",
        "train.save_every=1",
        "train.sample_every=1",
        ranks=Second([i / 6 for i in range(7)]),
    )
    before = sorted(loop.run.path.rglob("*"))

    list(loop.records())

    assert loop.state.step == 6
    assert sorted(loop.run.path.rglob("*")) == before


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("records", [(), ("data.records=lines",)])
def test_a_shared_evaluation_has_the_loss_of_one_process(make_loop, monkeypatch, size, records):
    monkeypatch.setattr("charlm.evaluation.protocols.CHARS_ON_CPU", 24)
    monkeypatch.setattr("charlm.evaluation.records.SYMBOLS", 200)
    loop = make_loop("data.val_fraction=0.3", *records)
    model, val = loop.learner.model, loop.job.corpus.splits["val"]

    alone = score_windows(model, val, 8, max_chars=500)
    shares = [sums_of_passes(model, val, 8, max_chars=500, share=(k, size)) for k in range(size)]

    assert score_of_passes(in_turn(shares)) == alone
    assert all(0 < len(share) < 100 for share in shares)


def test_a_process_alone_stops_where_it_is_asked_to():
    with pytest.raises(Stopped):
        ONE.rows(None)


def test_rows_are_put_back_in_turn():
    parts = [np.array([[0.0], [3.0]]), np.array([[1.0], [4.0]]), np.array([[2.0]])]

    assert in_turn(parts)[:, 0].tolist() == [0, 1, 2, 3, 4]
