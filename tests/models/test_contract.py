"""What `charlm.models.base` promises, held by every model."""

import math

import pytest
import torch

from charlm.models import build_model, next_token_loss
from tests.models.conftest import BLOCK, VOCAB


@pytest.fixture
def model(each_config):
    """A model whose zero-initialised parts are stirred, so that nothing passes by being zero."""
    model = build_model(each_config, VOCAB, seed=1)
    stir = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=stir)
    return model.eval()


@pytest.fixture
def idx(generator):
    return torch.randint(VOCAB, (3, BLOCK), generator=generator)


def test_logits_have_a_row_for_every_position(model, idx):
    for time in range(1, BLOCK + 1):
        assert model(idx[:, :time]).shape == (3, time, VOCAB)


def test_future_characters_do_not_change_past_logits(model, idx):
    before = model(idx)
    for time in range(1, BLOCK):
        changed = idx.clone()
        changed[:, time:] = (changed[:, time:] + 1) % VOCAB
        assert torch.equal(model(changed)[:, :time], before[:, :time])


def test_the_last_character_changes_its_own_logits(model, idx):
    changed = idx.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCAB

    assert not torch.allclose(model(changed)[:, -1], model(idx)[:, -1])


def test_the_past_changes_logits_of_every_model_but_the_bigram(model, idx, each_config):
    changed = idx.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB

    same = torch.allclose(model(changed)[:, -1], model(idx)[:, -1])

    assert same == (each_config.type == "bigram")


def test_order_of_the_past_matters_from_attention_with_positions_on(model, each_config):
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3, 1, 2, 4]])

    same = torch.allclose(model(one)[:, -1], model(other)[:, -1], atol=1e-5)

    assert same == (each_config.type in ("bigram", "averaging"))


def test_the_first_loss_is_near_that_of_guessing(each_config, idx, generator):
    targets = torch.randint(VOCAB, idx.shape, generator=generator)

    loss = next_token_loss(build_model(each_config, VOCAB)(idx), targets)

    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.05)


def test_stepping_gives_the_logits_of_the_whole_window(model, idx):
    state = model.start(3)
    for time in range(BLOCK):
        logits, state = model.step(idx[:, time : time + 1], state)
        torch.testing.assert_close(logits, model(idx[:, : time + 1])[:, -1])


def test_stepping_goes_on_past_the_block_with_the_last_window(model, generator):
    text = torch.randint(VOCAB, (2, 3 * BLOCK), generator=generator)
    logits, state = model.step(text[:, : 2 * BLOCK], model.start(2))
    torch.testing.assert_close(logits, model(text[:, BLOCK : 2 * BLOCK])[:, -1])

    logits, _ = model.step(text[:, 2 * BLOCK :], state)

    torch.testing.assert_close(logits, model(text[:, -BLOCK:])[:, -1])


def test_weights_are_a_function_of_the_seed(each_config):
    def weights(seed):
        return torch.cat([p.flatten() for p in build_model(each_config, VOCAB, seed).parameters()])

    assert torch.equal(weights(3), weights(3))
    if each_config.type != "bigram":  # its table starts at zero whatever the seed
        assert not torch.equal(weights(3), weights(4))


def test_every_parameter_gets_a_gradient(model, idx):
    next_token_loss(model(idx), idx.roll(-1, dims=1)).backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_model_can_learn_one_batch_by_heart(each_config, generator):
    model = build_model(each_config, VOCAB, seed=0)
    # Each character determines the next, so even the bigram table can know the batch.
    x = torch.arange(BLOCK).remainder(VOCAB)[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    for _ in range(150):
        loss = next_token_loss(model(x), (x + 1) % VOCAB)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.1
