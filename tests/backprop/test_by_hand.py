"""Whole models: the loss and the gradients by hand beside those of autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from charlm.backprop.by_hand import ByHand, program_for
from charlm.backprop.cases import Draw
from charlm.backprop.check import SMALL_MODELS, check_model
from charlm.config import (
    AttentionConfig,
    AveragingConfig,
    BigramConfig,
    GPTConfig,
    MultiHeadConfig,
)
from charlm.errors import UsageError
from charlm.models import LanguageModel, build_model, next_token_loss
from charlm.models.device import precision

VOCAB = 11
CPU = torch.device("cpu")


def small(title, dtype=torch.float64, **changes):
    """A small model of a kind, no weight of it zero."""
    config = SMALL_MODELS[title].model_copy(update=changes)
    model = build_model(config, VOCAB).to(dtype).train()
    draw = Draw(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draw.normal(*parameter.shape) * parameter.shape[-1] ** -0.5)
    return model


def windows(model, batch=3, length=None):
    draw = Draw(1)
    shape = batch, length or model.block_size
    return draw.ids(model.vocab_size, *shape), draw.ids(model.vocab_size, *shape)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def by_hand(model, *batch, share=1.0, seed=0):
    model.zero_grad()
    torch.manual_seed(seed)
    loss = ByHand(model)(*batch, share)
    return loss, gradients(model)


def by_autograd(model, idx, targets, seed=0):
    model.zero_grad()
    torch.manual_seed(seed)
    loss = next_token_loss(model(idx), targets)
    loss.backward()
    return loss.detach(), gradients(model)


def assert_close(found, expected, rtol=1e-10):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=rtol, atol=rtol, msg=name)


each_model = pytest.mark.parametrize("title", SMALL_MODELS)


@st.composite
def shapes(draw):
    """Draw the sizes of a model, its symbols, and the number and length of its windows.

    A norm over two channels in all is nearly a step, too steep for finite differences.
    """
    n_head = draw(st.integers(1, 3))
    sizes = {
        "n_layer": draw(st.integers(1, 2)),
        "n_head": n_head,
        "head_size": draw(st.sampled_from([2, 4])) if n_head > 1 else 4,
        "block_size": draw(st.integers(1, 6)),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
    }
    length = draw(st.integers(1, sizes["block_size"]))
    return sizes, draw(st.integers(1, 8)), draw(st.integers(1, 3)), length


def model_of(title, sizes, vocab):
    heads = {"n_head": sizes["n_head"], "n_embd": sizes["n_head"] * sizes["head_size"]}
    block = {"block_size": sizes["block_size"]}
    match title.split():
        case ["bigram"]:
            config = BigramConfig(type="bigram", **block)
        case ["averaging"]:
            config = AveragingConfig(type="averaging", n_embd=heads["n_embd"], **block)
        case ["attention"]:
            config = AttentionConfig(type="attention", n_embd=heads["n_embd"], **block)
        case ["multihead"]:
            config = MultiHeadConfig(type="multihead", **heads, **block)
        case ["gpt", style]:
            rest = {key: sizes[key] for key in ("n_layer", "dropout")}
            config = GPTConfig(type="gpt", style=style.strip("()"), **heads, **block, **rest)
        case [name]:
            small = SMALL_MODELS[name].model_copy(update={"dropout": sizes["dropout"], **block})
            layers = {"n_layer": sizes["n_layer"]} if hasattr(small, "n_layer") else {}
            config = small.model_copy(update=layers)
    return build_model(config, vocab)


@each_model
@settings(max_examples=6, derandomize=True)
@given(drawn=shapes())
def test_every_weight_has_the_gradient_of_autograd_and_of_finite_differences(title, drawn):
    sizes, vocab, batch, length = drawn
    model = model_of(title, sizes, vocab)

    for time in {1, length, sizes["block_size"]}:  # both ends, always
        for name, found in check_model(model, windows=batch, length=time, probes=1):
            assert found.autograd <= 1e-10, (name, time)
            assert found.finite <= 1e-6, (name, time)


@each_model
@pytest.mark.parametrize("length", [1, 3, 8])
def test_the_loss_is_that_of_the_model(title, length):
    model = small(title)
    idx, targets = windows(model, length=length)

    loss, found = by_hand(model, idx, targets)
    expected_loss, expected = by_autograd(model, idx, targets)

    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert_close(found, expected)


@each_model
def test_single_precision_is_as_close_as_it_can_be(title):
    model = small(title, torch.float32)
    batch = windows(model)

    loss, found = by_hand(model, *batch)
    expected_loss, expected = by_autograd(model, *batch)

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    for name, gradient in found.items():
        scale = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() <= 2e-5 * scale, name


@each_model
def test_the_first_weights_of_a_run_have_the_gradients_of_autograd_too(title):
    model = build_model(SMALL_MODELS[title], VOCAB).double().train()  # some of them zero
    batch = windows(model)

    assert_close(by_hand(model, *batch)[1], by_autograd(model, *batch)[1])


@each_model
def test_a_share_of_the_loss_has_that_share_of_the_gradient(title):
    model = small(title)
    batch = windows(model)

    whole, all_of_it = by_hand(model, *batch)
    share, part_of_it = by_hand(model, *batch, share=0.375)

    torch.testing.assert_close(share, 0.375 * whole)
    assert_close(part_of_it, {name: 0.375 * gradient for name, gradient in all_of_it.items()})


@each_model
def test_calling_it_again_adds(title):
    has_dropout = "dropout" in type(SMALL_MODELS[title]).model_fields
    model = small(title, dropout=0.0) if has_dropout else small(title)
    idx, targets = windows(model, batch=4)
    whole, expected = by_hand(model, idx, targets)

    model.zero_grad()
    accumulate = ByHand(model)
    losses = [accumulate(idx[rows], targets[rows], 0.5) for rows in (slice(2), slice(2, 4))]

    torch.testing.assert_close(sum(losses), whole)
    assert_close(gradients(model), expected)


OPTIONS = {
    "gpt (gpt2)": [{"bias": True}, {"bias": True, "gelu": "tanh", "tied": False, "dropout": 0.2}],
    "gpt (modern)": [{"token_shift": False}],
}


@pytest.mark.parametrize(
    ("title", "options"), [(title, one) for title, many in OPTIONS.items() for one in many]
)
def test_with_options_too_every_weight_has_its_gradient(title, options):
    config = SMALL_MODELS[title].model_copy(update=options)

    for name, found in check_model(build_model(config, VOCAB), probes=1):
        assert found.passed, (name, found)


def test_it_adds_to_what_autograd_left():
    model = small("gpt (gpt2)")
    batch = windows(model)
    _, once = by_hand(model, *batch)

    by_autograd(model, *batch)
    torch.manual_seed(0)
    ByHand(model)(*batch)

    assert_close(gradients(model), {name: 2 * gradient for name, gradient in once.items()})


@each_model
def test_a_gradient_has_memory_of_its_own(title):
    model = small(title)
    _, found = by_hand(model, *windows(model))

    places = [gradient.untyped_storage().data_ptr() for gradient in found.values()]
    assert len(set(places)) == len(places)
    for name, parameter in model.named_parameters():
        assert found[name].shape == parameter.shape
        assert found[name].stride() == parameter.stride(), name


@each_model
def test_the_weights_stay_as_they_are(title):
    model = small(title)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    by_hand(model, *windows(model))

    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name])


@each_model
def test_it_needs_no_autograd_and_none_of_the_models_own_code(title, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("this was to be done by hand")

    model = small(title)
    batch = windows(model)
    _, expected = by_autograd(model, *batch)
    model.zero_grad()
    for place in (torch.Tensor, torch.autograd):
        monkeypatch.setattr(place, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    torch.manual_seed(0)

    # Nothing is remembered for a backward pass of autograd's either.
    with torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
        loss = ByHand(model)(*batch)

    assert_close(gradients(model), expected)
    for tensor in (loss, *gradients(model).values()):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


def test_the_tied_table_gets_the_gradients_of_both_its_uses():
    model = small("gpt (gpt2)", dropout=0.0)
    idx, targets = windows(model)
    read, written = (model.token_embedding.weight.detach().clone().requires_grad_() for _ in "ab")
    x = F.embedding(idx, read) + model.position_embedding(torch.arange(idx.shape[1]))
    for block in model.blocks:
        x = block(x)
    loss = next_token_loss(F.linear(model.final_norm(x), written), targets)
    parts = torch.autograd.grad(loss, (read, written))

    _, found = by_hand(model, idx, targets)

    assert min(part.abs().max() for part in parts) > 1e-2  # neither would go unnoticed
    torch.testing.assert_close(found["token_embedding.weight"], sum(parts), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("title", ["attention", "multihead", "gpt (gpt2)"])
def test_a_position_that_was_not_read_gets_zero(title):
    model = small(title)

    _, found = by_hand(model, *windows(model, length=5))

    rows = found["position_embedding.weight"].abs().sum(1)
    assert (rows[:5] > 0).all()
    assert rows[5:].tolist() == [0, 0, 0]


@each_model
def test_a_character_that_was_neither_read_nor_expected_counts_only_as_an_answer(title):
    model = small(title)
    idx, targets = (ids.clamp(max=8) for ids in windows(model))  # no 9, no 10

    _, found = by_hand(model, idx, targets)

    table = "table.weight" if title == "bigram" else "token_embedding.weight"
    rows = found[table].abs().sum(1)
    tied = title in ("gpt (gpt2)", "lstm")
    assert (rows[9:] > 0).all() if tied else rows[9:].tolist() == [0, 0]


@pytest.mark.parametrize("title", ["gpt (gpt2)", "gpt (modern)"])
def test_a_seed_drops_what_it_drops_with_autograd(title):
    model = small(title, dropout=0.4)
    batch = windows(model)

    one, same, other = (by_hand(model, *batch, seed=seed) for seed in (5, 5, 6))

    assert torch.equal(one[0], same[0])
    assert not torch.isclose(one[0], other[0], rtol=1e-3)
    for (loss, found), seed in ((one, 5), (other, 6)):
        expected_loss, expected = by_autograd(model, *batch, seed=seed)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
        assert_close(found, expected)


@each_model
def test_bfloat16_leaves_gradients_in_single_precision_close_to_those_of_all_single(title):
    model = small(title, torch.float32, **({"dropout": 0.0} if "gpt" in title else {}))
    batch = windows(model)
    _, expected = by_hand(model, *batch)

    with precision(CPU, torch.bfloat16):
        _, found = by_hand(model, *batch)

    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 0.08, name
        assert title == "bigram" or error > 1e-5, name  # products did run in bfloat16


@each_model
def test_the_loss_in_bfloat16_is_a_number_in_single_precision(title):
    model = small(title, torch.float32)
    batch = windows(model)

    with precision(CPU, torch.bfloat16):
        loss, _ = by_hand(model, *batch)
        torch.manual_seed(0)
        logits = model(batch[0])
    expected = next_token_loss(logits.float(), batch[1]).detach()

    assert loss.dtype == torch.float32
    assert loss != loss.bfloat16()  # and not one that was rounded on the way
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=0)


def test_a_kind_of_model_without_a_program_is_named():
    class Novelty(LanguageModel):
        pass

    for make in (program_for, ByHand):
        with pytest.raises(UsageError, match="model 'Novelty' has no gradients by hand"):
            make(Novelty(VOCAB, 8))


@each_model
def test_a_program_begins_with_every_weight_and_table_of_its_model(title):
    model = small(title)
    program = program_for(model)

    names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    assert program.inputs == [*names, "idx", "positions", "targets"]
    used = {name for step in program for name in step.inputs}
    assert {name for name, _ in model.named_parameters()} <= used


@each_model
def test_the_models_that_are_checked_have_gradients_to_see(title):
    model = build_model(SMALL_MODELS[title], VOCAB)
    list(check_model(model, probes=0))

    _, found = by_autograd(model, *windows(model))

    largest = {name: gradient.abs().max().item() for name, gradient in found.items()}
    assert min(largest.values()) > 1e-3, largest


def test_rows_of_n_grams_that_were_taken_over_are_found_by_their_numbering():
    other = small("gpt (modern)", n_gram=3)
    model = build_model(SMALL_MODELS["gpt (modern)"].model_copy(update={"n_gram": 3}), 5).double()
    program = ByHand(model)  # made before the weights come, as in a run
    model.take_over(other, torch.tensor([2, 4, -1, 7, 9]))
    batch = windows(model)
    torch.manual_seed(0)

    loss = program(*batch, 1.0)

    found = gradients(model)
    expected_loss, expected = by_autograd(model, *batch)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(found, expected)
