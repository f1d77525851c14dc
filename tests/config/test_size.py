import pytest

from charlm.config import load_config, memory, size
from charlm.errors import UsageError
from charlm.models.modern import rotary_table
from tests.config.conftest import CHARS, MODELS, V, config


def test_flops_of_a_step_are_those_of_all_its_characters():
    whole = config("gpt2", "train.batch_size=6", "train.micro_batch_size=2")

    assert size.flops_per_step(whole, V) == 6 * 8 * whole.model.flops_per_char(V)


def test_a_checkpoint_holds_the_weights_and_two_moments():
    whole = config("modern")

    assert size.checkpoint_bytes(whole, V) == 3 * 4 * whole.model.parameter_count(V)


def test_a_mixture_trains_the_experts_that_are_given_as_models_with_weights():
    trained = config("mixture", "run.seed=7").training_runs()

    assert list(trained) == ["small", "large"]
    assert trained["large"].model == config("modern").model
    assert trained["large"].train.max_steps == 500
    # The first has the run's seed, each other one of its own: windows that the others do not read.
    assert [one.run.seed for one in trained.values()] == [7, 8]
    highest = config("mixture", f"run.seed={2**63 - 1}").training_runs()
    assert [one.run.seed for one in highest.values()] == [2**63 - 1, 0]
    assert config("ngram").training_runs() == {}
    assert config("gpt2").training_runs() == {"": config("gpt2")}


def test_a_step_of_a_mixture_is_one_of_each_expert_it_trains():
    of_large = config("modern").model.flops_per_char(V)

    assert size.flops_per_step(config("mixture"), V) == 3 * 8 * of_large
    assert size.flops_per_step(config("ngram"), V) == 0


def test_experts_are_trained_one_after_another_each_with_its_own_batch():
    large = size.training_bytes(config("modern", "train.batch_size=3"), V)

    assert size.training_bytes(config("mixture"), V) == large
    small = size.training_bytes(config("mixture", "model.experts.small.train.batch_size=9999"), V)
    assert small == size.training_bytes(config("bigram", "train.batch_size=9999"), V)
    assert size.training_bytes(config("ngram", "model.block_size=16384"), V) == {}


def test_the_matrix_of_averages_grows_with_the_square_of_the_context():
    assert config("averaging", "model.block_size=10").model.buffer_bytes() == 800
    assert config("gpt2").model.buffer_bytes() == 0
    of_experts = 8 * 8**2 + config("modern").model.buffer_bytes()
    assert config("mixture").model.buffer_bytes() == of_experts
    few = ["model.block_size=10000000", "train.batch_size=1"]
    with pytest.raises(
        UsageError, match=r"training needs about 727\.\d TiB of memory and this machine"
    ):
        size.check_memory(config("averaging", *few), V)


def test_tables_take_12_to_24_bytes_for_each_ngram_that_can_occur():
    assert size.checkpoint_bytes(config("ngram"), V) == 0
    most = 8 + 24 * (11 + 121) + 20 * 1331 + 12 * CHARS
    assert config("ngram").model.table_bytes(V, CHARS) == most
    other = config("ngram", "model.smoothing=witten-bell")
    assert other.model.table_bytes(V, CHARS) == 4 + 16 * (11 + 121 + 1331) + 12 * CHARS
    last, most = config("ngram", "model.last_chars=100"), 8 + 24 * (11 + 100) + (20 + 12) * 100
    assert last.model.table_bytes(V, CHARS) == most
    assert size.checkpoint_bytes(last, V, CHARS) == most // 4


def test_the_checkpoints_of_a_mixture_are_its_own_and_its_experts():
    count = {name: config(name).model.parameter_count(V) for name in MODELS}
    trained = count["bigram"] + count["modern"]

    assert size.checkpoint_bytes(config("mixture"), V, CHARS) == (
        12 * trained
        + 4 * (trained + count["averaging"])
        + size.checkpoint_bytes(config("ngram"), V, CHARS)
    )


def test_the_tables_of_rotary_positions_grow_with_the_context():
    modern = config("modern").model
    table = rotary_table(modern.block_size, modern.n_embd // modern.n_head).nbytes

    assert modern.buffer_bytes() == (modern.n_layer + 2) * table
    few = ["model.block_size=1000000000000", "train.batch_size=1"]
    with pytest.raises(UsageError, match="of memory and this machine"):
        size.check_memory(config("modern", *few), V)


def test_micro_batches_lower_the_memory_of_activations_alone():
    full = size.training_bytes(config("modern", "train.batch_size=8"), V)
    micro = ["train.batch_size=8", "train.micro_batch_size=2"]
    less = size.training_bytes(config("modern", *micro), V)

    assert less.pop("activations") * 4 == full.pop("activations")
    assert less == full


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ([], 1),
        (["model.block_size=512"], 1),
        (["model.block_size=513"], 0),
        (["model.block_size=513", "train.gradients=by_hand"], 1),
        (["model.dropout=0.1"], 3),
    ],
)
def test_attention_weights_are_counted_where_they_are_kept(changes, copies):
    asked = config("modern", *changes)
    model, chars = asked.model, asked.train.batch_size * asked.model.block_size

    a_block = 16 * model.n_embd + copies * model.n_head * model.block_size
    expected = 4 * chars * (model.n_layer * a_block + 3 * V)
    assert size.training_bytes(asked, V)["activations"] == expected


def test_memory_is_refused_with_what_is_needed_and_what_is_there(monkeypatch):
    monkeypatch.setattr(memory, "physical_bytes", lambda: 1 << 20)

    with pytest.raises(UsageError, match=r"needs about .* and this machine has 1 MiB; lower"):
        size.check_memory(config("modern", "train.batch_size=100000"), V)
    size.check_memory(config("modern", "train.batch_size=1"), V)


def test_a_checkpoint_of_context_mixing_holds_the_text_and_not_the_table():
    counted = load_config("context-mixing")

    assert size.checkpoint_bytes(counted, 256, CHARS) == CHARS
    assert size.checkpoint_bytes(counted, 257, CHARS) == 4 * CHARS
