"""What recurrent models do with their state: their gates, and how far gradients reach."""

import pytest
import torch

from charlm.models.looking import gates_of, reach_of, stateful
from charlm.models.loss import next_token_loss
from tests.models.conftest import CONFIGS, VOCAB
from tests.models.test_contract import knowing

EXPECTED = {
    "rnn": [],
    "gru": [(0, "update"), (0, "reset")],
    "lstm": [(i, name) for i in range(3) for name in ("write", "forget", "read")],
    "mingru": [(0, "update"), (1, "update")],
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_gate_is_found_at_every_position(kind, generator):
    model = knowing(CONFIGS[kind])
    idx = torch.randint(VOCAB, (9,), generator=generator)

    found = gates_of(model, idx)

    assert [(gate.layer, gate.name) for gate in found] == EXPECTED[kind]
    for gate in found:
        assert len(gate.opened) == 9
        assert ((gate.opened > 0) & (gate.opened < 1)).all()
        assert gate.opened.std(dim=0).min() > 0  # none of them is a constant


def test_the_state_of_a_gru_is_what_its_gates_say(generator):
    """h = h + update (candidate - h), and a shut update gate leaves h as it was."""
    model = knowing(CONFIGS["gru"])
    with torch.no_grad():
        model.layers[0].input.bias[:12] = -1e3
    idx = torch.randint(VOCAB, (5,), generator=generator)

    (update, _) = gates_of(model, idx)
    _, ((h,),) = model.go_on(idx[None], model.start(1))

    assert update.opened.max() == 0
    assert torch.equal(h, model.start(1)[0][0])


@pytest.mark.parametrize("kind", EXPECTED)
def test_lengths_of_gradients_are_those_of_finite_differences(kind, generator):
    model = knowing(CONFIGS[kind]).double()
    idx = torch.randint(VOCAB, (1, 6), generator=generator)
    found = reach_of(model, idx)

    def loss_from(states, after):
        logits, _ = model.go_on(idx[:, after:-1], states)
        return next_token_loss(logits[:, -1:], idx[:, -1:]).item()

    after, step = 3, 1e-6  # characters read; two more follow, and then the target
    with torch.no_grad():
        _, states = model.go_on(idx[:, :after], model.start(1))
    for layer in range(len(states)):
        squares = 0.0
        for part in range(len(states[layer])):
            for at in range(states[layer][part].numel()):

                def moved(by, layer=layer, part=part, at=at):
                    copied = [[tensor.clone() for tensor in one] for one in states]
                    copied[layer][part].view(-1)[at] += by
                    return tuple(tuple(one) for one in copied)

                slope = (loss_from(moved(step), after) - loss_from(moved(-step), after)) / (
                    2 * step
                )
                squares += slope**2
        assert found[layer, idx.shape[1] - 2 - after].item() == pytest.approx(
            squares**0.5, rel=1e-4, abs=1e-8
        )


def test_only_models_with_a_state_have_one():
    assert list(stateful(knowing(CONFIGS["lstm"]))) == [""]
    assert not stateful(knowing(CONFIGS["modern"]))
