import math

import pytest
import torch
from torch.nn import functional as F

from charlm.config import load_config
from charlm.models import GPT2, ModernGPT, build_model
from charlm.models.modern import (
    RMSNorm,
    Rotary,
    SquaredReLU,
    norm,
    rotary_table,
    rotate,
    token_shift,
)
from tests.models.conftest import CONFIGS, VOCAB

NANOGPT_PARAMETERS = {"nanogpt-cpu": 804_096, "nanogpt-gpu": 10_745_088}


@pytest.mark.parametrize("preset", NANOGPT_PARAMETERS)
def test_the_recipes_have_as_many_parameters_as_nanogpts(preset):
    # By hand for nanogpt-cpu, V = 65, T = 64, C = 128: 65 C + 64 C + 4 (12 C^2 + 2 C) + C.
    config = load_config(preset).model
    with torch.device("meta"):
        model = build_model(config, vocab_size=65)

    assert sum(p.numel() for p in model.parameters()) == NANOGPT_PARAMETERS[preset]


def test_gpt2_starts_from_nanogpts_distributions():
    config = load_config("nanogpt-cpu").model
    model = build_model(config, vocab_size=65)
    into_residual = 0.02 / math.sqrt(2 * 4)

    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            residual = name.endswith(("projection.weight", "contract.weight"))
            expected = into_residual if residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.001, name


def test_gpt2_ties_its_head_to_its_embedding():
    model = build_model(CONFIGS["gpt2"], VOCAB)
    assert isinstance(model, GPT2)
    idx = torch.tensor([[1, 2, 3]])
    before = model(idx)

    with torch.no_grad():
        model.token_embedding.weight[7, 0] += 1  # a character that is not in the input
    after = model(idx)

    assert not torch.allclose(before[..., 7], after[..., 7])
    assert torch.equal(before[..., 6], after[..., 6])


def test_the_modern_style_first_predicts_exactly_uniformly():
    model = build_model(CONFIGS["modern"], VOCAB)
    assert isinstance(model, ModernGPT)

    assert torch.equal(model(torch.tensor([[1, 2, 3]])), torch.zeros(1, 3, VOCAB))


def test_the_squared_relu_and_its_gradient_equal_autograds(generator):
    x = torch.randn(4, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad((x.relu().square() * weight).sum(), x)

    y = SquaredReLU.apply(x)
    (found,) = torch.autograd.grad((y * weight).sum(), x)

    assert torch.equal(y, x.relu().square())
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(SquaredReLU.apply, x)


def test_the_norm_and_its_gradient_equal_autograds(generator):
    x = torch.randn(4, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad((F.rms_norm(x, (9,)) * weight).sum(), x)

    (found,) = torch.autograd.grad((norm(x) * weight).sum(), x)

    torch.testing.assert_close(norm(x), F.rms_norm(x, (9,)))
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(RMSNorm.apply, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_nothing_is_nothing_and_keeps_its_type(dtype):
    x = torch.zeros(2, 4, dtype=dtype, requires_grad=True)

    norm(x).sum().backward()

    assert torch.equal(norm(x), x)
    assert norm(x).dtype == x.grad.dtype == dtype
    assert x.grad.isfinite().all()


def test_the_norm_of_bfloat16_is_worked_out_in_single_precision(generator):
    x = torch.randn(4, 512, generator=generator).bfloat16()

    assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_turning_back_is_the_gradient_of_turning(generator):
    x = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    table = rotary_table(5, 8).double()

    assert torch.equal(Rotary.apply(x, table), rotate(x, table))
    assert torch.autograd.gradcheck(lambda x: Rotary.apply(x, table), x)


def test_a_rotary_product_depends_on_the_distance_only(generator):
    table = rotary_table(16, 8)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator).expand(1, 1, 16, 8) for _ in range(2))
    products = (rotate(q, table) @ rotate(k, table).transpose(-2, -1))[0, 0]

    for distance in range(16):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert not torch.allclose(products[0, 0], products[5, 0])


def test_rotation_keeps_lengths(generator):
    x = torch.randn(2, 3, 16, 8, generator=generator)

    turned = rotate(x, rotary_table(16, 8))

    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])  # position 0 is not turned


@pytest.mark.parametrize("style", ["gpt2", "modern"])
def test_dropout_is_drawn_in_training_only(style):
    config = CONFIGS[style].model_copy(update={"dropout": 0.5})
    model = build_model(config, VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    idx = torch.tensor([[1, 2, 3, 4]])

    torch.manual_seed(0)
    first, second = model(idx), model(idx)
    model.eval()

    assert not torch.allclose(first, second)
    assert torch.equal(model(idx), model(idx))


def test_half_of_the_channels_come_from_the_character_before():
    x = torch.arange(1.0, 13.0).view(1, 3, 4)

    expected = [[1, 2, 0, 0], [5, 6, 3, 4], [9, 10, 7, 8]]
    assert token_shift(x)[0].tolist() == expected
    assert token_shift(x[:, :1])[0].tolist() == expected[:1]
