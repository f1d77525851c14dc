"""The fused form of a recurrent model's step against the lesson's form."""

import pytest
import torch

from charlm.fused.blocks import fused_forward
from charlm.models import next_token_loss
from charlm.models.device import precision
from tests.models.conftest import CONFIGS, VOCAB
from tests.models.test_contract import knowing

KINDS = ["rnn", "gru", "lstm", "mingru"]


def loss_and_gradients(model, forward, dtype=torch.float32, windows=3, length=9, state=None):
    draw = torch.Generator().manual_seed(2)
    text = torch.randint(VOCAB, (windows, length + 1), generator=draw)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    with precision(model.device, dtype):
        if state is None:
            logits = forward(text[:, :-1])
        else:
            logits, state = forward.go_on(text[:, :-1], state)
    loss = next_token_loss(logits.float(), text[:, 1:])
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("windows", "length", "hidden"), [(3, 9, 12), (1, 1, 12), (5, 70, 12)])
def test_loss_and_every_gradient_are_those_of_the_lesson(kind, windows, length, hidden):
    model = knowing(CONFIGS[kind]).train()
    sizes = {"windows": windows, "length": length}

    loss, found, _ = loss_and_gradients(model, fused_forward(model), **sizes)
    expected, plain, _ = loss_and_gradients(model, model, **sizes)

    torch.testing.assert_close(loss, expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_a_state_and_returns_the_next(kind):
    model = knowing(CONFIGS[kind]).train()
    fused = fused_forward(model)
    with torch.no_grad():
        _, state = model.go_on(torch.tensor([[1, 2, 3], [4, 5, 6]]), model.start(2))

    loss, found, after = loss_and_gradients(model, fused, windows=2, state=state)
    expected, plain, then = loss_and_gradients(model, model, windows=2, state=state)

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(after, then, rtol=1e-5, atol=1e-6)
    for name, gradient in found.items():
        if "start" not in name:  # which has no part in it
            torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_lesson(kind):
    sizes = {"n_embd": 32, "n_hidden": 32}
    model = knowing(CONFIGS[kind].model_copy(update=sizes)).train()

    _, truth, _ = loss_and_gradients(model, model)
    _, plain, _ = loss_and_gradients(model, model, torch.bfloat16)
    _, fused, _ = loss_and_gradients(model, fused_forward(model), torch.bfloat16)

    def distance(gradients):
        return sum(float((gradients[n] - truth[n]).norm() / truth[n].norm()) for n in truth)

    assert 0 < distance(fused) < 1.25 * distance(plain)
