"""What the benchmarks share: options, runs, measuring in turn, printing."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Corpus = Annotated[str, typer.Option(help="A file, or the name of a text.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measured, after one that warms up.")]


def checkout(path: Path | None) -> Path | None:
    if path and not (path / "config" / "train_shakespeare_char.py").is_file():
        raise typer.BadParameter(f"{path}: not a checkout of karpathy/nanoGPT")
    return path


NanoGPT = Annotated[Path, typer.Option(callback=checkout, help="A checkout of karpathy/nanoGPT.")]


def report(figures: dict, as_json: bool) -> None:
    import torch

    machine = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if as_json:
        print(json.dumps({**machine, **figures}))
        return
    width = max(map(len, figures)) + 2
    for name, value in {**machine, **figures}.items():
        print(
            f"{name:<{width}}{value:.4g}" if isinstance(value, float) else f"{name:<{width}}{value}"
        )


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call all sides, one after the other, `rounds` times after a first that warms up."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            figures[name].append(side())
    return {name: values[1:] for name, values in figures.items()}


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios of what was measured in the same round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def charlm(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "charlm", *arguments]
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def loop_of(out: Path, preset: str, corpus: str, *changes: str):
    from charlm.config import load_config
    from charlm.errors import UsageError
    from charlm.lifecycle.begin import create_run, prepare_text
    from charlm.models import build_model
    from charlm.training import Job, TrainingLoop

    def silent(*_: object) -> None:
        pass

    config = load_config(preset, [f"data.source={corpus}", "run.device=cpu", *changes])
    if config.model.type in ("ngram", "mixture"):
        raise UsageError(f"{preset}: a {config.model.type} has no training step of its own")
    text = prepare_text(config, silent, silent)
    out.mkdir()
    run = create_run(config, out, text, silent)
    model = build_model(config.model, run.tokenizer.vocab_size, config.run.seed)
    return TrainingLoop(Job(run.config, run.run, run.corpus, run.tokenizer, model))


def step_seconds(loop, steps: int) -> float:
    """Return the median seconds of a training step."""
    return statistics.median(seconds(loop.learner.step) for _ in range(steps))


def train(folder: Path, out: Path, recipe: str, corpus: str, changes: list[str]) -> None:
    source = corpus if not Path(corpus).exists() else str(Path(corpus).resolve())
    recipe = recipe if not Path(recipe).exists() else str(Path(recipe).resolve())
    if "CHARLM_DATA" not in os.environ and (data := Path("data")).is_dir():
        os.environ["CHARLM_DATA"] = str(data.resolve())
    changes = [f"data.source={source}", "run.device=cpu", *changes]
    charlm("train", "--config", recipe, "--out", str(out), "-q", *changes, cwd=folder)


def text_of(corpus: str) -> str:
    from charlm.text import open_source

    return "".join(part.open().read().decode() for part in open_source(corpus).parts)


def write_text(path: Path, blocks: int) -> None:
    """Write so many MiB of letters, all blocks alike."""
    random = np.random.Generator(np.random.PCG64(0))
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     \n", np.uint8)
    block = letters[random.integers(0, len(letters), 1 << 20)].tobytes()
    with path.open("wb") as file:
        for _ in range(blocks):
            file.write(block)
