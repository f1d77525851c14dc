"""Readers against the models they read for."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from charlm.config import GPTConfig
from charlm.models import build_model
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import smooth
from charlm.sampling import (
    Context,
    Settings,
    generate,
    gpt_kernels,
    gpt_numpy,
    gpt_reader,
    ngram_reader,
)
from charlm.sampling.choose import log_softmax
from charlm.sampling.reader import MixtureReader, StepReader, reader_of
from charlm.text.tokens import IdArray
from tests.models.conftest import BLOCK, CONFIGS, VOCAB
from tests.models.test_contract import knowing

LENGTH = 6 * BLOCK


@pytest.fixture(params=CONFIGS)
def model(request):
    return knowing(CONFIGS[request.param]).eval()


@pytest.mark.parametrize(
    "sizes", [[1], [3, 1], [1, 1, 2], [1, 1, 1, 3], [BLOCK + 2, 1, 1], [1, 2 * BLOCK]]
)
def test_a_reader_says_what_its_model_says_at_every_position(model, generator, sizes):
    text = torch.randint(VOCAB, (1, LENGTH), generator=generator)
    with torch.inference_mode():
        expected = model.read(text).log_softmax(-1)
    reader, at, turn = reader_of(model), 0, itertools.cycle(sizes)

    while at < LENGTH:
        n = next(turn)
        found = torch.from_numpy(reader.read(text[:, at : at + n].numpy())).float().log_softmax(-1)
        at = min(at + n, LENGTH)
        torch.testing.assert_close(found, expected[:, at - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("length", [1, BLOCK + 3])
def test_forks_go_on_from_what_was_read_as_if_each_were_alone(model, generator, several, length):
    start = torch.randint(VOCAB, (1, length), generator=generator)
    ends = torch.randint(VOCAB, (3, LENGTH), generator=generator)
    with torch.no_grad():
        whole = model.read(torch.cat([start.expand(3, -1), ends], dim=1)).log_softmax(-1)
    reader = reader_of(model, several=several)
    reader.read(start.numpy())

    for forked, rows in [(reader.fork(3), ends), (reader.fork(), ends[:1]), (reader, ends[2:])]:
        expected = whole[2:] if forked is reader else whole[: len(rows)]
        for at in range(LENGTH):
            found = torch.from_numpy(forked.read(rows[:, at : at + 1].numpy())).float()
            found = found.log_softmax(-1)
            torch.testing.assert_close(found, expected[:, length + at], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("smoothing", "order"),
    [("add-k", 3), ("add-k", 1), ("witten-bell", 4), ("kneser-ney", 1), ("kneser-ney", 5)],
)
def test_a_reader_of_counts_smooths_as_its_model_does(generator, smoothing, order):
    config = CONFIGS["ngram"].model_copy(update={"smoothing": smoothing, "order": order})
    model = build_model(config, VOCAB)  # of add-k, one that does not back off
    counted = torch.randint(VOCAB, (500,), generator=generator).numpy()
    model.set_tables(smooth(count_ngrams(IdArray(counted), VOCAB, order), smoothing))
    text = torch.randint(VOCAB, (1, 200), generator=generator)
    expected, reader = model.read(text), reader_of(model)

    for at in range(200):
        found = torch.from_numpy(reader.read(text[:, at : at + 1].numpy()))
        torch.testing.assert_close(found.float(), expected[:, at], atol=1e-5, rtol=1e-5)


def test_a_model_that_has_counted_nothing_guesses():
    reader = reader_of(build_model(CONFIGS["ngram"], VOCAB))

    np.testing.assert_allclose(reader.read(np.array([[3, 4, 5]])), np.log(1 / VOCAB), rtol=1e-6)


def test_distributions_that_are_kept_are_bounded_and_change_nothing(generator, monkeypatch):
    model = knowing(CONFIGS["ngram"])
    text = torch.randint(VOCAB, (1, 300), generator=generator).numpy()
    whole = reader_of(model)
    expected = [whole.read(text[:, at : at + 1]) for at in range(300)]
    monkeypatch.setattr(ngram_reader, "KEPT_BYTES", 5 * 8 * VOCAB)
    reader = reader_of(model)

    for at in range(300):
        assert np.array_equal(reader.read(text[:, at : at + 1]), expected[at])
        assert len(reader.kept) <= 5 + model.order


@pytest.mark.parametrize("combine", ["log-linear", "linear"])
def test_a_reader_of_a_mixture_joins_as_it_does(generator, combine):
    model = knowing(CONFIGS["mixture"].model_copy(update={"combine": combine})).eval()
    model.weights.copy_(torch.tensor([0.0, 0.7, 0.3]))
    model.temperature.fill_(0.8)
    text = torch.randint(VOCAB, (1, LENGTH), generator=generator)
    with torch.no_grad():
        expected = model.read(text).log_softmax(-1)
    reader = reader_of(model)

    for at in range(LENGTH):
        found = torch.from_numpy(reader.read(text[:, at : at + 1].numpy())).float().log_softmax(-1)
        torch.testing.assert_close(found, expected[:, at], atol=1e-5, rtol=1e-5)


def test_which_reader_a_model_gets():
    for name, kind in {
        "bigram": StepReader,
        "multihead": StepReader,
        "gpt2": gpt_reader.GPT2Reader,
        "gpt2, as others have it": gpt_reader.GPT2Reader,
        "modern": gpt_reader.ModernReader,
        "ngram": ngram_reader.NGramReader,
        "mixture": MixtureReader,
    }.items():
        model = build_model(CONFIGS[name], VOCAB).eval()
        assert type(reader_of(model)) is kind
        assert type(reader_of(model, several=True)) is StepReader


@pytest.mark.parametrize("style", ["gpt2", "modern"])
def test_int8_weights_say_nearly_the_same(style):
    """Each weight is off by half a step of 127 at most."""
    config = GPTConfig(type="gpt", style=style, block_size=16, n_layer=2, n_head=4, n_embd=64)
    model = knowing(config).eval()
    text = torch.randint(VOCAB, (1, 40), generator=torch.Generator().manual_seed(2)).numpy()
    exact, rounded = reader_of(model), reader_of(model, "int8")

    differences = [
        np.abs(log_softmax(exact.read(one)) - log_softmax(rounded.read(one))).max()
        for one in np.split(text, 40, axis=1)
    ]

    assert 0 < np.mean(differences) < 0.15


def test_a_product_with_int8_weights_is_that_of_the_rounded_matrix():
    weight = torch.randn(7, 12, generator=torch.Generator().manual_seed(3))
    weight[2] = 0
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    rounded = (weight / scale.clamp(min=1e-12)).round() * scale
    x = torch.randn(12, generator=torch.Generator().manual_seed(4)).bfloat16().float()

    product = gpt_numpy.int8_linear(weight)
    compiled = gpt_kernels.FastLinear(weight, "int8")

    expected = (rounded @ x).numpy()
    np.testing.assert_allclose(product(x.numpy()), expected, rtol=0.01, atol=0.03)
    np.testing.assert_allclose(compiled(x.numpy()), expected, rtol=1e-5, atol=1e-6)


def test_gelu_is_torchs():
    x = np.linspace(-6, 6, 3 * gpt_numpy.SERIAL + 5, dtype=np.float32)
    column = gpt_kernels.matrix(torch.from_numpy(x[:, None]), "float32", gpt_kernels.GELU)
    found = np.empty_like(x)
    gpt_kernels.product(column, np.ones(1, np.float32), found)

    expected = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(gpt_numpy.gelu(x), expected, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("style", ["gpt2", "modern", "modern, n-grams"])
def test_a_long_text_is_read_by_compiled_loops(style, first, generator, monkeypatch):
    monkeypatch.setattr(gpt_reader, "FIRST", first)
    monkeypatch.setattr(gpt_reader, "LOOPS", True)
    model = knowing(CONFIGS[style]).eval()
    text = torch.randint(VOCAB, (1, LENGTH), generator=generator)
    with torch.inference_mode():
        expected = model.read(text)
    reader = reader_of(model)
    rows = [reader.read(text[:, at : at + 1].numpy()) for at in range(LENGTH // 2)]
    for each in (reader.fork(), reader):  # what one reads does not reach the other
        rest = [each.read(text[:, at : at + 1].numpy()) for at in range(LENGTH // 2, LENGTH)]
        found = torch.from_numpy(np.concatenate(rows + rest))

        assert set(each.ways) == ({True} if first == 0 else {False, True})
        torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2, as others have it", "modern, no shift"])
def test_what_the_loops_lack_is_read_in_numpy(name, generator, monkeypatch):
    monkeypatch.setattr(gpt_reader, "FIRST", 0)
    monkeypatch.setattr(gpt_reader, "LOOPS", True)
    reader = reader_of(knowing(CONFIGS[name]).eval())

    for symbol in (1, 2, 3):
        reader.read(np.array([[symbol]]))

    assert set(reader.ways) == {False}


@pytest.mark.parametrize("rows", [1, 63, 333])
def test_a_compiled_product_is_numpys_whatever_the_number_of_rows(rows, generator):
    weight = torch.randn(rows, 129, generator=generator)
    x = torch.randn(129, generator=generator).numpy()
    y = np.ones(rows, np.float32)

    gpt_kernels.product(gpt_kernels.matrix(weight, "float32", gpt_kernels.ADD), x, y)

    assert (rows * 129 > gpt_kernels.FEW) == (rows == 333)  # on one thread, or on all
    np.testing.assert_allclose(y, 1 + weight.numpy() @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "modern, n-grams", "ngram"])
def test_memory_does_not_grow_with_the_text(name):
    context = Context(knowing(CONFIGS[name]).eval(), np.array([1]))
    text = generate(context, 1000, Settings(repetition_penalty=1.1), [1])
    for _ in range(300):
        next(text)
    tracemalloc.start()
    for _ in range(200):
        next(text)
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(450):
        next(text)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert after - before < 20_000


def test_positions_far_into_a_text_are_as_exact_as_the_first(generator):
    """Angles grow with the position; in float32 those of the 100,000th would be off by 0.01."""
    model = knowing(CONFIGS["modern"])
    text = torch.randint(VOCAB, (1, 2 * BLOCK), generator=generator)
    near, far = model.start(1), model.start(1)
    far.length = 1_000_000

    for at in range(2 * BLOCK):
        expected, near = model.step(text[:, at : at + 1], near)
        found, far = model.step(text[:, at : at + 1], far)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_reader_of_a_mixture_asks_its_gate(generator):
    config = CONFIGS["mixture"].model_copy(update={"combine": "gated"})
    model = knowing(config).eval()
    numbers = torch.randn(len(model.gate.numbers()), generator=generator)
    model.gate.take(numbers.mul(0.3).tolist())
    text = torch.randint(VOCAB, (1, 40), generator=generator)
    with torch.no_grad():
        expected = model.read(text).log_softmax(-1)
        fixed = knowing(CONFIGS["mixture"]).eval().read(text).log_softmax(-1)
    reader = reader_of(model)

    assert (expected - fixed).abs().max() > 0.1
    for at in range(40):
        found = torch.from_numpy(reader.read(text[:, at : at + 1].numpy())).float().log_softmax(-1)
        torch.testing.assert_close(found, expected[:, at], atol=1e-5, rtol=1e-5)


def test_the_loops_of_long_texts_are_loaded_by_reading_with_them(monkeypatch):
    monkeypatch.setattr(gpt_reader, "LOOPS", True)
    ways, way = [], gpt_reader.GPTReader._way

    def noted(self, loops):
        ways.append((type(self), loops))
        return way(self, loops)

    monkeypatch.setattr(gpt_reader.GPTReader, "_way", noted)

    for kind in ("bigram", "modern"):
        gpt_reader.load_loops(knowing(CONFIGS[kind]).eval())

    assert ways == [(gpt_reader.ModernReader, True)]
