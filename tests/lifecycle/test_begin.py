from pathlib import Path
from types import SimpleNamespace

import pytest

from charlm.config import load_config
from charlm.errors import MachineError, UsageError
from charlm.lifecycle.begin import check_disk, prepare_text, resolve_dtype
from charlm.lifecycle.resume import resumed_config
from charlm.models.registry import KINDS, Kind
from charlm.runs import RunFolder
from charlm.storage.atomic import shared_place


@pytest.fixture
def faster(monkeypatch):
    monkeypatch.setattr("charlm.models.device.bfloat16_is_faster", lambda: True)


@pytest.mark.parametrize(
    ("preset", "change", "dtype"),
    [
        ("gpt", "run.seed=1", "bfloat16"),
        ("nanogpt-cpu", "run.seed=1", "bfloat16"),
        ("mixture", "run.seed=1", "bfloat16"),
        ("mixture", "model.experts.gpt.train.gradients=by_hand", "float32"),
        ("gpt", "train.gradients=by_hand", "float32"),
        ("gpt", "run.dtype=float32", "float32"),
        ("multihead", "run.seed=1", "float32"),
        ("ngram", "run.seed=1", "float32"),
        ("bigram", "run.dtype=bfloat16", "bfloat16"),
    ],
)
def test_a_new_run_settles_its_precision(faster, preset, change, dtype):
    assert resolve_dtype(load_config(preset, [change, "run.device=cpu"])).run.dtype == dtype


def test_a_machine_without_fast_bfloat16_stays_in_single_precision():
    assert resolve_dtype(load_config("gpt", ["run.device=cpu"])).run.dtype == "float32"


@pytest.mark.parametrize("given", [None, "tiny.yaml"])
def test_a_run_goes_on_in_its_precision_wherever_it_is_resumed(
    faster, make_loop, monkeypatch, given
):
    make_loop()
    monkeypatch.setattr("charlm.models.device.bfloat16_is_faster", lambda: False)
    run = RunFolder(Path("run"))

    assert resumed_config(run, given, []).run.dtype == "bfloat16"
    assert resumed_config(run, given, ["run.dtype=float32"]).run.dtype == "float32"


def test_an_expert_with_a_learner_of_its_own_is_to_be_trained_alone(monkeypatch):
    monkeypatch.setitem(KINDS, "bigram", Kind("charlm.models:BigramModel", learner=print))
    overrides = ["model.experts.two.model.type=bigram", "run.device=cpu"]

    with pytest.raises(
        UsageError, match=r"^model\.experts\.two\.model: 'bigram' has a learner of "
    ):
        prepare_text(load_config("mixture", overrides), print, print)


def test_ids_that_a_killed_start_left_have_their_room(tiny, tmp_path, monkeypatch):
    config = load_config("tiny.yaml")
    text = prepare_text(config, lambda *_: None, lambda *_: None)
    left = shared_place(RunFolder(tmp_path).tokens_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(MachineError, match="and 0 bytes is free"):
        check_disk(config, tmp_path, text)
    left.mkdir()

    (left / "ids.bin").write_bytes(bytes(1 << 22))  # more than this run needs

    check_disk(config, tmp_path, text)
