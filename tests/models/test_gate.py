"""A gate says for each character how much each expert's word counts."""

import math

import pytest
import torch

from charlm.errors import Stopped
from charlm.models.gate import FAR, Gate, features_of, fit_gate
from charlm.models.loss import next_token_loss
from charlm.models.mixture import FLOOR, join

VOCAB = 5


@pytest.fixture
def in_turn(generator):
    """Two experts, of which one is sure and right, the other sure of nothing; in random turn."""
    targets = torch.randint(VOCAB, (3000,), generator=generator)
    sure = torch.full((3000, VOCAB), 0.05).scatter_(1, targets[:, None], 0.8).log()
    # An expert that does not know prefers a character at random, and not by much.
    vague = (torch.rand(3000, VOCAB, generator=generator) + 0.5).log().log_softmax(-1)
    first = torch.rand(3000, generator=generator) < 0.5
    log_p = torch.stack([torch.where(own[:, None], sure, vague) for own in (first, ~first)])
    return log_p, targets


def loss(log_p, targets, powers, gate):
    joined = join(log_p, powers, torch.ones(()), "gated", gate)
    return next_token_loss(joined[None], targets[None]).item()


def test_what_a_gate_sees_of_two_experts():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    mean = (p + q) / 2
    from_mean = (p * (p / mean).log()).sum().item()
    to_mean = (mean * (mean / p).log()).sum().item()

    found = features_of(torch.stack([p, q]).log()[:, None])

    expected = [1.5 * math.log(2)] * 2 + [-math.log(2)] * 2 + [from_mean] * 2 + [to_mean] * 2
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_what_a_gate_sees_is_finite_where_an_expert_rules_characters_out():
    certain = torch.tensor([[0.0, FLOOR, FLOOR], [FLOOR, 0.0, FLOOR]])

    found = features_of(certain).view(4, 2).tolist()

    assert found == [[0, 0], [0, 0], pytest.approx([math.log(2)] * 2), [FAR, FAR]]


def test_a_gate_that_has_learned_nothing_leaves_the_fixed_powers(in_turn):
    log_p, _ = in_turn
    weights, temperature = torch.tensor([0.3, 0.7]), torch.tensor(0.8)

    gated = join(log_p, weights, temperature, "gated", Gate(2))

    torch.testing.assert_close(gated, join(log_p, weights, temperature, "log-linear"))


def test_a_gate_learns_whom_to_trust(in_turn):
    """With equal powers 1, the vague expert disturbs the sure one; power 0 for it is best."""
    log_p, targets = in_turn
    powers = torch.ones(2)
    fixed = loss(log_p, targets, powers, Gate(2))

    gate = fit_gate(log_p[:, :2000].repeat(1, 8, 1), targets[:2000].repeat(8), powers)

    assert loss(log_p[:, 2000:], targets[2000:], powers, gate) < fixed - 0.05
    sure = features_of(log_p)[:, :2].argmin(dim=1)  # the lower entropy
    added = gate(features_of(log_p))
    assert (
        added[torch.arange(3000), sure] > added[torch.arange(3000), 1 - sure]
    ).float().mean() > 0.9


def test_the_powers_of_a_place_do_not_depend_on_its_neighbours(in_turn):
    log_p, _ = in_turn
    gate = Gate(2)
    gate.take(torch.randn(len(gate.numbers()), generator=torch.Generator().manual_seed(1)).tolist())
    together = log_p[:, :60].view(2, 3, 20, VOCAB)

    whole = gate(features_of(together))

    torch.testing.assert_close(whole[1, 7], gate(features_of(together[:, 1, 7])))


def test_a_fit_is_repeatable_and_can_be_stopped(in_turn):
    log_p, targets = (part[..., :600, :] if part.dim() > 1 else part[:600] for part in in_turn)

    one, two = (fit_gate(log_p, targets, torch.ones(2)) for _ in range(2))

    assert one.numbers() == two.numbers()
    with pytest.raises(Stopped):
        fit_gate(log_p, targets, torch.ones(2), lambda: True)


def test_a_gate_is_kept_as_numbers():
    numbers = [0.1 * i for i in range(len(Gate(3).numbers()))]
    gate = Gate(3)
    gate.take(numbers)

    assert gate.numbers() == pytest.approx(numbers)
    with pytest.raises(ValueError, match="are not a gate's"):
        Gate(2).take(numbers)
