"""What `charlm.models.base` promises, held by every model."""

import itertools
import math
import re

import pytest
import torch

from charlm.models import (
    GPT2,
    AttentionModel,
    AveragingModel,
    BigramModel,
    ModernGPT,
    MultiHeadModel,
    NGramModel,
    attend_plainly,
    attention,
    build_model,
    next_token_loss,
)
from charlm.models.counts import count_ngrams
from charlm.models.past import band
from charlm.models.smoothing import smooth
from charlm.text.tokens import IdArray
from tests.models.conftest import BLOCK, CONFIGS, VOCAB


def knowing(config):
    """A model that knows something, so that nothing passes by being zero or uniform."""
    model = build_model(config, VOCAB, seed=1)
    draw = torch.Generator().manual_seed(2)
    if isinstance(model, NGramModel):
        text = torch.randint(VOCAB, (3000,), generator=draw).numpy()
        model.set_tables(smooth(count_ngrams(IdArray(text), VOCAB, model.order), "kneser-ney"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model(each_config):
    return knowing(each_config)


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


def test_what_it_remembers_changes_its_logits_and_nothing_before_does(model, idx):
    def logits_if_changed(at):
        changed = idx.clone()
        changed[:, at] = (changed[:, at] + 1) % VOCAB
        return model(changed)[:, -1]

    assert model.memory in (1, 2, BLOCK)  # of the bigram, of the trigram, and of all others
    for at in range(BLOCK - model.memory, BLOCK):
        assert not torch.allclose(logits_if_changed(at), model(idx)[:, -1])
    for at in range(BLOCK - model.memory):
        assert torch.equal(logits_if_changed(at), model(idx)[:, -1])


def test_order_of_the_past_matters_from_attention_with_positions_on(model, each_config):
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3, 1, 2, 4]])

    same = torch.allclose(model(one)[:, -1], model(other)[:, -1], atol=1e-5)

    assert same == (each_config.type in ("bigram", "averaging"))


def test_the_first_loss_is_near_that_of_guessing(each_config, idx, generator):
    targets = torch.randint(VOCAB, idx.shape, generator=generator)

    loss = next_token_loss(build_model(each_config, VOCAB)(idx), targets)

    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.05)


@pytest.mark.parametrize("sizes", [[1], [1, 2], [3], [5, 1, 1], [BLOCK, 1], [BLOCK + 3, 2]])
def test_stepping_gives_the_logits_of_reading_at_once(model, generator, sizes):
    """One by one or many at once, within the block and far beyond it: the same."""
    text = torch.randint(VOCAB, (2, 5 * BLOCK), generator=generator)
    expected = model.read(text)
    state, at, turn = model.start(2), 0, itertools.cycle(sizes)

    while at < text.shape[1]:
        n = next(turn)
        logits, state = model.step(text[:, at : at + n], state)
        at = min(at + n, text.shape[1])
        torch.testing.assert_close(logits, expected[:, at - 1], atol=1e-5, rtol=1e-5)


def test_reading_within_the_block_is_what_the_model_says(model, idx):
    torch.testing.assert_close(model.read(idx), model(idx))


def test_weights_are_a_function_of_the_seed(trained_config):
    def weights(seed):
        model = build_model(trained_config, VOCAB, seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    if trained_config.type != "bigram":  # its table starts at zero whatever the seed
        assert not torch.equal(weights(3), weights(4))


def test_a_constructor_alone_gives_a_model_that_guesses(generator):
    idx, targets = torch.randint(65, (2, 4, 32), generator=generator)

    for seed in (0, 1):
        model = GPT2(65, 32, n_layer=2, n_head=2, n_embd=64, generator=seeded(seed))
        loss = next_token_loss(model(idx), targets)
        assert loss.item() == pytest.approx(math.log(65), abs=0.05)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (BigramModel, {}),
        (AveragingModel, {"n_embd": 12}),
        (AttentionModel, {"n_embd": 12}),
        (MultiHeadModel, {"n_embd": 12, "n_head": 3}),
        (GPT2, {"n_layer": 2, "n_head": 3, "n_embd": 12}),
        (ModernGPT, {"n_layer": 2, "n_head": 3, "n_embd": 12, "n_gram": 3}),
        (NGramModel, {"order": 3}),
    ],
)
def test_every_constructor_takes_a_generator(kind, sizes):
    def weights(generator=None):
        return kind(VOCAB, BLOCK, **sizes, generator=generator).state_dict()

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    assert same(weights(seeded(3)), weights(seeded(3)))
    assert same(weights(seeded(3)), weights(seeded(4))) == (kind in (BigramModel, NGramModel))
    assert all(tensor.isfinite().all() for tensor in weights().values())


