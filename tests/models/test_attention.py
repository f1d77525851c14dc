import math

import pytest
import torch

from charlm.models import attend, attend_plainly, attention
from charlm.models.attention import Head, MultiHeadAttention

B, H, T, S, D = 2, 3, 5, 7, 4


def slowly(query, key, value, visible):
    """Attention as a loop over every number, for comparison only."""
    out = torch.zeros(*query.shape[:3], value.shape[-1])
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for t in range(query.shape[2]):
                seen = [s for s in range(key.shape[2]) if visible(t, s)]
                scores = [float(query[b, h, t] @ key[b, h, s]) / math.sqrt(D) for s in seen]
                total = sum(math.exp(score) for score in scores)
                for s, score in zip(seen, scores, strict=True):
                    out[b, h, t] += math.exp(score) / total * value[b, h, s]
    return out


@pytest.fixture
def qkv(generator):
    return [torch.randn(B, H, n, D, generator=generator) for n in (T, S, S)]


@pytest.mark.parametrize("function", [attend, attend_plainly])
def test_causal_self_attention_equals_a_slow_double_loop(function, generator):
    q, k, v = (torch.randn(B, H, T, D, generator=generator) for _ in range(3))

    found = function(q, k, v, "causal")

    torch.testing.assert_close(found, slowly(q, k, v, lambda t, s: s <= t))


@pytest.mark.parametrize("function", [attend, attend_plainly])
def test_cross_attention_takes_keys_and_values_from_elsewhere(function, qkv):
    found = function(*qkv, None)

    torch.testing.assert_close(found, slowly(*qkv, lambda t, s: True))


@pytest.mark.parametrize("function", [attend, attend_plainly])
def test_a_mask_says_who_sees_whom(function, qkv):
    mask = torch.rand(T, S, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 0] = True  # everyone sees someone

    found = function(*qkv, mask)

    torch.testing.assert_close(found, slowly(*qkv, lambda t, s: bool(mask[t, s])))


def test_the_fused_kernel_equals_the_plain_form_with_gradients(generator, monkeypatch):
    monkeypatch.setattr(attention, "longest_plain", lambda value: 0)
    results = []
    inputs = [torch.randn(B, H, T, D, generator=generator) for _ in range(3)]
    for function in (attend, attend_plainly):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves, "causal")
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])

    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "length", "plain"),
    [
        (torch.float32, 128, True),
        (torch.float32, 129, False),
        (torch.bfloat16, 512, True),
        (torch.bfloat16, 513, False),
    ],
)
def test_short_contexts_are_trained_by_plain_products_on_a_cpu(dtype, length, plain, monkeypatch):
    called = []
    monkeypatch.setattr(attention, "attend_plainly", lambda *a: called.append(a) or a[2])
    q = torch.zeros(1, 1, length, D, dtype=dtype)

    attend(q, q, q, "causal")
    assert bool(called) == plain

    called.clear()
    with torch.no_grad():
        attend(q, q, q, "causal")
    assert not called


def test_dropped_weights_of_the_plain_form_leave_the_mean_as_it_is(generator):
    q, k, v = (torch.randn(1, 1, 4, D, generator=generator).expand(20_000, 1, 4, D) for _ in "qkv")
    torch.manual_seed(1)

    found = attend_plainly(q, k, v, "causal", 0.5)

    exact = attend_plainly(q[:1], k[:1], v[:1], "causal")
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(found.mean(0, keepdim=True), exact, atol=0.05, rtol=0)


def test_equal_keys_make_attention_the_average_of_the_past(generator):
    q = torch.randn(1, 1, T, D, generator=generator)
    v = torch.randn(1, 1, T, D, generator=generator)

    found = attend(q, torch.ones_like(q), v, "causal")

    for t in range(T):
        torch.testing.assert_close(found[0, 0, t], v[0, 0, : t + 1].mean(dim=0))


def test_one_head_of_many_equals_the_single_head(generator):
    many, one = MultiHeadAttention(D, 1), Head(D, D)
    with torch.no_grad():
        one.query.weight[:], one.key.weight[:], one.value.weight[:] = many.qkv.weight.chunk(3)
        many.projection.weight[:] = torch.eye(D)
    x = torch.randn(B, T, D, generator=generator)

    torch.testing.assert_close(many(x), one(x))


def test_each_head_has_channels_of_its_own(generator):
    attention = MultiHeadAttention(6, 3)
    with torch.no_grad():
        attention.projection.weight[:] = torch.eye(6)
        attention.qkv.weight[12:14] = 0  # the values of the first head
    x = torch.randn(B, T, 6, generator=generator)

    out = attention(x)

    assert torch.equal(out[..., :2], torch.zeros(B, T, 2))
    assert (out[..., 2:].abs() > 0).all()


def test_dropped_weights_change_training_and_not_evaluation(generator):
    attention = MultiHeadAttention(8, 2, dropout=0.5)
    x = torch.randn(B, T, 8, generator=generator)

    torch.manual_seed(0)
    first, second = attention(x), attention(x)
    attention.eval()

    assert not torch.allclose(first, second)
    assert torch.equal(attention(x), attention(x))
