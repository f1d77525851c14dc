"""The kernels of a run's training steps, loaded before the first step."""

import os
import subprocess  # nosec B404
import sys
from collections.abc import Iterator

import torch
from pydantic import TypeAdapter

from charlm.config import Config
from charlm.config.base import AnyModel
from charlm.models.device import choose_device, choose_dtype, precision
from charlm.models.kernel import NotCompiled, is_stored, only_compiled, share_threads
from charlm.models.registry import build_model, kind_for, kind_of
from charlm.training import adamw

ADAMW = "adamw"  # beside models


def load_kernels(config: Config) -> Iterator[None]:
    """Load what fused steps and AdamW need for a run's models.

    If it must be compiled, which takes some ten seconds on its first use on a machine, yield once
    before that. It is compiled in a process of its own: numba gives a kernel that this process
    compiled other bits than one that it loads, because it optimises what it stores a second time. So
    a run and its resumption would differ.
    """
    if choose_device(config.run.device).type != "cpu":
        return
    missing = [args for args in _needed(config) if not _load_compiled(*args)]
    if missing:
        yield
        if is_stored(adamw.adamw_of_rows):
            _compile_elsewhere(missing)
        for args in missing:
            _load(*args)
            _loaded.add(args)


def _needed(config: Config) -> Iterator[tuple[str, str]]:
    """Return the arguments of `_load` for each part of a run."""
    for one in config.training_runs().values():
        kind = kind_for(one.model)
        wanted = one.run.fused and one.train.gradients == "autograd"
        if wanted and kind.fused_for(one.model):
            dtype = choose_dtype(one.run.dtype, torch.device("cpu"))
            yield one.model.smallest().model_dump_json(), str(dtype).removeprefix("torch.")
        if getattr(one.model, "n_gram", 1) > 1:
            yield ADAMW, "float32"


def _load_compiled(name: str, dtype: str) -> bool:
    """Load kernels, unless some must be compiled; say whether all are loaded."""
    if (name, dtype) not in _loaded:
        try:
            with only_compiled():
                _load(name, dtype)
        except NotCompiled:
            return False
        _loaded.add((name, dtype))
    return True


def _load(name: str, dtype: str) -> None:
    """Load the kernels of a kind by a step of a tiny model, given as JSON, or those of AdamW."""
    share_threads()
    if name == ADAMW:
        adamw.load_kernel()
        return
    model = build_model(TypeAdapter(AnyModel).validate_json(name), 2)
    with precision(model.device, getattr(torch, dtype)), torch.random.fork_rng(devices=[]):
        logits = kind_of(model).find("fused")(model)(torch.zeros(1, 2, dtype=torch.int64))
    logits.float().sum().backward()


def _compile_elsewhere(missing: list[tuple[str, str]]) -> None:
    """Compile kernels in another process, which stores them.

    If it fails, this process compiles them.
    """
    program = f"import {__name__} as m; [m._load(*args) for args in {missing}]"
    subprocess.run(  # nosec B603
        [sys.executable, "-P", "-c", program],  # -P: not from the current folder
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C lets it finish
        check=False,
    )


_loaded: set[tuple[str, str]] = set()
