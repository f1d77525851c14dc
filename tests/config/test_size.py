import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import memory, read_config, size
from charlm.errors import UsageError
from charlm.models import build_model
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import smooth
from charlm.text.tokens import IdArray
from charlm.training.optimizers import hidden_matrices

V, CHARS = 11, 5000
MODELS = {
    "bigram": "{type: bigram, block_size: 8}",
    "averaging": "{type: averaging, block_size: 8, n_embd: 12}",
    "attention": "{type: attention, block_size: 8, n_embd: 12}",
    "multihead": "{type: multihead, block_size: 8, n_embd: 12, n_head: 3}",
    "gpt2": "{type: gpt, style: gpt2, block_size: 8, n_layer: 3, n_head: 2, n_embd: 12}",
    "modern": "{type: gpt, style: modern, block_size: 8, n_layer: 3, n_head: 2, n_embd: 12}",
}
each_model = pytest.mark.parametrize("name", MODELS)
COUNTED = "{type: ngram, order: 4}"
MIXTURE = f"""{{type: mixture, experts: {{
    small: {{model: {MODELS["bigram"]}, train: {{batch_size: 6}}}},
    large: {{model: {MODELS["modern"]}, train: {{batch_size: 3, max_steps: 500}}}},
    counts: {{model: {COUNTED}}},
    old: {{run: runs/old}},
    known: {{run: runs/known, model: {MODELS["averaging"]}}},
}}}}"""


def config(name: str, *overrides: str):
    model = {**MODELS, "ngram": COUNTED, "mixture": MIXTURE}[name]
    return read_config(f"model: {model}".encode(), "a.yaml", overrides)


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
        "modern": 6 * (3 * block + head) + 3 * 12 * 8 * 12,
    }

    assert config(name).model.flops_per_char(V) == by_hand[name]


def test_flops_of_a_step_are_those_of_all_its_characters():
    whole = config("gpt2", "train.batch_size=6", "train.micro_batch_size=2")

    assert size.flops_per_step(whole, V) == 6 * 8 * whole.model.flops_per_char(V)


def test_the_published_size_of_nanogpts_models_is_met():
    text = b"model: {type: gpt, style: gpt2, block_size: 256, n_layer: 6, n_head: 6, n_embd: 384}"
    model = read_config(text, "a.yaml").model

    # nanoGPT prints 10.65M, which leaves out its position embedding.
    assert round((model.parameter_count(65) - 256 * 384) / 1e6, 2) == 10.65


def test_a_checkpoint_holds_the_weights_and_two_moments():
    whole = config("modern")

    assert size.checkpoint_bytes(whole, V) == 3 * 4 * whole.model.parameter_count(V)


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
    assert config("mixture").model.buffer_bytes() == 8 * 8**2  # of its expert
    assert config("gpt2").model.buffer_bytes() == 0
    few = ["model.block_size=10000000", "train.batch_size=1"]
    with pytest.raises(
        UsageError, match=r"training needs about 727\.\d TiB of memory and this machine"
    ):
        size.check_memory(config("averaging", *few), V)


def test_tables_take_16_bytes_for_each_ngram_that_can_occur():
    assert size.checkpoint_bytes(config("ngram"), V) == 0
    assert config("ngram").model.table_bytes(V, CHARS) == 16 * (11 + 121 + 1331 + CHARS)
    last = config("ngram", "model.last_chars=100")
    assert last.model.table_bytes(V, CHARS) == 16 * (11 + 3 * 100)
    assert size.checkpoint_bytes(last, V, CHARS) == 16 * (11 + 3 * 100) // 4


def test_tables_are_never_larger_than_is_said():
    ids = np.random.default_rng(0).integers(0, V, CHARS)
    counts = count_ngrams(IdArray(ids), V, 4)
    model = build_model(config("ngram").model, V)
    model.set_tables(smooth(counts, "kneser-ney"))

    real = sum(tensor.nbytes for tensor in model.state_dict().values())

    bound = config("ngram").model.table_bytes(V, CHARS)
    assert 0.7 * bound < real <= bound


def test_the_checkpoints_of_a_mixture_are_its_own_and_its_experts():
    count = {name: config(name).model.parameter_count(V) for name in MODELS}
    trained = count["bigram"] + count["modern"]

    assert size.checkpoint_bytes(config("mixture"), V, CHARS) == (
        12 * trained
        + 4 * (trained + count["averaging"])
        + size.checkpoint_bytes(config("ngram"), V, CHARS)
    )


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


def test_the_machines_memory_is_that_of_the_operating_system():
    assert memory.physical_bytes() == psutil.virtual_memory().total
    assert memory.machine_bytes() <= memory.physical_bytes()


@pytest.fixture
def unlimited(monkeypatch):
    """A shell without limits."""
    if memory.resource:
        nothing = (memory.resource.RLIM_INFINITY,) * 2
        monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: nothing)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize(
    ("groups", "files", "found"),
    [
        pytest.param("0::/a/b", {"a/b/memory.max": "4096"}, [4096], id="v2"),
        pytest.param("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "9"}, [9], id="outer"),
        pytest.param("0::/", {"memory.max": "4096"}, [4096], id="v2-in-a-container"),
        pytest.param("3:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": "7"}, [7], id="v1"),
        pytest.param("3:memory:/a", {"memory/memory.limit_in_bytes": "7"}, [7], id="v1-container"),
        pytest.param("3:memory:/", {"memory/memory.limit_in_bytes": str(2**63)}, [], id="v1-none"),
        pytest.param("3:cpu:/a", {"memory/a/memory.limit_in_bytes": "7"}, [], id="other"),
        pytest.param("0::/a", {"a/memory.max": "rubbish"}, [], id="rubbish"),
        pytest.param("0", {}, [], id="cut-short"),
        pytest.param(None, {}, [], id="no-proc"),
    ],
)
def test_limits_of_control_groups_are_found(tmp_path, groups, files, found):
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")

    assert [limit for limit, _ in memory.memory_limits(tmp_path)] == found


@pytest.mark.skipif(not memory.resource, reason="where there are such limits")
def test_limits_of_the_shell_are_found(monkeypatch, tmp_path):
    shell = {memory.resource.RLIMIT_AS: 3 << 30, memory.resource.RLIMIT_DATA: 2 << 30}
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (shell[kind], -1))

    assert memory.memory_limits(tmp_path) == [(3 << 30, "ulimit -v"), (2 << 30, "ulimit -d")]
    monkeypatch.setattr(memory, "physical_bytes", lambda: 1 << 40)
    assert memory.machine_bytes() <= 2 << 30


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
    assert memory.human_bytes(count) == text


@given(st.integers(min_value=0, max_value=10**4000))
def test_any_number_of_bytes_can_be_written(count):
    assert len(memory.human_bytes(count)) < 20


def test_counting_builds_no_tensor(monkeypatch):
    monkeypatch.setattr(torch, "empty", None)

    assert config("modern", "model.n_layer=1000000000").model.parameter_count(V) > 10**12
