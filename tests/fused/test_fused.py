"""The fused form of a GPT's step against the lessons' form."""

import numpy as np
import pytest
import torch

from charlm.fused.blocks import fused_forward
from charlm.fused.dropout import dropout
from charlm.fused.numbers import array
from charlm.models import GPT2, BigramModel, ModernGPT, next_token_loss
from charlm.models.device import precision


def make(kind, length, n_embd=12, n_head=2, **sizes):
    """Build a model whose weights are all far from zero, so that every gradient is."""
    generator = torch.Generator().manual_seed(1)
    model = kind(11, length, n_layer=2, n_head=n_head, n_embd=n_embd, **sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.train()


def loss_and_gradients(model, forward, dtype, windows=3, length=None):
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(11, (windows, (length or model.block_size) + 1), generator=generator)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)  # n-grams are dropped at random
    with precision(model.device, dtype):
        logits = forward(text[:, :-1])
    assert logits.dtype is dtype
    loss = next_token_loss(logits.float(), text[:, 1:])
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


CASES = {
    "modern": (ModernGPT, 7, {}),
    "modern with n-grams": (ModernGPT, 7, {"n_gram": 3}),
    "modern, three channels a half": (ModernGPT, 5, {"n_embd": 6, "n_head": 1}),
    "modern, no shift": (ModernGPT, 7, {"token_shift": False}),
    "modern, one character": (ModernGPT, 1, {}),
    "modern, long windows": (ModernGPT, 140, {}),
    "gpt2": (GPT2, 7, {}),
    "gpt2, a head of its own": (GPT2, 7, {"tied": False}),
    "gpt2, one character": (GPT2, 1, {}),
    "gpt2, long windows": (GPT2, 140, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_in_float32_loss_and_every_gradient_are_those_of_the_lesson(case):
    kind, length, sizes = CASES[case]
    model = make(kind, length, **sizes)

    loss, gradients = loss_and_gradients(model, fused_forward(model), torch.float32)
    expected, plain = loss_and_gradients(model, model, torch.float32)

    torch.testing.assert_close(loss, expected)
    for name, gradient in gradients.items():
        assert plain[name].norm() > 0 or length == 1, name
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", ["modern with n-grams", "gpt2"])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_lesson(case):
    kind, _, sizes = CASES[case]
    model = make(kind, 20, n_embd=32, **{k: v for k, v in sizes.items() if k == "n_gram"})

    _, truth = loss_and_gradients(model, model, torch.float32)
    _, plain = loss_and_gradients(model, model, torch.bfloat16)
    _, fused = loss_and_gradients(model, fused_forward(model), torch.bfloat16)

    def distance(gradients):
        return sum(float((gradients[n] - truth[n]).norm() / truth[n].norm()) for n in truth)

    assert 0 < distance(fused) < 1.1 * distance(plain)


@pytest.mark.parametrize("kind", [ModernGPT, GPT2])
def test_a_window_may_be_shorter_than_the_longest(kind):
    model = make(kind, 9)

    loss, _ = loss_and_gradients(model, fused_forward(model), torch.float32, length=4)
    expected, _ = loss_and_gradients(model, model, torch.float32, length=4)

    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="10"):
        fused_forward(model)(torch.zeros(1, 10, dtype=torch.int64))


@pytest.mark.parametrize("kind", [ModernGPT, GPT2])
def test_with_the_same_numbers_dropped_it_is_the_lesson(kind, monkeypatch):
    model = make(kind, 7, dropout=0.3)
    torch.manual_seed(5)
    seeds = iter(torch.randint(2**32, (7,)).tolist())  # of the embedding, and three a block

    def drop(x, p, training=True, inplace=False):
        ones = torch.ones(x.numel() // x.shape[-1], x.shape[-1])
        dropout(array(ones), array(ones), np.uint32(next(seeds)), np.uint32(round(p * 2**32)))
        return x * ones.view(x.shape)

    def from_the_same_seed(idx):
        torch.manual_seed(5)
        return fused_forward(model)(idx)

    loss, gradients = loss_and_gradients(model, from_the_same_seed, torch.float32)
    monkeypatch.setattr(torch.nn.functional, "dropout", drop)
    expected, plain = loss_and_gradients(model, model, torch.float32)

    torch.testing.assert_close(loss, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6, msg=name)
    assert next(seeds, None) is None


@pytest.mark.parametrize("length", [7, 140])  # in long windows, torch drops the weights
def test_dropout_follows_torchs_seed_and_is_off_in_evaluation(length):
    model = make(ModernGPT, length, dropout=0.5)
    idx = torch.randint(11, (2, length), generator=torch.Generator().manual_seed(1))

    def logits(seed):
        torch.manual_seed(seed)
        return fused_forward(model)(idx).detach()

    assert torch.equal(logits(1), logits(1))
    assert not torch.allclose(logits(1), logits(2))
    model.eval()
    torch.testing.assert_close(logits(1), model(idx).detach())


def test_the_tape_is_used_up_by_the_way_back():
    """What a layer kept is free as soon as its gradient is known."""
    fused = fused_forward(make(ModernGPT, 8))
    x = torch.randn(2, 8, 12)
    with torch.no_grad():
        out, tape = fused.run(x, iter(fused.weights), torch.float32)
        assert len(tape) > 10

        fused.run_back(torch.ones_like(out), tape)
    assert tape == []


def test_a_broken_weight_makes_the_loss_nan():
    for kind in (ModernGPT, GPT2):
        model = make(kind, 8)
        with torch.no_grad():
            model.blocks[0].attention.qkv.weight[0, 0] = torch.nan
        loss, _ = loss_and_gradients(model, fused_forward(model), torch.float32)
        assert loss.isnan()


def test_models_without_a_fused_form_have_none():
    assert fused_forward(BigramModel(11, 8)) is None
    assert fused_forward(make(GPT2, 8)) is not None
    for options in ({"bias": True}, {"gelu": "tanh"}):
        assert fused_forward(make(GPT2, 8, **options)) is None
