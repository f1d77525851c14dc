"""The protocol `stream` for models with a state: each character once, after all that come before."""

import numpy as np
import pytest
import torch

from charlm.evaluation import protocols
from charlm.evaluation.scoring import score_text
from charlm.models.loss import next_token_loss
from charlm.text.tokens import IdArray
from tests.models.conftest import CONFIGS, VOCAB
from tests.models.test_contract import knowing


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm", "mingru"])
def test_the_loss_is_that_of_the_whole_text_at_once(kind, monkeypatch):
    monkeypatch.setattr(protocols, "CHARS_A_PASS", 50)  # so that the state goes on four times
    model = knowing(CONFIGS[kind])
    ids = np.random.default_rng(0).integers(0, VOCAB, 231)
    cut = protocols.choose(model, "stream")
    with torch.no_grad():
        text = torch.from_numpy(ids)[None]
        expected = next_token_loss(model(text[:, :-1]), text[:, 1:])
        alone = next_token_loss(model(text[:, 200:-1]), text[:, 201:])
        ends = next_token_loss(model(text[:, :-1])[:, 200:], text[:, 201:])

    score = score_text(model, IdArray(ids), cut)

    assert cut.length == cut.stride == 50
    assert score.chars == 230
    assert score.loss_nats == pytest.approx(expected.item(), rel=1e-6)
    assert abs(alone - ends) > 1e-4  # what came before matters
