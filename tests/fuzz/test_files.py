import json
import struct
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charlm.errors import CheckpointError
from charlm.runs.state import TrainingState
from charlm.runs.weights import load_weights
from tests.fuzz import targets
from tests.fuzz.inputs import JSON, amiss, changed, fuzzed, seeds
from tests.fuzz.targets import CORPUS, FITTED, TARGETS, safetensors

ANY = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_answered(name):
    for seed in seeds(name):
        TARGETS[name].answer(seed)


def _good_manifest() -> dict:
    return json.loads(seeds("manifest")[0])


@fuzzed(60)
@given(ANY | amiss("manifest") | changed(_good_manifest))
@example(b'{"format": 1, "files": {}, "val_loss_nats": 1' + b"0" * 400 + b"}")  # was an overflow
def test_a_manifest_of_any_content_is_verified_or_refused(data):
    targets.manifest(data)


@fuzzed(60)
@given(ANY | amiss("tokenizer"))
@example(b'{"format": 1, "unit": "chars", "alphabet": ""}')  # was a model of no characters
@example(b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}")
def test_a_tokenizer_of_any_content_loads_or_is_refused(data):
    targets.tokenizer(data)


def _good_corpus() -> dict:
    return json.loads(seeds("corpus")[0])


@fuzzed(60)
@given(ANY | amiss("corpus") | changed(_good_corpus))
def test_a_manifest_of_ids_of_any_content_opens_or_is_refused(data):
    targets.corpus(data)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "O"},
        {"dtype": "V0", "size": 0},
        {"dtype": "<f4", "size": 3},
        {"dtype": {"names": ["a"], "formats": ["u1"]}},
        {"splits": {"train": [0, 12]}},
        {"splits": CORPUS["splits"] | {"val": [12, 8]}},
        {"splits": CORPUS["splits"] | {"val": [-4, 8]}},
        {"splits": CORPUS["splits"] | {"val": [8, 13]}},
        {"vocab_size": 3},
        {"unit": None},
    ],
    ids=str,
)
def test_facts_that_ids_cannot_have_are_refused(change):
    from charlm.text import open_corpus

    place = targets.folder("tokens")
    (place / "ids.bin").write_bytes(targets.IDS)
    targets.vouched(place, **(CORPUS | change))

    with pytest.raises(CheckpointError):
        open_corpus(place)


@fuzzed(40)
@given(st.binary(max_size=16) | amiss("ids"))
@example(b"\4" * 12)  # was an index beyond the end of an embedding
def test_ids_of_any_content_and_length_open_or_are_refused(data):
    targets.ids(data)


@fuzzed(60)
@given(ANY | amiss("state") | changed(lambda: asdict(TrainingState(step=3, seconds=1.5))))
@example(b"[" * 5000)
def test_a_state_of_any_content_loads_or_is_refused(data):
    targets.state(data)


@fuzzed(60)
@given(ANY | amiss("fitted") | changed(lambda: FITTED))
def test_what_a_mixture_found_loads_or_is_refused(data):
    targets.fitted(data)


@fuzzed(60)
@given(st.lists(ANY).map(b"\n".join) | amiss("metrics"))
def test_metrics_of_any_content_are_records_or_refused(data):
    targets.metrics(data)


@fuzzed(60)
@given(ANY | amiss("holder"))
def test_whoever_holds_a_lock_is_named_in_one_line(data):
    targets.holder(data)


DTYPES = (
    "F32",
    "F64",
    "F16",
    "BF16",
    "I64",
    "I32",
    "U8",
    "U64",
    "BOOL",
    "F8_E4M3",
    "F4",
    "C64",
    "X",
)
NAMES = (
    "table.weight",
    "weights",
    "temperature",
    "keys_1",
    "share_1",
    "left_over_1",
    "keys_2",
    "a\nb",
)
SIZES = st.integers(0, 5) | st.sampled_from([-1, 2**31, 2**62, 2**63, 2**64, 1.5, None])
TENSOR = st.tuples(st.sampled_from(DTYPES), st.lists(SIZES, max_size=3), st.binary(max_size=70))


@st.composite
def headers(draw):
    """Draw safetensors whose header says what it likes."""
    tensors = draw(st.dictionaries(st.sampled_from(NAMES), TENSOR, max_size=3))
    data = safetensors(tensors, **draw(st.just({}) | st.just({"version": "2\n"})))
    length, rest = data[:8], data[8:]
    if draw(st.booleans()):
        length = struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, len(rest))))
    return length + rest


@fuzzed(50)
@given(st.binary(max_size=40) | headers() | amiss("weights"))
def test_weights_of_any_content_load_as_they_are_or_are_refused(data):
    targets.weights(data)


@fuzzed(50)
@given(headers() | amiss("optimizer"))
def test_an_optimizer_of_any_content_takes_a_step_or_is_refused(data):
    targets.optimizer(data)


