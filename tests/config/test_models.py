from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from pydantic import AfterValidator, Field

from charlm.config import ModelConfig, read_config
from charlm.config.base import TYPES
from charlm.errors import UsageError
from charlm.models import build_model
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import smooth
from charlm.runs.optimizer_state import hidden_matrices
from charlm.text.tokens import IdArray
from tests.config.conftest import CHARS, V, config, each_model


@each_model
@pytest.mark.parametrize("vocab_size", [1, V, 300])
def test_parameters_are_counted_as_the_real_model_has_them(name, vocab_size):
    model = config(name).model

    real = build_model(model, vocab_size)

    assert model.parameter_count(vocab_size) == sum(p.numel() for p in real.parameters())


@each_model
def test_hidden_parts_are_the_matrices_that_muon_finds(name):
    model = config(name).model

    found = hidden_matrices(build_model(model, V)).values()

    hidden = [part.parameters for part in model.parts(V) if part.hidden]
    assert sum(hidden) == sum(matrix.numel() for matrix in found)


def test_flops_of_a_bigram_table_are_none():
    assert config("bigram").model.flops_per_char(V) == 0


@each_model
def test_flops_equal_the_sum_by_hand(name):
    head = V * 12
    block = 12 * 12 * (3 + 1 + 4 + 4)
    by_hand = {
        "bigram": 0,
        "averaging": 6 * 2 * head + 4 * 8 * 12,  # its matrix is constant
        "attention": 6 * (3 * 144 + head) + 12 * 8 * 12,
        "multihead": 6 * (4 * 144 + head) + 12 * 8 * 12,
        "gpt2": 6 * (3 * block + head) + 3 * 12 * 8 * 12,
        "gpt2, as others have it": 6 * (3 * block + head) + 3 * 12 * 8 * 12,
        "modern": 6 * (3 * block + head) + 3 * 12 * 8 * 12,
        "bow": 6 * (2 * 6 * 10 + 6 * V) + 4 * 8 * 6,
        "mlp": 6 * (10 * 18 + 10 * V),
        "rnn": 6 * (10 * 6 + 2 * 10 * 10 + 3 * 10 * 10 + 10 * V),
        "gru": 6 * (30 * 6 + 20 * 10 + 10 * 10 + 10 * V),
        "lstm": 6 * (2 * 40 * 10 + 2 * 40 * 10 + 10 * V),
        "mingru": 6 * (3 * (20 * 12 + 12 * 10 + 2 * 48 * 12) + head),
    }

    assert config(name).model.flops_per_char(V) == by_hand[name]


def test_minGPTs_model_has_the_size_that_it_prints():
    text = b"model: {type: gpt, style: gpt2, block_size: 128, n_layer: 6, n_head: 6, n_embd: 192, "
    model = read_config(text + b"bias: true, gelu: tanh, tied: false}", "a.yaml").model

    # It prints 2.71M for gpt-mini over 65 characters, which leaves out its head.
    assert round((model.parameter_count(65) - 65 * 192) / 1e6, 2) == 2.71


def test_the_published_size_of_nanogpts_models_is_met():
    text = b"model: {type: gpt, style: gpt2, block_size: 256, n_layer: 6, n_head: 6, n_embd: 384}"
    model = read_config(text, "a.yaml").model

    # nanoGPT prints 10.65M, which leaves out its position embedding.
    assert round((model.parameter_count(65) - 256 * 384) / 1e6, 2) == 10.65


def test_a_mixture_has_the_weights_of_its_experts_by_name():
    mixture = config("mixture").model

    inside = {
        f"{name}.{part.name}": part.parameters
        for name, alone in (("small", "bigram"), ("large", "modern"), ("known", "averaging"))
        for part in config(alone).model.parts(V)
    }

    assert {part.name: part.parameters for part in mixture.parts(V)} == inside
    assert mixture.parameter_count(V) == sum(inside.values())
    assert config("ngram").model.parameter_count(V) == 0


def test_a_mixture_with_all_its_models_known_is_counted_as_the_real_one():
    model = config("mixture").model
    experts = {name: expert for name, expert in model.experts.items() if expert.model}
    model = model.model_copy(update={"experts": experts})

    real = build_model(model, V)

    assert model.parameter_count(V) == sum(p.numel() for p in real.parameters())


def test_tables_are_never_larger_than_is_said():
    ids = np.random.default_rng(0).integers(0, V, CHARS)
    counts = count_ngrams(IdArray(ids), V, 4)
    model = build_model(config("ngram").model, V)
    model.set_tables(smooth(counts, "kneser-ney"))

    real = sum(tensor.nbytes for tensor in model.state_dict().values())

    bound = config("ngram").model.table_bytes(V, CHARS)
    assert 0.7 * bound < real <= bound


def test_counting_builds_no_tensor(monkeypatch):
    monkeypatch.setattr(torch, "empty", None)

    assert config("modern", "model.n_layer=1000000000").model.parameter_count(V) > 10**12


@pytest.fixture
def a_new_kind():
    def odd(value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value

    class NewConfig(ModelConfig):
        type: Literal["new"]
        width: Annotated[int, Field(ge=1), AfterValidator(odd)] = 3
        layers: tuple[int, ...] = (1,)

    yield
    del TYPES["new"]


@pytest.mark.usefixtures("a_new_kind")
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("width: 4", "width: must be odd, got '4'"),
        ("width: 0", "width: must be at least 1, got '0'"),
        ("width: wide", "width: Input should be a valid integer, .*, got 'wide'"),
        ("layers: [a]", "layers: Input should be a valid integer, .*, got 'a'"),
    ],
)
def test_a_wrong_key_of_a_new_kind_is_named(key, reason):
    for model in (
        f"{{type: new, {key}}}",
        f"{{type: mixture, experts: {{a: {{model: {{type: new, {key}}}}}}}}}",
    ):
        with pytest.raises(UsageError, match=f"^a.yaml:1: .*{reason}$"):
            read_config(f"model: {model}".encode(), "a.yaml")


def test_an_order_to_be_chosen_is_described_as_open_and_by_the_longest():
    auto = config("ngram", "model.order=auto").model
    longest = config("ngram", "model.order=10").model

    facts = dict(auto.facts(CHARS)[1])
    assert facts["order"] == "auto: the best of 1 to 10 on the end of the training part"
    assert auto.table_bytes(V, CHARS) == longest.table_bytes(V, CHARS)
    assert (auto.least_text(), longest.least_text()) == ({"order": 20}, {"order": 10})
    assert config("ngram", "model.order=auto", "model.last_chars=20").model.last_chars == 20
