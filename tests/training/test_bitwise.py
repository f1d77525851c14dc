"""Learning a mixture that is joined bit by bit."""

import math

import numpy as np
import pytest
import torch

from charlm.errors import CheckpointError
from charlm.models.bitwise import BitwiseMixture
from charlm.models.growing import GrowingNGram
from charlm.runs.load import load_model
from charlm.runs.mixture import JOINER
from charlm.training import bitwise
from tests.training.test_joining import (  # noqa: F401 -- a fixture
    SLICE,
    TRAIN,
    differing,
    finish,
    make_loop,
)

KEYS = ("model.combine=bitwise", "model.contexts=1;1 2;1 2 3", "model.memory=1")


@pytest.fixture
def make(make_loop):  # noqa: F811
    return lambda **kwargs: make_loop(*KEYS, **kwargs)


def test_it_is_trained_saved_and_scored(make):
    loop = make()

    records = finish(loop)

    (tune,) = (r for r in records if r.kind == "tune")
    assert tune.fitted.chars == TRAIN - SLICE - 2  # in two calls, of whole windows and of the rest
    assert tune.fitted.loss_nats < math.log(loop.learner.model.vocab_size)
    saved = load_model(loop.run)
    assert len(saved.model.joiner.text) == TRAIN
    assert not differing(saved.model.state_dict(), loop.learner.model.state_dict())


def test_no_expert_offers_what_it_has_read(make, monkeypatch):
    """Before the slice only counts that grow offer; on it, all do, and none has read it."""
    seen = []
    learn = bitwise.score_and_learn

    def watched(mixer, ids, offers, p):
        seen.append((ids.copy(), offers.copy()))
        learn(mixer, ids, offers, p)

    monkeypatch.setattr(bitwise, "score_and_learn", watched)
    loop = make()
    finish(loop)

    text = np.concatenate([ids for ids, _ in seen])
    offers = np.concatenate([some for _, some in seen])
    learner = loop.learner
    assert text.tolist() == learner.whole.read(0, TRAIN).tolist()
    config = learner.mixture.experts["counts"].model
    growing = GrowingNGram(config, learner.model.vocab_size).go_on(text)
    torch.testing.assert_close(torch.from_numpy(offers[:, 0]), growing)
    assert np.isnan(offers[:SLICE, 1:]).all()
    assert np.isfinite(offers[SLICE:]).all()
    whole = (
        learner.model.experts["gpt"].eval().read(torch.from_numpy(text[None, SLICE : SLICE + 16]))
    )
    now = whole[0].log_softmax(-1).detach().numpy()
    assert np.abs(now - offers[SLICE : SLICE + 16, 1]).max() > 1e-3  # it has learned since


def test_what_the_mixer_learned_outlives_a_stop(make, make_loop):  # noqa: F811
    whole = make(out="whole")
    finish(whole)
    stopped = make().records()
    next(r for r in stopped if r.kind == "tune")
    stopped.close()

    resumed = make_loop(resume=True)
    finish(resumed)

    assert not differing(resumed.learner.model.state_dict(), whole.learner.model.state_dict())


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_what_the_mixer_learned_must_be_sound(make, make_loop, damage):  # noqa: F811
    loop = make()
    records = loop.records()
    next(r for r in records if r.kind == "tune")
    records.close()
    path = loop.run.path / JOINER
    if damage == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[:1000] if damage == "cut" else whole.replace(b"refined", b"refinex"))

    with pytest.raises(CheckpointError, match=JOINER):
        finish(make_loop(resume=True))


def test_a_stop_is_obeyed_while_it_reads(make, monkeypatch):
    monkeypatch.setattr(bitwise, "PIECE", 100)
    reading, calls = [], []
    learn = bitwise.score_and_learn
    monkeypatch.setattr(
        bitwise, "score_and_learn", lambda *given: reading.append(1) or learn(*given)
    )
    loop = make(should_stop=lambda: bool(reading) and (calls.append(1) or True))

    finish(loop)

    assert loop.stopped
    assert len(reading) == 1
    assert not (loop.run.path / JOINER).exists()


def test_its_speed_is_measured_where_the_model_is(make, monkeypatch):
    """There is no GPU here, so the first call with a text ends the test."""
    seen = []

    def look_up(self, idx, targets):
        seen.extend([idx.device.type, targets.device.type])
        raise InterruptedError

    monkeypatch.setattr(BitwiseMixture, "device", torch.device("meta"))
    monkeypatch.setattr(BitwiseMixture, "log_probability", look_up)

    with pytest.raises(InterruptedError):
        make().learner.time_to_join(torch.empty(2, 0, 3))
    assert seen == ["meta", "meta"]
