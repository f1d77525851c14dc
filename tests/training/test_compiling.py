import json
import os
import stat
import subprocess
import sys
import tempfile

import pytest
import torch

from charlm.config import GPTConfig, load_config
from charlm.errors import MachineError
from charlm.models import build_model
from charlm.runs.records import NoteRecord
from charlm.training import compiling, gradients
from charlm.training.compiling import compile_model, worth_trying


@pytest.fixture(autouse=True)
def _private_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


@pytest.fixture
def model():
    config = GPTConfig(type="gpt", style="gpt2", block_size=4, n_layer=1, n_head=2, n_embd=8)
    return build_model(config, 7, seed=1)


@pytest.fixture
def broken(monkeypatch):
    def compile(model):
        def forward(idx):
            raise RuntimeError("no working C++ compiler\nand more lines")

        return forward

    monkeypatch.setattr(torch, "compile", compile)


@pytest.mark.parametrize(
    ("preset", "changes", "worth"),
    [
        ("gpt", "train.max_steps=2000", False),  # three minutes
        ("gpt", "train.max_steps=3000", True),
        ("gpt", "train.minutes=3.9", False),
        ("gpt", "train.minutes=4", True),
        ("nanogpt-gpu", "train.max_steps=5000", False),  # dropout
        ("nanogpt-gpu", "model.dropout=0", True),
        ("multihead", "train.minutes=60", False),
    ],
)
def test_on_a_cpu_a_long_run_of_a_gpt_is_worth_compiling(
    preset, changes, worth, model, monkeypatch
):
    monkeypatch.setattr(compiling, "cores_are_taken", lambda: False)
    config = load_config(preset, ["run.device=cpu", changes])

    assert (
        worth_trying(config, model, 60 * config.train.minutes if config.train.minutes else None)
        == worth
    )


def test_beside_other_programs_only_a_longer_budget_is_worth_compiling(model, monkeypatch):
    config = load_config("gpt", ["run.device=cpu"])
    monkeypatch.setattr(compiling, "cores_are_taken", lambda: True)

    assert not worth_trying(config, model, budget=300.0)
    assert worth_trying(config, model, budget=1200.0)


def test_without_a_compiler_nothing_is_tried(model, monkeypatch):
    monkeypatch.setenv("PATH", "")

    assert not worth_trying(load_config("gpt", []), model, budget=3600.0)


def test_nothing_is_compiled_before_there_is_a_step_to_do(make_loop, monkeypatch):
    tried = []
    monkeypatch.setattr(gradients, "worth_trying", lambda *_: True)
    monkeypatch.setattr(
        gradients, "compile_model", lambda model, *a: tried.append(a) or (model, "why")
    )

    records = list(make_loop("train.max_steps=2").records())
    kinds = [record.kind for record in records]
    assert tried == [("auto", 4, torch.float32)]
    assert kinds.index("eval") < kinds.index("compile") < kinds.index("note") < kinds.index("train")
    assert NoteRecord(text="why") in records

    assert list(make_loop(resume=True).records()) == []
    assert len(tried) == 1


def test_false_needs_no_reason(model):
    assert compile_model(model, False, 2, torch.float32) == (model, None)


def test_auto_falls_back_with_a_reason_of_one_line(model, broken):
    forward, reason = compile_model(model, "auto", 2, torch.float32)

    assert forward is model
    assert reason == "compile: fell back to eager (no working C++ compiler)"


def test_insisting_fails_with_the_ways_out(model, broken):
    with pytest.raises(MachineError, match=r"no working C\+\+ compiler.*run\.compile=false"):
        compile_model(model, True, 2, torch.float32)


def test_the_trial_is_one_micro_step_and_leaves_no_gradient(model, monkeypatch):
    shapes = []

    def compile(module):
        def forward(idx):
            shapes.append(tuple(idx.shape))
            return module(idx)

        return forward

    monkeypatch.setattr(torch, "compile", compile)

    forward, reason = compile_model(model, True, 3, torch.float32)

    assert (shapes, reason) == ([(3, 4)], None)
    assert forward is not model
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trial_is_just_what_a_step_does(make_loop, monkeypatch, dtype):
    """What compiled code depends on must not change after it, or the first step compiles again."""
    calls = []

    def compile(module):
        def forward(idx):
            autocast = torch.is_autocast_enabled("cpu")
            calls.append((idx.shape, idx.stride(), module.training, autocast))
            return module(idx)

        return forward

    monkeypatch.setattr(torch, "compile", compile)

    loop = make_loop("train.max_steps=2", "run.compile=true", f"run.dtype={dtype}")
    list(loop.records())

    assert len(calls) == 3
    assert len(set(calls)) == 1
    assert calls[0][3] == (dtype == "bfloat16")


def test_going_on_in_another_way_is_said(make_loop, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: lambda idx: module(idx))
    list(make_loop("train.max_steps=2", "run.compile=true").records())

    again = make_loop("train.max_steps=3", "run.compile=true", resume=True)
    assert not [r for r in again.records() if r.kind == "note"]
    eager = make_loop("train.max_steps=4", "run.compile=false", resume=True)
    notes = [r.text for r in eager.records() if r.kind == "note"]
    assert notes == ["not bit-exact: steps were compiled, now they are not"]


@pytest.mark.parametrize("default", ["", f"{tempfile.gettempdir()}/torchinductor_someone"])
def test_compiled_code_is_kept_where_only_the_user_can_write(
    model, broken, tmp_path, monkeypatch, default
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default)
    with pytest.raises(MachineError):
        compile_model(model, True, 2, torch.float32)

    mode = (tmp_path / "charlm" / "inductor").stat().st_mode
    assert stat.S_IMODE(mode) == 0o700
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "charlm" / "inductor")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_run_learns_what_an_eager_one_does(tiny):
    losses = []
    for choice in ("true", "false"):  # in a process of its own: checked shapes do not compile
        command = [sys.executable, "-m", "charlm", "train", "-c", "tiny.yaml", "--json"]
        done = subprocess.run(
            [*command, f"run.compile={choice}"], check=True, capture_output=True, text=True
        )
        losses.append(json.loads(done.stdout)["loss_nats"])

    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
