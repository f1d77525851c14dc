import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import read_config, size
from charlm.errors import UsageError
from charlm.models import build_model

V = 11
MODELS = {
    "bigram": "{type: bigram, block_size: 8}",
    "averaging": "{type: averaging, block_size: 8, n_embd: 12}",
    "attention": "{type: attention, block_size: 8, n_embd: 12}",
    "multihead": "{type: multihead, block_size: 8, n_embd: 12, n_head: 3}",
    "gpt2": "{type: gpt, style: gpt2, block_size: 8, n_layer: 3, n_head: 2, n_embd: 12}",
    "modern": "{type: gpt, style: modern, block_size: 8, n_layer: 3, n_head: 2, n_embd: 12}",
}
each_model = pytest.mark.parametrize("name", MODELS)


def config(name: str, *overrides: str):
    return read_config(f"model: {MODELS[name]}".encode(), "a.yaml", overrides)


@each_model
@pytest.mark.parametrize("vocab_size", [1, V, 300])
def test_parameters_are_counted_as_the_real_model_has_them(name, vocab_size):
    model = config(name).model

    real = build_model(model, vocab_size)

    assert size.parameter_count(model, vocab_size) == sum(p.numel() for p in real.parameters())


def test_flops_of_a_bigram_table_are_none():
    assert size.flops_per_char(config("bigram").model, V) == 0


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
        "modern": 6 * (3 * block + head) + 3 * 12 * 8 * 12,
    }

    assert size.flops_per_char(config(name).model, V) == by_hand[name]


def test_flops_of_a_step_are_those_of_all_its_characters():
    whole = config("gpt2", "train.batch_size=6", "train.micro_batch_size=2")

    assert size.flops_per_step(whole, V) == 6 * 8 * size.flops_per_char(whole.model, V)


def test_the_published_size_of_nanogpts_models_is_met():
    text = b"model: {type: gpt, style: gpt2, block_size: 256, n_layer: 6, n_head: 6, n_embd: 384}"
    model = read_config(text, "a.yaml").model

    # nanoGPT prints 10.65M, which leaves out its position embedding.
    assert round((size.parameter_count(model, 65) - 256 * 384) / 1e6, 2) == 10.65


def test_a_checkpoint_holds_the_weights_and_two_moments():
    whole = config("modern")

    assert size.checkpoint_bytes(whole, V) == 3 * 4 * size.parameter_count(whole.model, V)


def test_micro_batches_lower_the_memory_of_activations_alone():
    full = size.training_bytes(config("modern", "train.batch_size=8"), V)
    micro = ["train.batch_size=8", "train.micro_batch_size=2"]
    less = size.training_bytes(config("modern", *micro), V)

    assert less.pop("activations") * 4 == full.pop("activations")
    assert less == full


@pytest.mark.parametrize(
    ("change", "copies"), [("train.gradients=by_hand", 1), ("model.dropout=0.1", 3)]
)
def test_attention_weights_are_counted_where_they_are_kept(change, copies):
    def activations(*changes):
        return size.training_bytes(config("modern", *changes), V)["activations"]

    model, train = config("modern").model, config("modern").train
    weights = train.batch_size * model.n_layer * model.n_head * model.block_size**2

    assert activations(change) - activations() == 4 * copies * weights


def test_memory_is_refused_with_what_is_needed_and_what_is_there(monkeypatch):
    monkeypatch.setattr(size, "machine_bytes", lambda: 1 << 20)

    with pytest.raises(UsageError, match=r"needs about .* and this machine has 1 MiB; lower"):
        size.check_memory(config("modern", "train.batch_size=100000"), V)
    size.check_memory(config("modern", "train.batch_size=1"), V)


def test_the_machines_memory_is_that_of_the_operating_system():
    assert size.machine_bytes() == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5 GiB"),
        (1 << 60, "1 EiB"),
        (10**400, "8.674e+381 EiB"),
    ],
)
def test_bytes_are_written_as_people_read_them(count, text):
    assert size.human_bytes(count) == text


@given(st.integers(min_value=0, max_value=10**4000))
def test_any_number_of_bytes_can_be_written(count):
    assert len(size.human_bytes(count)) < 20


def test_counting_builds_no_tensor(monkeypatch):
    monkeypatch.setattr(torch, "empty", None)

    assert size.parameter_count(config("modern", "model.n_layer=1000000000").model, V) > 10**12