def test_on_the_meta_device_nothing_is_drawn():
    draw = seeded(0)

    with torch.device("meta"):
        GPT2(VOCAB, BLOCK, n_layer=1, n_head=3, n_embd=12, generator=draw)

    assert torch.equal(draw.get_state(), seeded(0).get_state())


def test_a_window_that_is_too_long_is_refused_with_both_lengths(model, generator):
    idx = torch.randint(VOCAB, (2, BLOCK + 3), generator=generator)

    if model.any_length:
        assert model(idx).shape == (2, BLOCK + 3, VOCAB)
    else:
        with pytest.raises(ValueError, match=f"{BLOCK + 3} characters .* block_size {BLOCK}"):
            model(idx)


def test_weights_survive_a_plain_dict(each_config, model, idx):
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = build_model(each_config, VOCAB, seed=9).eval()

    other.load_state_dict(saved)

    assert torch.equal(other(idx), model(idx))
    assert list(other.state_dict()) == list(saved)


def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(each_config, model):
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    *_, name = saved
    tensor = saved[name]
    misfits = {
        "is missing": {key: value for key, value in saved.items() if key != name},
        "belongs to another model": saved | {name + "_": tensor},
        "expected": saved | {name: tensor[None]},
        "NaN or infinite": saved | {name: torch.full_like(tensor, math.nan)},
    }

    for said, misfit in misfits.items():
        with pytest.raises(ValueError, match=f"{re.escape(name)}_? .*{said}"):
            model.load_state_dict(misfit)
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_every_parameter_gets_a_gradient(trained_config, idx):
    model = knowing(trained_config)
    next_token_loss(model(idx), idx.roll(-1, dims=1)).backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_model_can_learn_one_batch_by_heart(trained_config):
    model = build_model(trained_config, VOCAB, seed=0)
    # Each character determines the next, so even the bigram table can know the batch.
    x = torch.arange(BLOCK).remainder(VOCAB)[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    for _ in range(150):
        loss = next_token_loss(model(x), (x + 1) % VOCAB)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.1


def test_past_the_block_learned_positions_see_at_least_half_of_it(generator):
    """The view moves on by half a block: what is in it is what the model is shown."""
    for name in ("averaging", "attention", "multihead", "gpt2"):
        model = knowing(CONFIGS[name])
        text = torch.randint(VOCAB, (2, 3 * BLOCK), generator=generator)
        found = model.read(text)
        for at, first in {8: 4, 11: 4, 12: 8, 23: 16}.items():
            torch.testing.assert_close(found[:, at], model(text[:, first : at + 1])[:, -1])


def test_past_the_block_the_modern_view_slides_at_every_layer(generator):
    """Compared with the whole text at once, where each sees the last BLOCK at every layer."""
    model = knowing(CONFIGS["modern"])
    text = torch.randint(VOCAB, (2, 3 * BLOCK), generator=generator)
    long = knowing(CONFIGS["modern"].model_copy(update={"block_size": 3 * BLOCK}))
    seen = band(3 * BLOCK, 0, BLOCK, torch.device("cpu"))

    def attend_within(query, key, value, mask, dropout):
        return attend_plainly(query, key, value, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "attend", attend_within)
        expected = long(text)

    torch.testing.assert_close(model.read(text), expected, atol=1e-5, rtol=1e-5)
