import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from charlm.config import GPTConfig
from charlm.evaluation import score_windows
from charlm.evaluation import windows as module
from charlm.evaluation.windows import Interrupted, chars_to_score
from charlm.models import LanguageModel, build_model
from charlm.text import IdArray


class Fake(LanguageModel):
    """Predicts uniformly and remembers the windows it was shown."""

    def __init__(self, vocab_size=5, block_size=4):
        super().__init__(vocab_size, block_size)
        self.bias = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, idx):
        self.seen += idx.tolist()
        return torch.zeros(*idx.shape, self.vocab_size) + self.bias


def ids(length):
    return IdArray(np.arange(length) % 5)


@pytest.mark.parametrize("length", [2, 4, 5, 6, 9, 17, 18])
def test_a_uniform_model_scores_exactly_the_logarithm_of_its_vocabulary(length):
    score = score_windows(Fake(), ids(length), block_size=4)

    assert score.loss_nats == pytest.approx(math.log(5), rel=1e-6)
    assert score.chars == length - 1


@given(length=st.integers(2, 60), block=st.integers(1, 12), windows=st.integers(1, 7))
@settings(deadline=None)
def test_every_character_but_the_first_is_a_target_once(length, block, windows):
    text = np.arange(length)
    targets = []
    for rows in module._passes(IdArray(text), block, windows, max_chars=None):
        assert rows.shape[1] <= block + 1
        for row in rows:
            np.testing.assert_array_equal(row, np.arange(row[0], row[0] + len(row)))
            targets += row[1:].tolist()

    assert targets == text[1:].tolist()
    assert chars_to_score(length, block, None) == length - 1


@given(length=st.integers(2, 200), block=st.integers(1, 12), limit=st.integers(1, 300))
@settings(deadline=None)
def test_a_limit_spreads_whole_windows_over_the_text(length, block, limit):
    passes = module._passes(IdArray(np.arange(length)), block, 3, limit)
    targets = [t for rows in passes for row in rows for t in row[1:].tolist()]

    assert len(set(targets)) == len(targets) == chars_to_score(length, block, limit)
    assert len(targets) <= max(limit, block)
    if length - 1 > limit >= 2 * block:
        assert targets[0] == 1
        assert targets[-1] > length // 2 - block  # the second half is not forgotten


def test_it_equals_the_mean_of_losses_computed_one_by_one(generator):
    config = GPTConfig(type="gpt", style="gpt2", block_size=4, n_layer=1, n_head=2, n_embd=8)
    model = build_model(config, 5, seed=1)
    text = torch.randint(5, (23,), generator=generator)
    losses = []
    for i in range(1, len(text)):
        start = (i - 1) // 4 * 4  # where the window of target i begins
        p = model(text[None, start:i])[0, -1].softmax(dim=-1)
        losses.append(-math.log(p[text[i]].item()))

    score = score_windows(model, IdArray(text.numpy()), block_size=4)

    assert score.loss_nats == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_scoring_leaves_randomness_and_mode_as_they_were():
    for training in (True, False):
        model = Fake().train(training)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        score_windows(model, ids(40), block_size=4)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training is training


def test_it_scores_in_evaluation_mode():
    config = GPTConfig(
        type="gpt", block_size=4, n_layer=1, n_head=2, n_embd=8, style="gpt2", dropout=0.5
    )
    model = build_model(config, 5).train()

    first, second = (score_windows(model, ids(40), block_size=4) for _ in range(2))

    assert first == second


def test_it_stops_when_asked_and_restores_the_mode():
    model = Fake().train()
    with pytest.raises(Interrupted):
        score_windows(model, ids(40), block_size=4, should_stop=lambda: True)
    assert model.training


def test_bits_and_perplexity_follow_from_nats():
    score = module.Score(chars=10, loss_nats=math.log(8))

    assert score.bits_per_char == pytest.approx(3)
    assert score.perplexity == pytest.approx(8)


def test_a_hopeless_model_has_infinite_perplexity():
    assert module.Score(chars=1, loss_nats=1e4).perplexity == math.inf
