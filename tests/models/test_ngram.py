import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.config import NGramConfig
from charlm.models import BigramModel, NGramModel, build_model, next_token_loss, surprisal
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import smooth
from charlm.runs.weights import load_tensors, save_tensors
from charlm.text.tokens import IdArray

METHODS = ("kneser-ney", "witten-bell", "add-k")
LESSON = "In the beginning was the pair, and the pair was counted. "


def fit(text, vocab_size, order, method="kneser-ney", **options):
    counts = count_ngrams(IdArray(np.array(text)), vocab_size, order)
    model = NGramModel(vocab_size, 8, order, backs_off=method != "add-k")
    model.set_tables(smooth(counts, method, **options))
    return model


def encode(text):
    alphabet = sorted(set(text))
    return np.array([alphabet.index(c) for c in text]), len(alphabet)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(st.data(), st.integers(1, 6), st.integers(1, 9), st.integers(1, 2))
def test_looking_one_probability_up_agrees_with_the_whole_distribution(
    method, data, order, vocab_size, min_count
):
    symbol = st.integers(0, vocab_size - 1)
    model = fit(
        data.draw(st.lists(symbol, min_size=1, max_size=50)),
        vocab_size,
        order,
        method,
        min_count=min_count,
    )
    batch = torch.tensor(data.draw(st.lists(st.lists(symbol, min_size=7, max_size=7), min_size=1)))
    idx, targets = batch, batch.roll(2, dims=1)

    whole = model(idx).log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]

    torch.testing.assert_close(model.log_probability(idx, targets), whole, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(surprisal(model, idx, targets), -whole, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("min_count", [1, 3])
def test_after_k_characters_it_predicts_what_a_model_of_order_k_plus_1_does(
    method, min_count, generator
):
    text = torch.randint(4, (300,), generator=generator).numpy() * 2 % 7
    windows = torch.randint(7, (40, 9), generator=generator)  # some contexts are unknown
    targets = windows.roll(-1, dims=1)
    model = fit(text, 7, 6, method, min_count=min_count)
    found, looked_up = model(windows), model.log_probability(windows, targets)
    pieces, state = [], model.start(40)
    for part in windows.split([1, 3, 1, 4], dim=1):
        logits, state = model.go_on(part, state)
        pieces.append(logits)

    torch.testing.assert_close(torch.cat(pieces, dim=1), found)
    for k in range(1, 9):
        alone = fit(text, 7, min(k + 1, 6), method, min_count=min_count)(windows)[:, k - 1]
        torch.testing.assert_close(found[:, k - 1], alone, atol=1e-6, rtol=0)
        alone = alone.gather(1, targets[:, k - 1 : k])[:, 0]
        torch.testing.assert_close(looked_up[:, k - 1], alone, atol=1e-6, rtol=0)


def test_tables_without_shares_for_a_beginning_answer_as_they_did(generator):
    text = torch.randint(4, (300,), generator=generator).numpy()
    model, idx = fit(text, 4, 4), torch.randint(4, (2, 9), generator=generator)
    older = {n: t if t.dim() == 1 else t[0].clone() for n, t in model.state_dict().items()}

    other = NGramModel(4, 8, 4)
    other.load_state_dict(older)

    assert all(torch.equal(other.state_dict()[name], t) for name, t in older.items())
    torch.testing.assert_close(other(idx)[:, 2:], model(idx)[:, 2:])
    assert not torch.allclose(other(idx)[:, :2], model(idx)[:, :2], atol=1e-3)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_it_looks_back_as_far_as_its_memory_and_no_further(method, order, generator):
    text = torch.randint(4, (3000,), generator=generator).numpy()
    model = fit(text, 4, order, method)
    idx = torch.randint(4, (1, 9), generator=generator)
    assert model.memory == order - 1

    for back in range(1, 9):  # the character that stands `back` places before the predicted one
        changed = idx.clone()
        changed[0, -back] = (changed[0, -back] + 1) % 4
        same = torch.equal(model(changed)[0, -1], model(idx)[0, -1])
        assert same == (back > model.memory)


def test_order_2_with_one_added_is_the_counted_bigram():
    ids, vocab_size = encode(LESSON * 3)
    table = np.ones((vocab_size, vocab_size))
    for pair in pairwise(ids):
        table[pair] += 1

    model = fit(ids, vocab_size, 2, "add-k", k=1.0)

    found = model(torch.arange(vocab_size)[None])[0].double().exp()
    torch.testing.assert_close(found.numpy(), table / table.sum(axis=1, keepdims=True))


def test_gradient_descent_on_the_bigram_table_meets_it():
    ids, vocab_size = encode(LESSON)
    x, y = torch.from_numpy(ids[:-1])[None], torch.from_numpy(ids[1:])[None]
    # What is added must go: descent knows the counts of the text alone.
    counted = fit(ids, vocab_size, 2, "add-k", k=1e-6)
    model = BigramModel(vocab_size, len(ids))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        next_token_loss(model(x), y).backward()
        optimizer.step()

    torch.testing.assert_close(
        model(x).detach().softmax(dim=-1), counted(x).exp(), atol=2e-3, rtol=0
    )
    trained = next_token_loss(model(x), y).item()
    assert trained == pytest.approx(next_token_loss(counted(x), y).item(), abs=2e-3)


def test_before_it_is_fitted_every_character_is_equally_likely():
    config = NGramConfig(type="ngram", order=3)

    model, idx = build_model(config, 5), torch.tensor([[0, 1, 2, 3]])

    torch.testing.assert_close(model(idx), torch.full((1, 4, 5), -math.log(5)))
    torch.testing.assert_close(model.log_probability(idx, idx), torch.full((1, 4), -math.log(5)))


@pytest.mark.parametrize("method", METHODS)
def test_tables_come_back_from_a_file_bit_for_bit(method, tmp_path, generator):
    text = torch.randint(7, (500,), generator=generator).numpy()
    model = fit(text, 7, 4, method, min_count=2)
    idx = torch.randint(7, (2, 30), generator=generator)
    save_tensors(model.state_dict(), tmp_path / "model.safetensors")

    other = NGramModel(7, 8, 4, backs_off=method != "add-k")
    other.load_state_dict(load_tensors(tmp_path / "model.safetensors"))

    assert torch.equal(other(idx), model(idx))
    assert all(torch.equal(other.state_dict()[name], t) for name, t in model.state_dict().items())


DAMAGES = {
    "keys_2 is missing": lambda t: t.pop("keys_2"),
    "keys_4 belongs to another model": lambda t: t.update(keys_4=t["keys_2"]),
    "keys_1 is .6,. torch.int64, expected .7,. torch.int64; was": lambda t: t.update(
        keys_1=t["keys_1"][:-1], share_1=t["share_1"][:-1]
    ),
    "keys_1 is .. torch.int64": lambda t: t.update(keys_1=t["keys_1"][0]),
    "share_2 is .*, expected .2, [0-9]+. torch.float32": lambda t: t.update(
        share_2=t["share_2"][:, 1:]
    ),
    "share_2 is .3, [0-9]+. torch.float32, expected .2, ": lambda t: t.update(
        share_2=torch.cat([t["share_2"], t["share_2"][:1]])
    ),
    "left_over_2 is .[0-9]+,. torch.float32, expected .2, ": lambda t: t.update(
        left_over_2=t["left_over_2"][0]
    ),
    "share_3 is .1, [0-9]+. torch.float32, expected .[0-9]+,.": lambda t: t.update(
        share_3=t["share_3"][None]
    ),
    "left_over_3 is ": lambda t: t.update(left_over_3=t["left_over_3"][1:]),
    "share_2 is .* torch.float64, expected": lambda t: t.update(share_2=t["share_2"].double()),
    "keys_3 are not increasing": lambda t: t.update(keys_3=t["keys_3"].flip(0)),
    "keys_2 are not increasing": lambda t: t["keys_2"].__setitem__(-1, 7 * 7),
    "keys_1 are not increasing": lambda t: t["keys_1"].__setitem__(0, -1),
    "share_3 and left_over_3 are not prob": lambda t: t["share_3"].__setitem__(0, 0.99),
    "share_1 holds 1 value that is NaN": lambda t: t["share_1"][1].__setitem__(0, float("nan")),
    "share_2 and left_over_2 are not prob": lambda t: (
        t["share_2"][1, :2].copy_(torch.tensor([-0.5, t["share_2"][1, :2].sum() + 0.5]))
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_tables_are_refused_and_the_model_stays_what_it_was(message, generator):
    text = torch.randint(7, (500,), generator=generator).numpy()
    tensors = {name: tensor.clone() for name, tensor in fit(text, 7, 3).state_dict().items()}
    model = NGramModel(7, 8, 3)
    model.load_state_dict(tensors)
    before = model.state_dict()
    broken = {name: tensor.clone() for name, tensor in tensors.items()}
    DAMAGES[message](broken)

    with pytest.raises(ValueError, match=message):
        model.load_state_dict(broken)

    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
