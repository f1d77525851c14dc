"""A join is never worse than its best expert, on text that its weights were not fitted on."""

import pytest
import torch

from charlm.models.mixture import join
from charlm.training.fitting import CHARS_A_WEIGHT, fit_join, loss_of

KINDS = ("log-linear", "linear")
NAMES = ("a", "b", "c")


def source(chars, noise, vocab=8, seed=0):
    """Logits of experts that see the truth through noise, and characters drawn from the truth."""
    draw = torch.Generator().manual_seed(seed)
    truth = 2 * torch.randn(chars, vocab, generator=draw)
    targets = torch.multinomial(truth.softmax(-1), 1, generator=draw)[:, 0]
    logits = [truth + s * torch.randn(chars, vocab, generator=draw) for s in noise]
    return torch.stack(logits), targets


@pytest.mark.parametrize("combine", KINDS)
def test_experts_that_know_different_things_are_joined(combine):
    logits, targets = source(3000, (1.0, 1.0, 1.5))
    found = fit_join(logits, targets, NAMES, combine)

    joined = join(logits, found.weights, found.temperature, combine)
    assert not found.remark
    assert (found.weights > 0).all()
    assert loss_of(joined, targets) < min(loss_of(own, targets) for own in logits) - 0.05


@pytest.mark.parametrize("combine", KINDS)
def test_a_join_that_is_worse_on_other_text_falls_back_to_the_best_expert(combine):
    """Each half of the text looks as if one of two bad experts could be trusted."""
    logits, targets = source(2000, (0.3, 0.0, 0.0))
    for half, expert in ((slice(1000), 1), (slice(1000, None), 2)):
        logits[expert, half] = 0.0
        logits[expert, half].scatter_(1, targets[half, None], 9.0)
        logits[3 - expert, half] = 0.0
        logits[3 - expert, half].scatter_(1, (targets[half, None] + 1) % 8, 9.0)
    found = fit_join(logits, targets, NAMES, combine)

    assert (found.weights.tolist(), found.temperature.item()) == ([1.0, 0.0, 0.0], 1.0)
    assert found.remark.startswith("joined, the experts predict text worse than the best of them")
    assert found.remark.endswith(": a is used alone")
    joined = join(logits, found.weights, found.temperature, combine)
    torch.testing.assert_close(joined, logits[0].log_softmax(-1))


@pytest.mark.parametrize("combine", KINDS)
@pytest.mark.parametrize(("weights", "chosen"), [(0.4, "b"), (1, "b")])
def test_few_characters_fit_few_weights(combine, weights, chosen):
    chars = round(weights * CHARS_A_WEIGHT)
    logits, targets = source(chars, (3.0, 0.2, 0.4))
    found = fit_join(logits, targets, NAMES, combine)

    assert found.weights.tolist() == [0.0, 1.0, 0.0]
    assert found.remark == (
        f"{chars} characters are too few to fit the weights of 3 experts, so only {chosen} is used"
    )


def test_two_experts_are_chosen_where_there_is_text_for_two_weights():
    logits, targets = source(2 * CHARS_A_WEIGHT, (3.0, 1.2, 1.2))
    found = fit_join(logits, targets, NAMES, "log-linear")

    assert found.weights.gt(0).tolist() == [False, True, True]
    assert (
        found.remark.endswith("the weights of 3 experts, so only b and c are used")
        or "c and b" in found.remark
    )


def test_the_only_expert_is_not_left_out():
    logits, targets = source(30, (1.0,))
    found = fit_join(logits, targets, ("a",), "log-linear")

    assert (found.weights.tolist(), found.remark) == ([1.0], "")


@pytest.mark.parametrize("combine", KINDS)
@pytest.mark.parametrize("chars", [20, 400])
def test_the_only_expert_is_used_as_it_is_where_a_temperature_does_not_help(combine, chars):
    """Text at the start that one more step of confidence would suit, and as much that punishes it."""
    logits, targets = source(chars, (0.0,))
    best = logits[0].argmax(-1)
    targets[: chars // 2] = best[: chars // 2]
    found = fit_join(logits, targets, ("a",), combine)

    assert (found.weights.tolist(), found.temperature.item(), found.remark) == ([1.0], 1.0, "")


@pytest.mark.parametrize("chars", [150, 20_000])
def test_a_gate_is_used_where_it_predicts_other_text_better(chars):
    """Of two experts, each knows the text in turn; 150 characters are too few to fit two."""
    logits, targets = source(chars, (0.2, 0.2))
    turn = torch.arange(chars) // 7 % 2
    for expert, noise in enumerate(torch.randn(2, chars, 8, generator=torch.Generator())):
        logits[expert, turn == expert] = noise[turn == expert]
    found = fit_join(logits, targets, NAMES[:2], "gated")

    fixed = fit_join(logits, targets, NAMES[:2], "log-linear")
    assert (found.gate is not None) == (chars > 150)
    if found.gate is not None:
        fixed_loss, gated_loss = (
            loss_of(one.of(logits, "gated"), targets) for one in (fixed, found)
        )
        assert gated_loss < fixed_loss - 0.01


def test_a_gate_that_does_not_help_is_left_out_and_said_to_be():
    """The experts are alike everywhere, so there is nothing that a gate could learn but noise."""
    logits, targets = source(3000, (1.0, 1.0, 1.5))
    found = fit_join(logits, targets, NAMES, "gated")

    fixed = fit_join(logits, targets, NAMES, "log-linear")
    assert found.gate is None
    assert found.weights.tolist() == fixed.weights.tolist()
    assert found.remark.startswith("the gate predicts text worse than fixed weights (")
