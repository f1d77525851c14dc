"""What heads look at, against attention written as loops over single numbers."""

import math

import pytest
import torch

from charlm.models import build_model
from charlm.models.attention import Head
from charlm.models.looking import attention_weights, attentive
from charlm.models.modern import ROTARY_BASE, norm, token_shift
from tests.models.conftest import CONFIGS, VOCAB

ATTENTIVE = ["attention", "multihead", "gpt2", "modern", "modern, n-grams"]
T = 7


def built(name):
    model = build_model(CONFIGS[name], VOCAB, seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some begin as zeros
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(noise / math.sqrt(parameter.shape[-1]))
    return model


def what_layers_read(model, name, idx):
    """Yield each layer of attention and what it reads, (T, C)."""
    x = model.token_embedding(idx)
    if name in ("attention", "multihead", "gpt2"):
        x = x + model.position_embedding(torch.arange(idx.shape[1]))
    if name in ("attention", "multihead"):
        yield model.attention, x[0]
        return
    if name == "gpt2":
        for block in model.blocks:
            yield block.attention, block.attention_norm(x)[0]
            x = block(x)
        return
    if model.ngram_embedding is not None:
        x = x + model.ngram_embedding(idx, None)
    x = norm(x)
    for block in model.blocks:
        yield block.attention, token_shift(norm(x))[0]
        x = block(x)


def queries_and_keys(layer, x):
    """Return the query and the key of each head and position as lists of numbers, (H, T, D)."""
    if isinstance(layer, Head):
        return [(x @ layer.query.weight.T).tolist()], [(x @ layer.key.weight.T).tolist()]
    width = x.shape[1]
    size = width // layer.n_head
    found = []
    for first in (0, width):
        rows = layer.qkv.weight[first : first + width]
        heads = [rows[h * size : (h + 1) * size] for h in range(layer.n_head)]
        found.append([(x @ head.T).tolist() for head in heads])
    return found


def turned(vector, position):
    """Divide by the root of the mean square, then rotate pairs by position times a frequency."""
    half = len(vector) // 2
    length = math.sqrt(sum(v * v for v in vector) / len(vector))
    vector = [v / length for v in vector]
    out = [0.0] * len(vector)
    for i in range(half):
        angle = position * ROTARY_BASE ** (-2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = a * math.sin(angle) + b * math.cos(angle)
    return out


def slowly(queries, keys):
    """Return the weights of one head, number by number."""
    rows = []
    for t, query in enumerate(queries):
        scores = [
            sum(q * k for q, k in zip(query, keys[s], strict=True)) / math.sqrt(len(query))
            for s in range(t + 1)
        ]
        total = sum(math.exp(score) for score in scores)
        rows.append([math.exp(score) / total for score in scores] + [0.0] * (len(keys) - t - 1))
    return rows


@pytest.mark.parametrize("name", ATTENTIVE)
def test_weights_equal_loops_over_single_numbers(name):
    model = built(name)
    idx = torch.randint(VOCAB, (1, T), generator=torch.Generator().manual_seed(2))
    expected = []
    with torch.no_grad():
        for layer, x in what_layers_read(model, name, idx):
            queries, keys = queries_and_keys(layer, x)
            if name.startswith("modern"):
                queries, keys = (
                    [[turned(v, t) for t, v in enumerate(head)] for head in some]
                    for some in (queries, keys)
                )
            expected.append([slowly(q, k) for q, k in zip(queries, keys, strict=True)])

    found = attention_weights(model, idx[0])

    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_weights_of_a_position_do_not_depend_on_what_comes_later(name):
    model, idx = built(name), torch.arange(T)
    whole = attention_weights(model, idx)

    part = attention_weights(model, idx[:4])

    torch.testing.assert_close(whole[..., :4, :4], part)
    assert not whole.triu(1).any()
    torch.testing.assert_close(whole.sum(dim=-1), torch.ones(whole.shape[:-1]))


def test_no_hook_stays():
    model = built("gpt2")

    attention_weights(model, torch.arange(3))

    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_mixture_has_the_attention_of_its_experts():
    mixture = build_model(CONFIGS["mixture"], VOCAB)

    assert list(attentive(mixture)) == ["modern"]
    assert attentive(mixture)["modern"] is mixture.experts["modern"]
    assert attentive(build_model(CONFIGS["ngram"], VOCAB)) == {}
    assert list(attentive(build_model(CONFIGS["attention"], VOCAB))) == [""]
