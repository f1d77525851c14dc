import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple
from functools import partial

import pytest
import torch

from charlm.config import GPTConfig, load_config
from charlm.errors import MachineError
from charlm.models import build_model
from charlm.models.modern import ModernGPT
from charlm.runs.records import NoteRecord
from charlm.training import compile_cost, gradients
from charlm.training import compiling as compiling_module
from charlm.training.compile_cost import Cost, Times, cost_of, keep_times, program
from charlm.training.compiling import Attempt, compile_model, worth_trying


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
    monkeypatch.setattr(compiling_module, "cores_are_taken", lambda: False)
    config = load_config(preset, ["run.device=cpu", changes])

    budget = 60 * config.train.minutes if config.train.minutes else None

    assert worth_trying(config, model, budget, Cost()) == worth


def test_beside_other_programs_only_a_longer_budget_is_worth_compiling(model, monkeypatch):
    config = load_config("gpt", ["run.device=cpu"])
    monkeypatch.setattr(compiling_module, "cores_are_taken", lambda: True)

    assert not worth_trying(config, model, 300.0, Cost())
    assert worth_trying(config, model, 1200.0, Cost())


@pytest.mark.parametrize(
    ("compiling", "saved", "budget", "worth"),
    [
        (9.0, 0.25, 71.0, False),  # 17.75 s saved for 9
        (9.0, 0.25, 73.0, True),
        (9.0, 0.05, 300.0, False),
        (9.0, -0.1, 36000.0, False),
    ],
)
def test_in_a_budget_compiling_must_save_twice_what_it_costs(
    compiling, saved, budget, worth, model, monkeypatch
):
    monkeypatch.setattr(compiling_module, "cores_are_taken", lambda: False)
    config = load_config("gpt", ["run.device=cpu"])

    assert worth_trying(config, model, budget, Cost(compiling, saved)) == worth


def test_what_earlier_runs_measured_decides_no_run_of_a_number_of_steps(model):
    """So that a configuration trains with the same bits, however often it was compiled before."""
    for steps, worth in (2000, False), (3000, True):
        config = load_config("gpt", ["run.device=cpu", f"train.max_steps={steps}"])
        for cost in Cost(), Cost(0.1, 0.9), Cost(1000.0, -1.0):
            assert worth_trying(config, model, None, cost) == worth


def test_without_a_compiler_nothing_is_tried(model, monkeypatch):
    monkeypatch.setenv("PATH", "")

    assert not worth_trying(load_config("gpt", []), model, 3600.0, Cost())


def test_nothing_is_compiled_before_there_is_a_step_to_do(make_loop, monkeypatch):
    tried = []
    monkeypatch.setattr(gradients, "worth_trying", lambda *_: True)
    monkeypatch.setattr(
        gradients, "compile_model", lambda model, *a: tried.append(a) or Attempt(model, "why")
    )

    records = list(make_loop("train.max_steps=2", "run.fused=false").records())
    kinds = [record.kind for record in records]
    assert [given[:3] for given in tried] == [("auto", 4, torch.float32)]
    assert kinds.index("eval") < kinds.index("compile") < kinds.index("note") < kinds.index("train")
    assert NoteRecord(text="why") in records

    assert list(make_loop(resume=True).records()) == []
    assert len(tried) == 1


def test_false_needs_no_reason(model):
    assert compile_model(model, False, 2, torch.float32) == Attempt(model)


def test_auto_falls_back_with_a_reason_of_one_line(model, broken):
    forward, reason, _ = compile_model(model, "auto", 2, torch.float32)

    assert forward is model
    assert reason == "compile: fell back to eager (no working C++ compiler)"


def test_insisting_fails_with_the_ways_out(model, broken):
    with pytest.raises(MachineError, match=r"no working C\+\+ compiler.*run\.compile=false"):
        compile_model(model, True, 2, torch.float32)