def _ngram(**changes: tuple[str, list[int], bytes]) -> bytes:
    """Return the weights of an n-gram model of order 2 over four characters, some of them changed."""
    tensors = {
        "keys_1": ("I64", [4], struct.pack("<4q", 0, 1, 2, 3)),
        "share_1": ("F32", [4], struct.pack("<4f", 0.25, 0.25, 0.25, 0.25)),
        "left_over_1": ("F32", [1], struct.pack("<f", 0)),
        "keys_2": ("I64", [0], b""),
        "share_2": ("F32", [0], b""),
        "left_over_2": ("F32", [4], struct.pack("<4f", 1, 1, 1, 1)),
    }
    return safetensors(tensors | changes, version="1")


def test_sound_tables_load():
    Path("model.safetensors").write_bytes(_ngram())
    model, _ = targets._small("ngram")

    load_weights(model, Path("model.safetensors"))


# Differences of neighbours that overflow made the second look like keys that increase.
OVERFLOWING = struct.pack("<5q", 0, 2**63 - 1, -(2**63), -1, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"keys_1": ("I64", [], bytes(8))},
        {"keys_2": ("I64", [5], OVERFLOWING), "share_2": ("F32", [5], bytes(20))},
        {
            "share_1": ("F32", [4], struct.pack("<4f", 3, 0, 0, 0)),
            "left_over_1": ("F32", [1], struct.pack("<f", -2)),
        },
        {"share_1": ("F32", [2, 4], struct.pack("<8f", *([0.25] * 8)))},
        {
            "share_1": ("F32", [2, 4], struct.pack("<8f", *([0.25] * 4), 3, 0, 0, 0)),
            "left_over_1": ("F32", [2, 1], struct.pack("<2f", 0, -2)),
        },
        {"share_2": ("F32", [2, 0], b""), "left_over_2": ("F32", [2, 4], bytes(32))},
    ],
    ids=[
        "a-scalar",
        "keys-that-overflow",
        "less-than-nothing-left-over",
        "a-beginning-without-left-overs",
        "less-than-nothing-left-over-at-a-beginning",
        "a-beginning-in-the-highest-order",
    ],
)
def test_tables_that_no_text_has_are_refused(changes):
    data = _ngram(**changes)
    Path("model.safetensors").write_bytes(data)
    model, _ = targets._small("ngram")

    with pytest.raises(CheckpointError):
        load_weights(model, Path("model.safetensors"))


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_optimizer_state_of_another_shape_is_refused(key):
    # The fused kernel read past its end, and wrote there.
    from charlm.runs.state import load_checkpoint

    checkpoint, model, optimizers = targets._checkpoint()
    tensors = {
        f"adamw/table.weight/{k}": ("F32", [4, 4], bytes(64)) for k in ("exp_avg", "exp_avg_sq")
    }
    tensors["adamw/table.weight/step"] = ("F32", [], bytes(4))
    tensors[f"adamw/table.weight/{key}"] = ("F32", [2], bytes(8))
    (checkpoint.path / "optimizer.safetensors").write_bytes(safetensors(tensors))
    targets.vouched(checkpoint.path, step=3)

    with pytest.raises(CheckpointError, match=key):
        load_checkpoint(checkpoint, model, optimizers)


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8])
def test_a_header_that_says_it_is_huge_takes_no_memory(length):
    Path("model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    model, _ = targets._small("bigram")
    tracemalloc.start()

    with pytest.raises(CheckpointError):
        load_weights(model, Path("model.safetensors"))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "changes", [{"n_layer": 10**9}, {"n_embd": 10**6}], ids=["layers", "channels"]
)
def test_a_model_far_larger_than_its_file_is_refused_before_it_takes_the_memory(
    trained, charlm, changes
):
    config = trained / "config.yaml"
    text = config.read_text()
    for key, value in changes.items():
        before = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
        text = text.replace(before, f"  {key}: {value}")
    config.write_text(text)
    for path in (trained / "checkpoints").glob("*/MANIFEST.json"):
        facts = json.loads(targets.unsealed(path.parent))
        del facts["files"]["belongs.json"]  # which the first ones have not, to refuse it by
        (path.parent / "belongs.json").unlink()
        path.write_text(json.dumps(facts))

    result = charlm("sample", "--run", trained, "--seed", 1)

    assert result.code == 4
    assert "was config.yaml changed?" in result.error


def test_compare_refuses_a_state_that_is_no_state(trained, charlm):
    (step,) = (trained / "checkpoints").glob("step-6")
    (step / "state.json").write_text("[]")
    manifest = json.loads((step / "MANIFEST.json").read_text())
    (step / "MANIFEST.json").unlink()
    targets.vouched(step, **{k: v for k, v in manifest.items() if k not in ("format", "files")})

    result = charlm("compare", trained)

    assert result.code == 4
    assert "(not a JSON object)" in result.error


@fuzzed(60)
@given(amiss("compressed"))
def test_a_compressed_file_is_restored_or_refused(data):
    targets.compressed(data)


@fuzzed(60)
@given(amiss("promised"))
@example(b'{"model": "run", "run": "a", "step": 1, "adapt": {"every": 0}, "needs": {}}\0')
@example(b'{"model": "run", "run": "a", "step": 1e999, "adapt": {}, "needs": {}}\0')
@example(b'{"model": "portable", "engine": [1], "tree": 7}\0')
def test_a_compressed_file_with_right_checksums_is_restored_or_refused(data):
    targets.promised(data)
