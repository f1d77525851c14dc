"""Weights split among processes, against one process that has all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from charlm.runs import RunFolder
from charlm.runs.metrics import read_metrics
from tests.torture.lives import ROOT
from tests.torture.trials import TEXT, TORCHRUN

STEPS = 200
TOLERANCE = 1e-5  # nats
SIZES = "block_size: 32, n_layer: 4, n_head: 4, n_embd: 64"
MODELS = {
    "gpt2": f"{{type: gpt, style: gpt2, {SIZES}, dropout: 0.1}}",
    "modern": f"{{type: gpt, style: modern, {SIZES}, n_gram: 4}}",
}
TRIED = (("gpt2", "adamw"), ("modern", "adamw"), ("modern", "muon"))
CONFIG = f"""\
model: %s
train: {{max_steps: {STEPS}, batch_size: 8, micro_batch_size: 2, optimizer: %s, eval_every: 50,
  warmup_steps: 20, parallel: fsdp2, sharded_saves: true}}
eval: {{baselines: false}}
run: {{device: cpu, dtype: float32, compile: false}}
data: {{source: text.txt}}
"""
SLOWEST = 900.0  # seconds


def compared(folder: Path, model: str, optimizer: str) -> tuple[dict[int, float], list[str]]:
    """Train in 1, 2 and 4 processes; merge what these saved, and use it as any run.

    Returns the largest difference of a loss for 2 and 4, in nats, and what does not hold.
    """
    losses, said, failures = {}, {}, []
    for size in (1, 2, 4):
        place = folder / str(size)
        place.mkdir(parents=True)
        (place / "text.txt").write_text(TEXT)
        (place / "config.yaml").write_text(CONFIG % (MODELS[model], optimizer))
        launch = [sys.executable] if size == 1 else [*TORCHRUN, f"--nproc-per-node={size}"]
        _run(place, *launch, "-m", "charlm", "train", "--config", "config.yaml", "--out", "run")
        run = RunFolder(place / "run")
        losses[size] = [r["loss_nats"] for r in read_metrics(run.metrics_path) if "loss_nats" in r]
        if size > 1:
            before = _used(place)
            _run(place, sys.executable, "-m", "charlm", "runs", "merge", "run")
            if not (run.checkpoints.choose("last").path / "model.safetensors").exists():
                failures.append(f"{model}, {optimizer}, {size} processes: not merged")
            if _used(place) != before:
                failures.append(f"{model}, {optimizer}, {size} processes: merging changed it")
        said[size] = _used(place)
    found = {
        size: max(abs(a - b) for a, b in zip(losses[1], losses[size], strict=True))
        for size in (2, 4)
    }
    for size, most in found.items():
        name = f"{model}, {optimizer}, {size} processes"
        if most > TOLERANCE:
            failures.append(f"{name}: losses differ by {most:.1e} nats")
        if abs(said[size][1] - said[1][1]) > TOLERANCE:
            failures.append(f"{name}: scored {said[size][1]}, and not {said[1][1]}")
    return found, failures


def _used(place: Path) -> tuple[str, float]:
    """Return a sample of a run, and its loss on its validation part."""
    charlm = sys.executable, "-m", "charlm"
    text = _run(place, *charlm, "sample", "run", "--max-new-chars", "100", "--seed", "1", "-q")
    score = json.loads(_run(place, *charlm, "eval", "run", "--json"))
    return text, score["loss_nats"]


def _run(place: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=SLOWEST
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout
