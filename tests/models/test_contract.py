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
from charlm.models.cache import band
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import smooth
from charlm.models.view import classes_of
from charlm.text import CharTokenizer
from charlm.text.tokens import IdArray
from tests.models.conftest import BLOCK, CONFIGS, VOCAB


def knowing(config):
    """A model that knows something, so that nothing passes by being zero or uniform."""
    model = build_model(config, VOCAB, seed=1)
    draw = torch.Generator().manual_seed(2)
    if isinstance(model, NGramModel):
        text = torch.randint(VOCAB, (3000,), generator=draw).numpy()
        model.set_tables(smooth(count_ngrams(IdArray(text), VOCAB, model.order), "kneser-ney"))
    if config.type == "context-mixing":
        text = torch.randint(VOCAB, (3000,), generator=draw).numpy()
        model.fit(IdArray(text), classes_of(CharTokenizer("abcdefghij\n")))
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

    memory = model.memory or BLOCK  # None: of all that was read
    assert memory in (1, 2, 4, BLOCK)  # of the bigram, the trigram, the MLP, and all others
    for at in range(BLOCK - memory, BLOCK):
        assert not torch.equal(logits_if_changed(at), model(idx)[:, -1])
    for at in range(BLOCK - memory):
        assert torch.equal(logits_if_changed(at), model(idx)[:, -1])


def test_order_of_the_past_matters_from_attention_with_positions_on(model, each_config):
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3, 1, 2, 4]])

    same = torch.allclose(model(one)[:, -1], model(other)[:, -1], atol=1e-5)

    assert same == (each_config.type in ("bigram", "averaging", "bow"))


def test_the_first_loss_is_near_that_of_guessing(each_config, idx, generator):
    targets = torch.randint(VOCAB, idx.shape, generator=generator)
    if each_config.type == "context-mixing":  # which has learned from what it has read
        idx, targets = idx[:, :1], targets[:, :1]

    loss = next_token_loss(build_model(each_config, VOCAB)(idx), targets)

    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.05)


def read_on(model, text, sizes, state=None):
    """The logits at every position of a text that is read in pieces, and the last state."""
    state = model.start(len(text)) if state is None else state
    logits, at, turn = [], 0, itertools.cycle(sizes)
    while at < text.shape[1]:
        n = next(turn)
        some, state = model.go_on(text[:, at : at + n], state)
        logits.append(some)
        at += n
    return torch.cat(logits, dim=1), state


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [[1], [1, 2], [3], [5, 1, 1], [BLOCK, 1], [BLOCK + 3, 2]])
def test_however_a_text_is_cut_reading_on_gives_the_same_logits(model, generator, sizes):
    text = torch.randint(VOCAB, (2, 6 * BLOCK), generator=generator)
    expected, _ = model.go_on(text, model.start(2))

    found, _ = read_on(model, text, sizes)

    close(found, expected)
    close(model.read(text), expected)


def test_within_the_block_reading_on_gives_what_the_model_says(model, idx):
    for sizes in ([BLOCK], [1], [3, 2]):
        close(read_on(model, idx, sizes)[0], model(idx))
    assert torch.equal(model.read(idx), model(idx))


def test_a_step_gives_the_last_logits_of_reading_on(model, generator):
    text = torch.randint(VOCAB, (2, 3 * BLOCK), generator=generator)
    state = model.start(2)

    for first, last in [(0, 2 * BLOCK + 1), (2 * BLOCK + 1, 3 * BLOCK)]:
        found, state = model.step(text[:, first:last], state)
        close(found, model.read(text)[:, last - 1])


@pytest.mark.parametrize("length", [0, 3, 2 * BLOCK + 1])
def test_texts_that_go_on_from_one_read_as_if_each_were_alone(model, generator, length):
    start = torch.randint(VOCAB, (1, length), generator=generator)
    ends = torch.randint(VOCAB, (3, 2 * BLOCK), generator=generator)
    _, state = read_on(model, start, [2]) if length else (None, model.start(1))

    several = model.repeat(state, 3)
    found, _ = read_on(model, ends, [1, 4], several)

    whole = torch.cat([start.expand(3, -1), ends], dim=1)
    close(found, model.read(whole)[:, length:])
    close(read_on(model, ends[:1], [3], state)[0], found[:1])  # which stays usable


def test_a_state_of_several_tensors_is_repeated_row_by_row():
    state = (torch.arange(2.0)[None], torch.ones(1, 3, 4))

    one, other = BigramModel(VOCAB, BLOCK).repeat(state, 5)

    assert one.tolist() == [[0.0, 1.0]] * 5
    assert other.shape == (5, 3, 4)


def test_a_counted_model_remembers_no_more_than_it_looks_back_on(generator):
    text = torch.randint(VOCAB, (1, 10 * BLOCK), generator=generator)
    for name, kept in (("bigram", 0), ("ngram", 1)):  # and the character that is read next
        model = knowing(CONFIGS[name])
        assert model.go_on(text, model.start(1))[1].shape == (1, kept)


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
    }
    if tensor.is_floating_point():
        misfits["NaN or infinite"] = saved | {name: torch.full_like(tensor, math.nan)}

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


def test_no_text_at_all_has_no_logits(model):
    nothing = torch.empty(0, 3, dtype=torch.int64)

    assert model(nothing).shape == (0, 3, VOCAB)
    assert model.go_on(nothing, model.start(0))[0].shape == (0, 3, VOCAB)


@pytest.mark.parametrize("model", [GPT2, ModernGPT])
def test_heads_that_do_not_divide_the_channels_are_refused_at_once(model):
    with pytest.raises(ValueError, match="n_head 3 does not divide n_embd 8"):
        model(VOCAB, BLOCK, n_layer=1, n_head=3, n_embd=8)


def test_rotary_heads_of_odd_size_are_refused_at_once():
    with pytest.raises(ValueError, match="heads of 3 channels: rotary positions turn pairs"):
        ModernGPT(VOCAB, BLOCK, n_layer=1, n_head=2, n_embd=6)
