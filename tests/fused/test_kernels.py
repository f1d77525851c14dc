"""Each kernel of a training step against the same computation in plain torch."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from charlm.fused import activation, attention, dropout, heads, norms
from charlm.fused.numbers import array
from charlm.models.kernel import share_threads
from charlm.models.modern import norm, rotary_table, rotate, token_shift

B, T, H, D = 3, 7, 2, 6
N, C = B * T, 11
LN_EPS = np.float32(1e-5)
KINDS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SEED, NONE, FIFTH = np.uint32(7), np.uint32(0), np.uint32(0.2 * 2**32)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    share_threads()


def close(got, expected, dtype):
    rtol, atol = (1e-4, 2e-6) if dtype == torch.float32 else (1.6e-2, 1e-2)
    torch.testing.assert_close(got.float(), expected.float(), rtol=rtol, atol=atol)


def call(kernel, *arguments):
    kernel(*(array(a) if isinstance(a, torch.Tensor) else a for a in arguments))


def mask(n, c, seed=SEED, threshold=FIFTH):
    """Return what dropout multiplies each number of (N, C) by."""
    out = torch.empty(n, c)
    call(dropout.dropout, torch.ones(n, c), out, seed, threshold)
    return out


def softmax(scores, factor):
    hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
    return (scores.float() * factor).masked_fill(hidden, -math.inf).softmax(-1)


def run_softmax(scores, factor=0.3, threshold=NONE):
    weights, scratch = scores.clone(), torch.empty(scores.shape[:2])
    dropped = torch.empty_like(scores) if threshold else scores.new_empty(0, 0, 0)
    factor = np.float32(factor * math.log2(math.e))
    call(attention.causal_softmax, weights, scratch, factor, dropped, SEED, threshold)
    return weights, dropped


@KINDS
@pytest.mark.parametrize("threshold", [NONE, FIFTH], ids=["", "dropout"])
@pytest.mark.parametrize("shifted", [True, False])
def test_rms_norm(dtype, threshold, shifted):
    x, branch = torch.randn(N, C), torch.randn(N, C).to(dtype)
    own = (C + 1) // 2 if shifted else C
    total, out, scale = torch.empty(N, C), torch.empty(N, C, dtype=dtype), torch.empty(N)
    call(norms.add_rms_norm, x, branch, total, out, scale, T, own, SEED, threshold)
    kept = mask(N, C) if threshold else torch.ones(N, C)
    plain = (x + kept * branch.float()).requires_grad_()
    expected = norm(plain)
    if shifted:
        expected = token_shift(expected.view(B, T, C)).view(N, C)
    torch.testing.assert_close(total, plain.detach())
    close(out, expected.detach(), dtype)

    d_out, gradient = torch.randn(N, C).to(dtype), torch.randn(N, C)
    expected.backward(d_out.float())
    so_far, low = gradient.clone(), torch.empty(N, C, dtype=dtype)
    call(norms.rms_norm_backward, d_out, total, scale, gradient, low, T, own, SEED, threshold)
    close(gradient, so_far + plain.grad, torch.float32)
    close(low, kept * gradient, dtype)


@KINDS
@pytest.mark.parametrize("threshold", [NONE, FIFTH], ids=["", "dropout"])
def test_layer_norm(dtype, threshold):
    x, branch, gain = torch.randn(N, C), torch.randn(N, C).to(dtype), torch.randn(C)
    total, out = torch.empty(N, C), torch.empty(N, C, dtype=dtype)
    mean, scale = torch.empty(N), torch.empty(N)
    arrays = (x, branch, total, gain, out, mean, scale)
    call(norms.add_layer_norm, *arrays, LN_EPS, SEED, threshold)
    kept = mask(N, C) if threshold else torch.ones(N, C)
    plain, weight = (x + kept * branch.float()).requires_grad_(), gain.clone().requires_grad_()
    expected = F.layer_norm(plain, (C,), weight)
    close(out, expected.detach(), dtype)

    d_out, gradient = torch.randn(N, C).to(dtype), torch.randn(N, C)
    expected.backward(d_out.float())
    so_far, low, d_gains = gradient.clone(), torch.empty(N, C, dtype=dtype), torch.empty(4, C)
    arrays = (d_out, total, gain, mean, scale, gradient, low, d_gains)
    call(norms.layer_norm_backward, *arrays, SEED, threshold)
    close(gradient, so_far + plain.grad, torch.float32)
    close(low, kept * gradient, dtype)
    close(d_gains.sum(0), weight.grad, torch.float32)


def test_a_first_norm_has_no_branch():
    x, none = torch.randn(N, C), torch.empty(0, C)
    total, out, scale = torch.empty(N, C), torch.empty(N, C), torch.empty(N)
    call(norms.add_rms_norm, x, none, total, out, scale, T, C, SEED, FIFTH)
    assert torch.equal(total, x)
    close(out, norm(x), torch.float32)


@KINDS
def test_heads(dtype):
    qkv, table = torch.randn(N, 3 * H * D).to(dtype), rotary_table(T, D)
    query, key, value = (torch.empty(B, H, T, D, dtype=dtype) for _ in range(3))
    scale = torch.empty(2, N, H)
    call(heads.split_heads, qkv, table, query, key, value, scale)
    plain = qkv.float().clone().requires_grad_()
    q, k, v = plain.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
    expected = rotate(norm(q), table), rotate(norm(k), table), v
    for got, want in zip((query, key, value), expected, strict=True):
        close(got, want.detach(), dtype)

    gradients = [torch.randn(B, H, T, D).to(dtype) for _ in range(3)]
    torch.autograd.backward(expected, [g.float() for g in gradients])
    d_qkv = torch.empty(N, 3 * H * D, dtype=dtype)
    call(heads.join_heads, *gradients, query, key, table, scale, d_qkv)
    torch.testing.assert_close(
        d_qkv.float(), plain.grad, rtol=2e-2, atol=1e-5 if dtype == torch.float32 else 5e-2
    )


@KINDS
@pytest.mark.parametrize("threshold", [NONE, FIFTH], ids=["", "dropout"])
@pytest.mark.parametrize("length", [1, 5, 64, 67])
def test_softmax(dtype, threshold, length):
    scores = 5 * torch.randn(2, length, length).to(dtype)
    weights, dropped = run_softmax(scores, threshold=threshold)
    plain = scores.float().clone().requires_grad_()
    expected = softmax(plain, 0.3)
    kept = mask(2 * length, length).view(2, length, length) if threshold else 1
    close(weights, expected.detach(), dtype)
    if threshold:
        close(dropped, (kept * expected).detach(), dtype)

    gradient = torch.randn(2, length, length).to(dtype)
    (kept * expected).backward(gradient.float())
    read = dropped if threshold else weights
    call(attention.causal_softmax_backward, weights, read, gradient, np.float32(0.3))
    close(gradient, plain.grad, dtype)


def test_weights_of_scores_far_apart_are_exactly_zero_or_one():
    scores = torch.full((1, 3, 3), -1e30)
    scores[0, :, 0] = 1e30
    weights, _ = run_softmax(scores)
    assert weights.tolist() == [[[1, 0, 0]] * 3]


@KINDS
def test_nan_and_infinity_reach_the_output(dtype):
    scores = torch.randn(1, 70, 70).to(dtype)
    scores[0, 3, 2], scores[0, 66, 65], scores[0, 9, 9] = math.nan, -math.nan, math.inf
    scores[0, 5, 20] = math.nan  # of a later position: hidden
    weights, _ = run_softmax(scores)
    assert weights.isnan().any(-1).nonzero()[:, 1].tolist() == [3, 9, 66]

    x = torch.zeros(N, C)
    x[4, 2], x[8, 1] = math.nan, math.inf
    total, out, scale = torch.empty(N, C), torch.empty(N, C, dtype=dtype), torch.empty(N)
    none = torch.empty(0, C, dtype=dtype)
    call(norms.add_rms_norm, x, none, total, out, scale, T, C, SEED, NONE)
    assert out.isnan().any(-1).nonzero().flatten().tolist() == [4, 8]
    hidden = torch.tensor([[math.nan, math.inf]]).to(dtype)
    call(activation.squared_relu, hidden)
    assert hidden[0, 1] == math.inf
    assert not hidden[0, 0].isfinite()


@KINDS
def test_squared_relu(dtype):
    x, gradient = torch.randn(N, C).to(dtype), torch.randn(N, C).to(dtype)
    plain, out = x.float().clone().requires_grad_(), x.clone()
    expected = F.relu(plain).square()
    expected.backward(gradient.float())
    call(activation.squared_relu, out)
    call(activation.squared_relu_backward, out, gradient)
    close(out, expected.detach(), dtype)
    close(gradient, plain.grad, dtype)


@KINDS
def test_gelu(dtype):
    x = torch.cat([torch.linspace(-15, 15, 4001), torch.tensor([0.0, 1e-30, 88, -88])]).to(dtype)
    slope, out, gradient = (
        x[None].clone(),
        torch.empty_like(x[None]),
        torch.randn(1, len(x)).to(dtype),
    )
    d_x = gradient.clone()
    call(activation.gelu, slope, out)
    call(activation.gelu_backward, slope, d_x)

    exact = x.double()
    # The last bit of Phi, where it is largest; of bfloat16, that of the result too.
    bound = 1.5e-7 * (1 + exact.abs())
    bound = bound if dtype == torch.float32 else bound + 2**-8 * F.gelu(exact).abs()
    assert (abs(out[0].double() - F.gelu(exact)) <= bound).all()
    close(out[0], F.gelu(x), dtype)
    close(d_x[0], torch.ops.aten.gelu_backward(gradient[0], x), dtype)


@KINDS
@pytest.mark.parametrize("parts", [1, 3])
def test_heads_apart_and_side_by_side(dtype, parts):
    x = torch.randn(B * T, parts * H * D).to(dtype)
    apart = [torch.empty(B, H, T, D, dtype=dtype) for _ in range(parts)]
    back = torch.empty_like(x)
    heads.to_heads(array(x), tuple(map(array, apart)))
    heads.from_heads(tuple(map(array, apart)), array(back))

    expected = x.view(B, T, parts, H, D).permute(2, 0, 3, 1, 4)
    assert torch.equal(torch.stack(apart), expected)
    assert torch.equal(back, x)


def test_rounding_is_that_of_torch():
    x = torch.randn(1000, 64) * torch.randn(1000, 64).exp() ** 9
    out = torch.empty(1000, 64, dtype=torch.bfloat16)
    call(dropout.dropout, x, out, SEED, NONE)
    assert torch.equal(out, x.bfloat16())


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(p):
    n, c = 1000, 256
    kept = mask(n, c, threshold=np.uint32(p * 2**32))
    assert kept.max() == pytest.approx(1 / (1 - p))
    deviation = math.sqrt(p * (1 - p) / (n * c))
    share = (kept == 0).float()
    assert abs(share.mean().item() - p) < 4 * deviation
    for axis, count in ((0, n), (1, c)):  # no column and no row is favoured
        spread = math.sqrt(p * (1 - p) / count)
        assert share.mean(axis).std().item() == pytest.approx(spread, rel=0.2)


def test_dropout_of_neighbours_and_of_other_seeds_is_independent():
    n, c = 1000, 256
    first = (mask(n, c) == 0).double() - 0.2
    others = [(mask(n, c, seed=np.uint32(s)) == 0).double() - 0.2 for s in (6, 8, 7 + 2**16, 9**9)]
    others += [first.roll(by, axis) for axis in (0, 1) for by in (1, 2, 3, 8)]
    for other in others:  # correlations of n * c pairs
        assert abs((first * other).mean().item() / 0.16) < 4 / math.sqrt(n * c)


def test_results_do_not_depend_on_the_number_of_threads():
    scores, found = torch.randn(8, 65, 65), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            share_threads()
            found.append(torch.stack(run_softmax(scores, threshold=FIFTH)))
    finally:
        torch.set_num_threads(before)
        share_threads()
    assert torch.equal(*found)
