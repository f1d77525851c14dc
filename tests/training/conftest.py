"""Runs made in a few lines: `make_loop(overrides, out)` and the state of one as a hash."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from charlm.config import load_config
from charlm.lifecycle.begin import create_run, prepare_text
from charlm.lifecycle.resume import open_run, resumed_config
from charlm.models import build_model
from charlm.runs import RunFolder
from charlm.runs.metrics import read_metrics
from charlm.runs.optimizer_state import optimizer_tensors
from charlm.training import Job, TrainingLoop


def ignore(*_):
    pass


@pytest.fixture
def make_loop(tiny):
    """Begin or resume a run of the tiny configuration."""

    def make(*overrides, out="run", resume=False, **kwargs):
        folder = Path(out)
        if resume:
            run = RunFolder(folder)
            config = resumed_config(run, None, overrides)
            prepared = open_run(config, run, ignore)
        else:
            config = load_config("tiny.yaml", overrides)
            text = prepare_text(config, ignore, ignore)
            folder.mkdir()
            prepared = create_run(config, folder, text, ignore)
            config = prepared.config
        model = build_model(config.model, prepared.tokenizer.vocab_size, config.run.seed)
        job = Job(config, prepared.run, prepared.corpus, prepared.tokenizer, model, **kwargs)
        return TrainingLoop(job, prepared.checkpoint)

    return make


def stop_and_resume(make_loop, cut, *options):
    """Stop a run after a step, and return it resumed and finished."""
    out = f"cut-{cut}"
    stopped = make_loop(*options, out=out, should_stop=lambda: stopped.state.step == cut)
    list(stopped.records())
    assert stopped.stopped
    assert stopped.state.step == cut

    resumed = make_loop(out=out, resume=True)
    assert resumed.state.step == cut
    torch.manual_seed(cut)  # whatever the global generator holds must not matter
    list(resumed.records())
    assert not resumed.stopped
    return resumed


def state_hash(loop):
    """SHA-256 over weights, optimizer state and counters; wall-clock times left out."""
    digest = hashlib.sha256()
    learner = loop.learner
    tensors = dict(learner.model.named_parameters())
    tensors |= optimizer_tensors(learner.optimizers, learner.model)
    tensors |= learner.carried_tensors()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().numpy().tobytes())
    state = vars(loop.state) | {"seconds": 0, "metrics_bytes": 0}
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()


def timeless(path):
    """The records of a run without what depends on the clock, and without saves."""
    clocks = ("seconds", "chars_per_second")
    return [
        {k: v for k, v in record.items() if k not in clocks}
        for record in read_metrics(path)
        if record["kind"] != "save"
    ]
