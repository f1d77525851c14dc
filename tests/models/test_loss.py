import math

import pytest
import torch

from charlm.models import next_token_loss


def test_it_is_the_mean_negative_log_probability_by_hand(generator):
    logits = torch.randn(2, 3, 4, generator=generator)
    targets = torch.tensor([[0, 1, 2], [3, 0, 1]])
    by_hand = 0.0
    for b in range(2):
        for t in range(3):
            total = sum(math.exp(v) for v in logits[b, t].tolist())
            by_hand -= math.log(math.exp(logits[b, t, targets[b, t]].item()) / total)

    assert next_token_loss(logits, targets).item() == pytest.approx(by_hand / 6, rel=1e-5)
    assert next_token_loss(logits, targets, "sum").item() == pytest.approx(by_hand, rel=1e-5)


def test_guessing_uniformly_costs_the_logarithm_of_the_vocabulary():
    loss = next_token_loss(torch.zeros(2, 5, 65), torch.zeros(2, 5, dtype=torch.int64))

    assert loss.item() == pytest.approx(4.174387, abs=1e-5)
