"""A state that is carried from window to window."""

import numpy as np
import pytest
import torch

from charlm.errors import CheckpointError, DataError
from charlm.models import next_token_loss
from charlm.runs.state import CARRIED
from charlm.text.batches import ConsecutiveBatches
from charlm.text.tokens import IdArray
from tests.training.conftest import state_hash, stop_and_resume

LSTM = """\
data: {source: text.txt}
model: {type: lstm, block_size: 8, n_layer: 2, n_embd: 6, n_hidden: 10, dropout: 0.1}
train: {batch_size: 4, micro_batch_size: 2, warmup_steps: 2, eval_every: 3, max_steps: 8, carry_state: true}
"""


@pytest.fixture
def make_lstm(make_loop, tiny):
    tiny.write_text(LSTM)
    return make_loop


def consecutive(length=103, block=8, batch=3, seed=1):
    return ConsecutiveBatches(IdArray(np.arange(length)), block, batch, seed)


def test_every_window_follows_the_one_of_the_step_before():
    batches = consecutive()

    for step in range(3 * batches.steps):
        x, y = batches.get(step)
        assert (y == x + 1).all()
        if not batches.begins(step):
            assert (x[:, 0] == batches.get(step - 1)[1][:, -1]).all()
        assert (batches.get(step, 1, 1)[0] == x[1:2]).all()


def test_a_pass_reads_nearly_all_of_the_text_and_the_next_begins_elsewhere():
    batches = consecutive()
    laps = [
        np.concatenate([batches.get(lap * batches.steps + k)[0] for k in range(batches.steps)])
        for lap in range(8)
    ]

    for lap in laps:
        assert len(np.unique(lap)) == lap.size >= 0.85 * 103
    assert len({lap[0, 0] for lap in laps}) > 1


def test_stretches_shorter_than_a_window_are_refused():
    with pytest.raises(DataError, match="each of 13 stretches of this text has 7 characters"):
        consecutive(batch=13)


def test_a_step_is_that_of_the_whole_text_with_the_gradient_cut_between_windows(make_lstm):
    still = ["model.dropout=0", "train.learning_rate=1e-12", "train.min_lr=0"]
    learner = make_lstm(*still).learner
    model = learner.model
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # weights that make the state matter
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=draw)
    plain = make_lstm(*still, out="plain").learner.model
    plain.load_state_dict(model.state_dict())
    losses = [learner.step().loss_nats for _ in range(3)]

    state, expected, anew = plain.start(learner.batches.batch_size), [], []
    for step in range(3):
        x, y = (torch.from_numpy(ids) for ids in learner.batches.get(step))
        logits, state = plain.go_on(x, state)
        expected.append(next_token_loss(logits, y).item())
        anew.append(next_token_loss(plain(x), y).item())

    assert losses == pytest.approx(expected, abs=1e-5)
    assert min(abs(a - b) for a, b in zip(losses[1:], anew[1:], strict=True)) > 1e-3


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(make_lstm):
    whole = make_lstm()
    list(whole.records())

    resumed = stop_and_resume(make_lstm, 3)

    assert state_hash(resumed) == state_hash(whole)
    assert (whole.run.checkpoints.last().path / CARRIED).exists()


def test_without_the_carried_state_a_run_would_end_elsewhere(make_lstm):
    whole = make_lstm()
    alone = make_lstm("train.carry_state=false", out="alone")
    list(whole.records())
    list(alone.records())

    assert state_hash(alone) != state_hash(whole)
    assert not (alone.run.checkpoints.last().path / CARRIED).exists()


def test_a_state_that_does_not_fit_is_refused_by_name(make_lstm):
    learner = make_lstm().learner
    learner.step()
    saved = learner.carried_tensors()

    for change, said in [
        ({"1": None}, "1 is missing"),
        ({"9": torch.zeros(4, 10)}, "9 belongs to another model"),
        ({"2": torch.zeros(4, 3)}, r"2 is \(4, 3\)"),
        ({"0": torch.full((4, 10), torch.nan)}, "NaN or infinite"),
    ]:
        wrong = {name: one for name, one in (saved | change).items() if one is not None}
        with pytest.raises(ValueError, match=said):
            learner.restore_carried(wrong)


def test_a_run_goes_on_with_other_micro_batches(make_lstm):
    stopped = make_lstm(should_stop=lambda: stopped.state.step == 3)
    list(stopped.records())

    resumed = make_lstm("train.micro_batch_size=1", resume=True)

    assert resumed.learner.carried.now.keys() == {0, 1, 2, 3}
    before, now = stopped.learner.carried_tensors(), resumed.learner.carried_tensors()
    assert before.keys() == now.keys()
    assert all(torch.equal(before[name], now[name]) for name in now)
    list(resumed.records())
    assert resumed.state.step == 8


def test_whether_a_state_is_carried_cannot_change_within_a_run(make_lstm):
    list(make_lstm("train.carry_state=false").records())

    with pytest.raises(CheckpointError, match=r"train\.carry_state: .* True, .* with False"):
        make_lstm("train.carry_state=true", "train.max_steps=9", resume=True)


@pytest.mark.parametrize("kind", ["rnn", "gru", "mingru"])
def test_each_kind_can_be_resumed_in_bfloat16_and_not_fused(make_loop, tiny, kind):
    tiny.write_text(LSTM.replace("lstm", kind))
    options = ["run.dtype=bfloat16", "run.fused=false", "train.max_steps=5"]
    whole = make_loop(*options)
    list(whole.records())

    resumed = stop_and_resume(make_loop, 2, *options)

    assert state_hash(resumed) == state_hash(whole)


def test_after_a_skipped_step_the_state_begins_anew(make_lstm):
    learner = make_lstm().learner
    learner.step()
    learner.carried.after(0, tuple(map(tuple, learner.carried.now[0])))

    learner.carried.advance(sound=False)

    assert learner.carried_tensors() == {}
    begun = learner.carried.before(1, 0, 2)
    assert torch.equal(begun[0][0], learner.model.start(2)[0][0])
    assert learner.step().loss_nats > 0
