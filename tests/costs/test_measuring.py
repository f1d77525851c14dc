"""What is measured of this machine: which parts there are, and that they add up."""

import itertools
import os
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple

import pytest

from charlm.config import load_config
from charlm.config.cores import own_cores
from charlm.costs import measuring
from charlm.costs.measuring import measured
from charlm.errors import MachineError
from charlm.training.ranks import ONE

SMALL = ("model.n_layer=1", "model.n_embd=16", "model.block_size=16", "train.batch_size=4")


@pytest.fixture
def config():
    return load_config("gpt", SMALL)


def test_times_are_taken_apart_as_a_step_adds_them_up(monkeypatch, config):
    half, two, one, adamw, muon = 3.0, 10.0, 5.5, 0.25, 0.5  # the first round is to warm up
    monkeypatch.setattr(measuring, "_rounds", lambda *_: [(half, two, one, adamw, muon)])
    monkeypatch.setattr(measuring, "load_kernels", lambda _: [])

    found = measured(config, 65, micro=4, processes=1)

    # Two windows more take 2.5 s; the second micro-batch takes 4.5 s, so that 1 s is of the step.
    assert astuple(found.alone) == pytest.approx((4.5 - 4 * 1.125, 1.125, 0.25, 0.5, 1.0))
    assert found.count == own_cores()


def test_one_process_is_measured_alone(config):
    found = measured(config, 65, micro=2, processes=1)

    times = found.alone
    assert times.a_pass + 2 * times.a_window > 0
    assert times.adamw > 0
    assert times.muon > 0
    assert found.together == times


@pytest.mark.parametrize(("a_round", "rounds"), [(0.1, 9), (0.9, 3), (3.0, 3), (50.0, 1)])
def test_a_large_model_is_timed_less_often(monkeypatch, config, a_round, rounds):
    monkeypatch.setattr(measuring, "_seconds", lambda part: a_round / 5)
    now = itertools.count(step=a_round)  # it is looked at once a round
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))

    assert len(measuring._rounds(config, 65, 2, ONE)) == rounds


@pytest.mark.parametrize("dense", [True, False])
def test_for_split_weights_all_gradients_are_dense(monkeypatch, config, dense):
    model = measuring.build_model(config.model, 65, 0)
    monkeypatch.setattr(measuring, "build_model", lambda *_: model)
    monkeypatch.setattr(measuring, "ROUNDS", 1)

    measuring._rounds(config, 65, 2, ONE, dense)

    sparse = [p.grad.is_sparse for p in model.parameters() if p.grad is not None]
    assert any(sparse) is not dense


def test_a_table_is_measured_too():
    config = load_config("bigram", ["train.batch_size=4"])

    assert measured(config, 65, micro=4, processes=1).alone.adamw > 0


@pytest.mark.slow  # starts processes that load torch
def test_several_processes_are_measured_together_and_exchange(monkeypatch, config):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    found = measured(config, 65, micro=1, processes=2)

    for link in (found.shared, found.gloo, found.fsdp2):
        assert link.latency > 0
        assert link.seconds_a_byte > 0
    assert found.together.adamw > 0
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_processes_that_measure_import_nothing_from_the_current_folder(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)

    with measuring._for_processes():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["PYTHONSAFEPATH"]) == ("1", "1")

    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "PYTHONSAFEPATH" not in os.environ


def test_a_process_that_was_killed_is_told_in_one_line(monkeypatch, config):
    class Pool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def map(self, *_):
            raise BrokenProcessPool

    monkeypatch.setattr(measuring, "_rounds", lambda *_: [(1.0, 2.0, 1.0, 0.1, 0.1)])
    monkeypatch.setattr(measuring, "load_kernels", lambda _: [])
    monkeypatch.setattr(measuring, "ProcessPoolExecutor", Pool)

    with pytest.raises(MachineError, match="one of the 2 processes was killed"):
        measured(config, 65, micro=2, processes=2)
