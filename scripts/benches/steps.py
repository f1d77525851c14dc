"""Training steps: throughput, peers, growth, gradients by hand."""

import json
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benches import nanogpt as peer
from benches.common import (
    AsJson,
    Corpus,
    NanoGPT,
    Rounds,
    in_turn,
    loop_of,
    ratio,
    report,
    step_seconds,
    train,
    write_text,
)
from benches.machine import GEMM_FLOPS, gemm_seconds


def peers(
    nanogpt: NanoGPT,
    corpus: Corpus = "shakespeare",
    steps: Annotated[int, typer.Option(min=20, help="Of each run.")] = 300,
    rounds: Rounds = 3,
    as_json: AsJson = False,
) -> None:
    """Time a step of `nanogpt-cpu` against nanoGPT's train.py, both eager and compiled, in turn."""
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        folder = Path(scratch)
        copy = peer.prepare(nanogpt, folder, corpus)
        times = in_turn(
            {
                "nanoGPT": lambda: peer.step_ms(copy, steps, compiled=False),
                "charlm": lambda: _charlm_step(folder, corpus, steps, compiled=False),
                "nanoGPT compiled": lambda: peer.step_ms(copy, steps, compiled=True),
                "charlm compiled": lambda: _charlm_step(folder, corpus, steps, compiled=True),
            },
            rounds,
        )
    figures = {f"{name}, a step (ms)": statistics.median(t) for name, t in times.items()}
    for own in ("charlm", "charlm compiled"):
        for other in ("nanoGPT", "nanoGPT compiled"):
            figures[f"ratio {own} / {other}"] = ratio(times[own], times[other])
    report(figures, as_json)


def _charlm_step(folder: Path, corpus: str, steps: int, *, compiled: bool) -> float:
    """Return the median milliseconds between two steps, records and all."""
    out = folder / "charlm-run"
    shutil.rmtree(out, ignore_errors=True)
    changes = [f"train.max_steps={steps}", f"run.compile={str(compiled).lower()}"]
    train(folder, out, "nanogpt-cpu", corpus, changes)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    times = [r["seconds"] for r in records if r["kind"] == "train"]
    return statistics.median(np.diff(times)[10:]) * 1e3


def throughput(
    presets: Annotated[list[str] | None, typer.Argument(help="Presets or files.")] = None,
    against: Annotated[
        str, typer.Option(help="Settings of the reference: the same preset with these.")
    ] = "run.dtype=float32 run.compile=false",
    changes: Annotated[str, typer.Option("--with", help="Settings of both sides.")] = "",
    corpus: Corpus = "python-docs",
    steps: Annotated[int, typer.Option(min=1, help="Timed in each round.")] = 20,
    rounds: Rounds = 7,
    as_json: AsJson = False,
) -> None:
    """Time training steps: characters a second, and the share of the GEMM peaks."""
    from charlm.config.size import flops_per_step

    figures: dict[str, float | str] = {}
    for preset in presets or ["gpt", "nanogpt-cpu"]:
        with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
            folder = Path(scratch)
            own, other = (
                loop_of(folder / name, preset, corpus, *changes.split(), *more)
                for name, more in (("own", []), ("other", against.split()))
            )
            for loop in (own, other):
                list(loop.learner.prepare())
            times = in_turn(
                {
                    "float32": gemm_seconds,
                    "bfloat16": lambda: gemm_seconds(dtype="bfloat16"),
                    "own": lambda own=own: step_seconds(own, steps),
                    "other": lambda other=other: step_seconds(other, steps),
                },
                rounds,
            )
        config, step = own.config, statistics.median(times["own"])
        flops = flops_per_step(config, own.tokenizer.vocab_size)
        peak, low_peak = (
            GEMM_FLOPS / statistics.median(times[name]) for name in ("float32", "bfloat16")
        )
        figures |= {
            f"{preset}: precision": config.run.dtype,
            f"{preset}: a step (ms)": step * 1e3,
            f"{preset}: characters a second": config.train.batch_size
            * config.model.block_size
            / step,
            f"{preset}: GFLOP/s": flops / step / 1e9,
            f"{preset}: float32 GEMM peak (GFLOP/s)": peak / 1e9,
            f"{preset}: share of that peak": flops / step / peak,
            f"{preset}: bfloat16 GEMM peak (GFLOP/s)": low_peak / 1e9,
            f"{preset}: share of bfloat16 peak": flops / step / low_peak,
            f"{preset}: ratio to {against}": ratio(times["own"], times["other"]),
        }
    report(figures, as_json)