def test_passes_are_micro_batches_and_leave_no_gradient(model, monkeypatch):
    shapes = []

    def compile(module):
        def forward(idx):
            shapes.append(tuple(idx.shape))
            return module(idx)

        return forward

    monkeypatch.setattr(torch, "compile", compile)

    forward, reason, times = compile_model(model, True, 3, torch.float32)

    assert set(shapes) == {(3, 4)}
    assert reason is None
    assert times
    assert forward is not model
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves on by 0.1 ms when it is looked at, however slow the machine is."""
    now = [0.0]

    def look():
        now[0] += 1e-4
        return now[0]

    monkeypatch.setattr(time, "perf_counter", look)
    return now


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trial_is_just_what_a_step_does(make_loop, monkeypatch, clock, dtype):
    """What compiled code depends on must not change after it, or the first step compiles again."""
    calls = []

    def compile(module):
        def forward(idx):
            autocast = torch.is_autocast_enabled("cpu")
            calls.append((idx.shape, idx.stride(), module.training, autocast))
            return module(idx)

        return forward

    monkeypatch.setattr(torch, "compile", compile)

    loop = make_loop(
        "train.max_steps=2", "run.compile=true", f"run.dtype={dtype}", "run.fused=false"
    )
    list(loop.records())

    assert len(calls) == 1 + compiling_module.TRIES + 2  # to compile, to measure, and two steps
    assert len(set(calls)) == 1
    assert calls[0][3] == (dtype == "bfloat16")


def test_going_on_in_another_way_is_said(make_loop, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: lambda idx: module(idx))
    list(make_loop("train.max_steps=2", "run.compile=true").records())

    again = make_loop("train.max_steps=3", "run.compile=true", resume=True)
    assert not [r for r in again.records() if r.kind == "note"]
    eager = make_loop("train.max_steps=4", "run.compile=false", resume=True)
    notes = [r.text for r in eager.records() if r.kind == "note"]
    assert notes == ["not bit-exact: steps were compiled, now they are fused"]


def slow_when(compiled, monkeypatch, clock):
    """Let a pass take 10 ms longer, compiled or eager."""
    plainly = ModernGPT.forward

    def slowly(self, idx, past=None):
        clock[0] += 0.01
        return plainly(self, idx, past)

    monkeypatch.setattr(ModernGPT, "forward", plainly if compiled else slowly)
    monkeypatch.setattr(torch, "compile", partial(partial, slowly if compiled else plainly))


@pytest.mark.parametrize("slow", [True, False])
def test_in_a_budget_the_faster_way_is_kept(make_loop, monkeypatch, clock, slow):
    monkeypatch.setattr(gradients, "worth_trying", lambda *_: True)
    slow_when(slow, monkeypatch, clock)

    loop = make_loop("train.minutes=0.01", "run.fused=false")
    notes = [record.text for record in loop.records() if record.kind == "note"]

    assert loop.learner.form == ("plain" if slow else "compiled")
    assert any(note.startswith("compile: not used, because a pass") for note in notes) is slow


def test_a_run_of_a_number_of_steps_stays_compiled_whatever_the_clock_says(
    make_loop, monkeypatch, clock
):
    monkeypatch.setattr(gradients, "worth_trying", lambda *_: True)
    slow_when(True, monkeypatch, clock)

    loop = make_loop("train.max_steps=2", "run.fused=false")
    list(loop.records())

    assert loop.learner.form == "compiled"


def test_the_next_run_knows_what_compiling_costs(make_loop, monkeypatch, clock):
    monkeypatch.setattr(torch, "compile", lambda module: lambda idx: module(idx))

    found = []
    for out in ("first", "second"):
        loop = make_loop("train.max_steps=2", "run.compile=true", out=out)
        found += [record for record in loop.records() if record.kind == "compile"]

    assert [record.cached for record in found] == [False, True]
    assert found[0].expected == Cost().seconds
    assert found[1].expected < 2  # this compiler does nothing


def test_code_in_the_cache_takes_a_share_of_the_time_until_that_was_measured(tmp_path):
    (tmp_path / "charlm" / "inductor").mkdir(parents=True)
    keep_times("a", Times(compiling=30.0, eager=0.04, compiled=0.03))
    assert astuple(cost_of("a")) == (pytest.approx(9.0), pytest.approx(0.25), True)

    keep_times("a", Times(compiling=5.0, eager=0.04, compiled=0.06))
    assert astuple(cost_of("a")) == (pytest.approx(5.0), pytest.approx(-0.5), True)
    assert cost_of("b") == Cost()


def test_each_thing_that_code_is_compiled_for_has_a_cost_of_its_own(model):
    config = load_config("gpt", [])
    names = {
        program(load_config("gpt", changes), model, windows, dtype)
        for changes, windows, dtype in (
            ([], 12, torch.float32),
            (["model.n_layer=5"], 12, torch.float32),
            ([], 6, torch.float32),
            ([], 12, torch.bfloat16),
        )
    }
    other = build_model(config.model, 11, seed=1)

    assert len(names | {program(config, other, 12, torch.float32)}) == 5
    assert program(config, model, 12, torch.float32) in names


DAMAGED = [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"compiling": -1, "eager": 1, "compiled": 1}}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_of_costs_is_replaced(content, tmp_path):
    folder = tmp_path / "charlm" / "inductor"
    folder.mkdir(parents=True)
    (folder / "charlm-costs.json").write_bytes(content)
    assert cost_of("a") == Cost()

    keep_times("a", Times(compiling=30.0, eager=0.04, compiled=0.03))

    assert cost_of("a").cached


def test_costs_that_cannot_be_kept_or_read_stop_nothing(tmp_path):
    (tmp_path / "charlm" / "inductor" / "charlm-costs.json").mkdir(parents=True)

    keep_times("a", Times(compiling=30.0, eager=0.04, compiled=0.03))

    assert cost_of("a") == Cost()


def test_the_oldest_costs_are_forgotten(monkeypatch, tmp_path):
    (tmp_path / "charlm" / "inductor").mkdir(parents=True)
    monkeypatch.setattr(compile_cost, "MOST", 2)
    for name in "abac":
        keep_times(name, Times(compiling=30.0, eager=0.04, compiled=0.03))

    assert [cost_of(name).cached for name in "abc"] == [True, False, True]


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
