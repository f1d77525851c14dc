from pathlib import Path

import pytest

from charlm.config import load_config
from charlm.lifecycle.begin import resolve_dtype
from charlm.lifecycle.resume import resumed_config
from charlm.runs import RunFolder


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
