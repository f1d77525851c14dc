"""Whole commands: start-up, saves, memory, the time to a loss."""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benches import nanogpt as peer
from benches.common import (
    AsJson,
    Corpus,
    Rounds,
    checkout,
    in_turn,
    loop_of,
    ratio,
    report,
    seconds,
    step_seconds,
    train,
    write_text,
)


def startup(
    run: Annotated[
        Path | None, typer.Option(exists=True, help="Also the first character of a sample of it.")
    ] = None,
    runs: Rounds = 15,
    as_json: AsJson = False,
) -> None:
    """Time `charlm --help`, and python alone beside it, in turn; a sample, beside importing torch."""
    commands = {
        "charlm --help": [str(Path(sys.executable).with_name("charlm")), "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    runs_of = {
        name: partial(seconds, partial(subprocess.run, c, check=True, stdout=subprocess.DEVNULL))
        for name, c in commands.items()
    }
    if run:
        importing = [sys.executable, "-c", "import torch"]
        runs_of["import torch"] = partial(seconds, partial(subprocess.run, importing, check=True))
        runs_of["first character"] = partial(_first_character, run)
    times = in_turn(runs_of, runs)
    figures = {f"{name} (s)": statistics.median(values) for name, values in times.items()}
    figures["ratio of the first two"] = ratio(times["charlm --help"], times["python -c pass"])
    if run:
        after = zip(times["first character"], times["import torch"], strict=True)
        figures["first character after torch (s)"] = statistics.median(a - b for a, b in after)
    report(figures, as_json)


def _first_character(run: Path) -> float:
    """Return the seconds from the command to the first byte that it prints."""
    command = [sys.executable, "-m", "charlm", "sample", "--run", str(run), "--no-echo", "-p", "A"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(1)
        taken = time.perf_counter() - began
        process.terminate()
    return taken


def saves(
    presets: Annotated[list[str] | None, typer.Argument(help="Presets or files.")] = None,
    corpus: Corpus = "python-docs",
    folder: Annotated[Path | None, typer.Option(exists=True, help="Whose disk to use.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed in each round.")] = 3,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> None:
    """Time saves of weights and optimizer, flushed to the disk, and the steps between two of them."""
    from charlm.runs.provenance import provenance_json
    from charlm.runs.state import save_checkpoint

    figures: dict[str, float | str] = {}
    for preset in presets or ["nanogpt-gpu", "gpt"]:
        with tempfile.TemporaryDirectory(prefix="charlm-bench-", dir=folder) as scratch:
            loop = loop_of(Path(scratch) / "run", preset, corpus)
            step_seconds(loop, 1)

            def save(loop=loop) -> float:
                state = loop.state
                state.step += 1  # a folder of its own each time, and older ones are pruned
                run, model, optimizers = loop.run, loop.learner.model, loop.learner.optimizers
                together = provenance_json(loop.config, loop.tokenizer.to_json())
                return seconds(lambda: save_checkpoint(run, state, model, optimizers, together))

            times = in_turn(
                {"save": save, "step": lambda t=loop: step_seconds(t, steps)},
                rounds,
            )
            last = loop.run.checkpoints.last().path
            size = sum(file.stat().st_size for file in last.iterdir())
        one, step = (statistics.median(times[name]) for name in ("save", "step"))
        every = loop.config.train.eval_every  # each new best is saved, at most
        figures |= {
            f"{preset}: parameters": float(sum(p.numel() for p in loop.learner.model.parameters())),
            f"{preset}: a checkpoint (MiB)": size / 2**20,
            f"{preset}: a save (s)": one,
            f"{preset}: MiB a second": size / 2**20 / one,
            f"{preset}: a step (s)": step,
            f"{preset}: steps between two saves": every,
            f"{preset}: share of the time spent saving": one / (one + every * step),
        }
    report(figures, as_json)


def memory(
    gib: Annotated[float, typer.Option(min=0.002, help="Size of the large text.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Of each run.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Compare the peak memory of training on a large text and on 1 MiB of the same (Linux)."""
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        folder = Path(scratch)
        peaks = {}
        for name, blocks in {"1 MiB": 1, f"{gib:g} GiB": round(gib * 1024)}.items():
            write_text(folder / "text.txt", blocks)
            peaks[name] = _peak_mib(folder, steps)
            shutil.rmtree(folder / "run")
        small, large = peaks.values()
        figures = {f"peak on {name} (MiB)": peak for name, peak in peaks.items()}
        report({**figures, "difference (MiB)": large - small, "ratio": large / small}, as_json)


def _peak_mib(folder: Path, steps: int) -> float:
    """Train in a child process; return the most that it and its own children held at once, in MiB.

    Memory that processes share is divided among them (PSS); it is looked at 20 times a second.
    """
    import psutil

    keys = ["data.source=text.txt", f"train.max_steps={steps}", "train.warmup_steps=1"]
    command = [sys.executable, "-m", "charlm", "train", "--config", "nanogpt-cpu", "--out", "run"]
    peak = 0
    with subprocess.Popen([*command, "-q", *keys], cwd=folder, stdout=sys.stderr) as process:
        while process.poll() is None:
            held = 0
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                for one in (parent, *parent.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):  # it has just ended
                        held += one.memory_full_info().pss
            peak = max(peak, held)
            time.sleep(0.05)
    if process.returncode:
        sys.exit(f"bench: error: charlm train ended with exit code {process.returncode}")
    return peak / 2**20


def time_to_loss(
    recipe: Annotated[str, typer.Argument(help="A preset or a file.")],
    changes: Annotated[list[str] | None, typer.Argument(help="Its settings: KEY=VALUE.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Pass --minutes to charlm.")
    ] = None,
    loss: Annotated[list[float] | None, typer.Option(help="To reach, in nats; repeatable.")] = None,
    nanogpt: Annotated[
        Path | None, typer.Option(callback=checkout, help="A checkout, as the reference.")
    ] = None,
    corpus: Corpus = "shakespeare",
    rounds: Annotated[int, typer.Option(min=1, help="How often each side runs.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Time a whole command until an evaluation reaches a loss; start-up and evaluation apart.

    The reference is nanoGPT's CPU recipe (its own estimate of the loss, every 250 steps), or
    without --nanogpt our preset of the same recipe.
    """
    from charlm.config import load_config

    figures: dict[str, float | str] = {}
    load_config(recipe, changes or [])  # a slip is answered before the reference has run
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        folder = Path(scratch)
        more = [*(changes or []), *([f"train.minutes={minutes}"] if minutes else [])]
        sides: dict[str, Callable[[], peer.Course]] = {}
        if nanogpt:
            copy = peer.prepare(nanogpt, folder, corpus)
            sides["nanoGPT"] = lambda: peer.course(copy)
        else:
            sides["reference nanogpt-cpu"] = lambda: _charlm_course(
                folder, "nanogpt-cpu", corpus, []
            )
        sides[recipe] = lambda: _charlm_course(folder, recipe, corpus, more)
        courses: dict[str, list[peer.Course]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                courses[name].append(side())
    for name, several in courses.items():
        for part in ("wall", "startup", "evaluation"):
            figures[f"{name}: {part} (s)"] = statistics.median(getattr(c, part) for c in several)
        figures[f"{name}: last loss (nats)"] = statistics.median(c.losses[-1][1] for c in several)
    for target in loss or [1.88, 1.60]:
        times = {name: [c.reached(target) for c in several] for name, several in courses.items()}
        for name, values in times.items():
            reached = [value for value in values if value is not None]
            some = f" in {len(reached)} of {rounds} runs" if len(reached) < rounds else ""
            figures[f"{name}: to {target:g} (s)"] = (
                statistics.median(reached) if reached and not some else f"not reached{some}"
            )
        reference, own = times.values()
        if all(value is not None for value in (*reference, *own)):
            figures[f"ratio, to {target:g}"] = ratio(own, reference)
    report(figures, as_json)


def _charlm_course(folder: Path, recipe: str, corpus: str, changes: list[str]) -> peer.Course:
    out = folder / "course"
    shutil.rmtree(out, ignore_errors=True)
    wall = seconds(lambda: train(folder, out, recipe, corpus, changes))
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "seconds" in record]  # the one of the end has none
    # Seconds in records count from the command's first line of Python; the rest is before that.
    before = wall - records[-1]["seconds"]
    evaluation, losses = 0.0, []
    for i, record in enumerate(records):
        if record["kind"] == "eval" and "expert" not in record:
            evaluation += record["seconds"] - records[i - 1]["seconds"] if i else 0.0
            losses.append((before + record["seconds"], record["loss_nats"]))
    first = next(r for r in records if r["kind"] == "train")
    return peer.Course(wall, before + first["seconds"], evaluation, losses)
