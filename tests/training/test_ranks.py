"""What several processes decide together, with the others played by the test."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from charlm.errors import NonFiniteError, Stopped
from charlm.evaluation import score_windows
from charlm.evaluation.scoring import score_of_passes, sums_of_passes
from charlm.training import saving
from charlm.training.gradients import GradientLearner, _worst_gradients
from charlm.training.ranks import GAVE_UP, HERE, ONE, WRITTEN, Group, LostError, Met, Ranks, in_turn
from charlm.training.schedule import learning_rate
from tests.training.together import in_threads


class Second(Ranks):
    """The second of two processes: the first tells it the time, and has the same gradients."""

    rank, size = 1, 2

    def __init__(self, shares, stop_at=-1):
        self.shares, self.stop_at, self.met, self.prepared = shares, stop_at, 0, 0.125

    def meet(self, stop, save, spent, share):
        share = self.shares[self.met]
        self.met += 1
        return Met(self.met == self.stop_at, save, share, share)

    def told(self, number):
        return self.prepared

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
    told = [loop.ranks.prepared, *shares[1:-1]]  # before the first step, once all are ready for it
    rates = [learning_rate(loop.config.train, i, share) for i, share in enumerate(told)]
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


class Turns:
    """Memory that processes share, which writes down whose turn it is."""

    def __init__(self):
        self.written = []

    def write(self, turn, parts):
        self.written.append(turn)
        return True

    def read(self, rank, turn, size):
        return torch.zeros(size, dtype=torch.uint8)


def test_after_one_gave_up_all_write_to_the_same_file(monkeypatch):
    group, told = Group(HashStore(), 0, 2), [[HERE, 0], [GAVE_UP, 0]]
    group.slots = Turns()
    monkeypatch.setattr(group, "_all", lambda own: torch.tensor(told))

    with pytest.raises(Stopped):
        group.gather([torch.ones(1)])
    with pytest.raises(Stopped):
        group.gather([torch.ones(1)])
    told[:] = [[WRITTEN, 128]] * 2
    for _ in range(3):
        group.gather([torch.ones(1)])

    assert group.slots.written == [1, 1, 1, 0, 1]


class Lost(Ranks):
    """The first of two processes, which loses the other in a step or in a save."""

    size = 2

    def __init__(self, meets):
        self.meets = meets

    def meet(self, stop, save, spent, share):
        if self.meets == 0:
            raise LostError("process 0 of 2", "process 1 ended")
        self.meets -= 1
        return super().meet(stop, save, spent, share)


def test_one_that_has_all_weights_saves_when_another_is_lost(make_loop):
    loop = make_loop("train.micro_batch_size=1", ranks=Lost(4))

    with pytest.raises(LostError, match="process 1 ended; step 4 is saved"):
        list(loop.records())


def test_split_weights_are_not_saved_when_another_is_lost(make_loop, monkeypatch):
    monkeypatch.setattr(GradientLearner, "split", True)
    loop = make_loop("train.micro_batch_size=1", ranks=Lost(4))

    with pytest.raises(LostError, match="process 1 ended; step 3 is saved"):
        list(loop.records())


def test_a_process_that_is_lost_in_a_save_is_no_failed_save(make_loop, monkeypatch):
    loop = make_loop("train.micro_batch_size=1", "train.save_every=1", ranks=Lost(9))
    monkeypatch.setattr(GradientLearner, "split", True)
    save = saving.save_checkpoint

    def write(*arguments):
        if loop.state.step == 3:
            raise LostError("process 0 of 2", "process 1 ended")
        save(*arguments)

    monkeypatch.setattr(saving, "save_checkpoint", write)
    notes = []

    with pytest.raises(LostError, match="process 1 ended; step 2 is saved"):
        notes.extend(r for r in loop.records() if r.kind == "note")

    assert notes == []


def test_a_broken_gradient_is_named_whoever_has_its_rows():
    def named(ranks):
        own = {"a": 2, "b": 2, "c": 2 - 2 * ranks.rank}  # rows; the second has none of c
        parameters = {name: nn.Parameter(torch.zeros(rows, 2)) for name, rows in own.items()}
        for p in parameters.values():
            p.grad = torch.ones_like(p)
        if ranks.rank == 1:
            parameters["b"].grad[0] = float("nan")
        return _worst_gradients(parameters, ranks)

    assert in_threads(2, named) == ["in b", "in b"]


def test_a_broken_weight_is_found_whoever_has_its_rows(make_loop, monkeypatch):
    class One(Ranks):
        """The first of two processes; the weights of the second are not finite."""

        size = 2

        def gather(self, own):
            broken = own[0].clone()
            broken[3] = False
            return [own, [broken]]

    loop = make_loop("train.micro_batch_size=1", ranks=One())
    name = [name for name, _ in loop.learner.model.named_parameters()][3]
    loop._refuse_broken_weights()  # none is split, so all have the same

    monkeypatch.setattr(GradientLearner, "split", True)

    with pytest.raises(NonFiniteError, match=f"{name} became NaN or infinite"):
        loop._refuse_broken_weights()