def growth(
    preset: Annotated[str, typer.Argument(help="A preset or a file.")] = "gpt",
    gib: Annotated[
        float, typer.Option(min=0, help="Size of the large text; below 0.002 leaves texts out.")
    ] = 1.0,
    rounds: Rounds = 7,
    as_json: AsJson = False,
) -> None:
    """Time a step by layers, by block size (at equal characters a step), and by size of text."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        folder = Path(scratch)
        plans = {f"{n} layers": [f"model.n_layer={n}"] for n in (2, 4, 8, 16)}
        plans |= {
            f"block {t}": [f"model.block_size={t}", f"train.batch_size={2048 // t}"]
            for t in (64, 128, 256, 512)
        }
        loops = {
            name: loop_of(folder / name, preset, "python-docs", *changes)
            for name, changes in plans.items()
        }
        for blocks in (1, round(gib * 1024)) if gib >= 0.002 else ():
            (folder / "text.txt").write_bytes(b"")
            write_text(folder / "text.txt", blocks)
            name = f"text of {blocks} MiB"
            loops[name] = loop_of(folder / name, preset, str(folder / "text.txt"))
        sides = {name: partial(step_seconds, t, 10) for name, t in loops.items()}
        times = in_turn(sides, rounds)
    for name, values in times.items():
        figures[f"{name}: a step (ms)"] = statistics.median(values) * 1e3
    layers = [statistics.median(times[f"{n} layers"]) for n in (2, 4, 8, 16)]
    per_layer = np.diff(layers) / np.array([2, 4, 8])
    for (low, high), value in zip([(2, 4), (4, 8), (8, 16)], per_layer, strict=True):
        figures[f"a layer more, from {low} to {high} (ms)"] = float(value) * 1e3
    for t in (128, 256, 512):
        figures[f"ratio block {t} / block 64"] = ratio(times[f"block {t}"], times["block 64"])
    if gib >= 0.002:
        small, large = (values for name, values in times.items() if name.startswith("text of"))
        figures["ratio large text / small text"] = ratio(large, small)
    report(figures, as_json)


def gradients(
    presets: Annotated[list[str] | None, typer.Argument(help="Presets or files.")] = None,
    corpus: Corpus = "python-docs",
    steps: Annotated[int, typer.Option(min=20, help="Timed in each run.")] = 60,
    pairs: Annotated[int, typer.Option(min=1, help="How often each side runs.")] = 9,
    as_json: AsJson = False,
) -> None:
    """Time gradients, and whole steps, by hand and by autograd, in turn on the same batches."""
    figures: dict[str, float] = {}
    for preset in presets or ["bigram", "attention", "nanogpt-cpu", "gpt"]:
        with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
            sides = {
                side: loop_of(
                    Path(scratch) / side,
                    preset,
                    corpus,
                    f"train.gradients={side}",
                    "run.dtype=float32",
                )
                for side in ("by_hand", "autograd")
            }
            times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
            for _ in range(pairs + 1):  # the first of each warms up and is dropped
                for side, loop in sides.items():
                    times[side].append(_step_and_gradient_ms(loop, steps))
        for part, name in enumerate(("step", "gradient")):
            hand, auto = ([pair[part] for pair in times[side][1:]] for side in sides)
            figures[f"{preset} {name} by hand (ms)"] = statistics.median(hand)
            figures[f"{preset} {name} by autograd (ms)"] = statistics.median(auto)
            ratio = statistics.median(h / a for h, a in zip(hand, auto, strict=True))
            figures[f"{preset} {name} ratio"] = ratio
    report(figures, as_json)


def _step_and_gradient_ms(loop, steps: int) -> tuple[float, float]:
    """Return the median milliseconds of a whole step, and of its loss and gradients alone."""
    whole, gradient = [], []
    accumulate = loop.learner._accumulate

    def timed(first: int):
        began = time.perf_counter()
        loss = accumulate(first)
        gradient.append(time.perf_counter() - began)
        return loss

    loop.learner._accumulate = timed
    for _ in range(steps):
        began = time.perf_counter()
        loop.learner.step()
        whole.append(time.perf_counter() - began)
    loop.learner._accumulate = accumulate
    return statistics.median(whole) * 1e3, statistics.median(gradient) * 1e3
