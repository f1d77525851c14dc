import json
import os
import stat
import subprocess
import sys
import tempfile

import pytest
import torch

from charlm.config import GPTConfig
from charlm.errors import MachineError
from charlm.models import build_model
from charlm.training import compiling
from charlm.training.compiling import compile_model


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


def test_auto_leaves_the_cpu_alone(model):
    forward, reason = compile_model(model, "auto", 2)

    assert forward is model
    assert reason.startswith("compile: off on cpu")


def test_false_needs_no_reason(model):
    assert compile_model(model, False, 2) == (model, None)


def test_auto_falls_back_with_a_reason_of_one_line(model, broken, monkeypatch):
    monkeypatch.setattr(compiling, "worth_trying", lambda device: True)

    forward, reason = compile_model(model, "auto", 2)

    assert forward is model
    assert reason == "compile: fell back to eager (no working C++ compiler)"


def test_insisting_fails_with_the_ways_out(model, broken):
    with pytest.raises(MachineError, match=r"no working C\+\+ compiler.*run\.compile=false"):
        compile_model(model, True, 2)


def test_the_trial_is_one_micro_step_and_leaves_no_gradient(model, monkeypatch):
    shapes = []

    def compile(module):
        def forward(idx):
            shapes.append(tuple(idx.shape))
            return module(idx)

        return forward

    monkeypatch.setattr(torch, "compile", compile)

    forward, reason = compile_model(model, True, 3)

    assert (shapes, reason) == ([(3, 4)], None)
    assert forward is not model
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("default", ["", f"{tempfile.gettempdir()}/torchinductor_someone"])
def test_compiled_code_is_kept_where_only_the_user_can_write(
    model, broken, tmp_path, monkeypatch, default
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default)
    with pytest.raises(MachineError):
        compile_model(model, True, 2)

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
