"""Which kernels a run loads, and whether it uses them."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from charlm.config import load_config
from charlm.models.kernel import NotCompiled, only_compiled
from charlm.training import loading
from charlm.training.loading import load_kernels


@pytest.mark.parametrize("style", ["modern", "gpt2"])
def test_a_run_is_fused_unless_it_is_told_not_to_be(make_loop, style):
    losses = {}
    for fused in "true", "false":
        changes = f"model.style={style}", f"run.fused={fused}", "train.max_steps=6"
        loop = make_loop(*changes, out=fused)
        found = [record.loss_nats for record in loop.records() if record.kind == "train"]
        losses[loop.learner.form] = found

    assert list(losses) == ["fused", "plain"]
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-5)


def test_kernels_are_loaded_once(tiny):
    config = load_config(tiny, [])
    list(load_kernels(config))
    assert list(load_kernels(config)) == []
    assert list(load_kernels(load_config("bigram", []))) == []


def test_what_must_be_compiled_is_compiled_elsewhere_before_it_is_loaded(tiny, monkeypatch):
    done = []
    monkeypatch.setattr(loading, "_loaded", set())
    monkeypatch.setattr(loading, "_load_compiled", lambda *_: False)
    monkeypatch.setattr(loading, "_compile_elsewhere", lambda kernels: done.append(kernels))
    monkeypatch.setattr(loading, "_load", lambda *kernel: done.append(kernel))
    config = load_config(tiny, ["model.n_gram=2"])
    kernels = list(loading._needed(config))  # of fused steps, and of AdamW

    for _ in load_kernels(config):
        assert done == []  # it is said before

    assert len(kernels) == 2
    assert done == [kernels, *kernels]
    assert loading._loaded == set(kernels)


@pytest.mark.slow  # three processes, and a kernel is compiled
def test_kernels_are_not_run_by_the_process_that_compiles_them(tmp_path):
    program = (
        "from charlm.config import load_config\n"
        "from charlm.training import adamw, loading\n"
        "config = load_config('gpt', ['run.fused=false', 'run.device=cpu'])\n"
        "print(len(list(loading.load_kernels(config))))\n"
        "print(sum(adamw.adamw_of_rows.stats.cache_hits.values()))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    runs = [subprocess.check_output(command, env=environment, text=True) for _ in range(2)]

    assert [run.split() for run in runs] == [["1", "1"], ["0", "1"]]


def test_a_kernel_that_would_be_compiled_can_be_refused():
    def add_one(x):
        x[0] += 1

    compiled, x = numba.njit(add_one), np.zeros(1)
    with only_compiled(), pytest.raises(NotCompiled):
        compiled(x)
    compiled(x)
    with only_compiled():
        compiled(x)

    assert x[0] == 2
