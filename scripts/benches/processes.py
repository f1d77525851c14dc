"""A training step in several processes: what `charlm explain` predicts, and what runs take."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benches.common import AsJson, Corpus, Rounds, in_turn, report

WARM_UP = 5  # steps of a run that do not count
KEYS = {
    "none": ["train.parallel=none"],
    "ddp exact": ["train.parallel=ddp", "train.exact=true"],
    "ddp reduced": ["train.parallel=ddp", "train.exact=false"],
    "fsdp2": ["train.parallel=fsdp2"],
}


def processes(
    preset: Annotated[str, typer.Argument(help="A preset or a file.")] = "gpt",
    changes: Annotated[list[str] | None, typer.Argument(help="Its settings: KEY=VALUE.")] = None,
    counts: Annotated[str, typer.Option(help="Numbers of processes.")] = "1 2 4",
    corpus: Corpus = "python-docs",
    steps: Annotated[int, typer.Option(min=WARM_UP + 5, help="Of each run.")] = 40,
    rounds: Rounds = 3,
    as_json: AsJson = False,
) -> None:
    """Time steps in 1, 2, 4 processes by each strategy, beside what `charlm explain` predicts.

    In each round, the machine is measured and then all run in turn.
    """
    from charlm.config import load_config
    from charlm.config.cores import own_cores
    from charlm.costs.estimate import several
    from charlm.costs.work import work_of
    from charlm.text import open_source, scan_text

    load = " ".join(f"{one:.2f}" for one in os.getloadavg())
    numbers = [int(count) for count in counts.split()]
    config = load_config(preset, changes or [])
    micro = config.train.micro_batch_size or config.train.batch_size // max(numbers)
    settings = [*(changes or []), f"train.micro_batch_size={micro}", "run.device=cpu"]
    config = load_config(preset, settings)
    vocab = scan_text(open_source(corpus), config.data).tokenizer(config.data).vocab_size
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        folder = Path(scratch)

        def predict() -> float:
            """Measure this machine and keep what it predicts."""
            for key, seconds in _predicted(config, vocab, max(numbers), numbers).items():
                found.setdefault(key, []).append(seconds)
            return 0.0

        names = several(work_of(config, vocab))
        sides = {("none", 1): lambda: _run(folder, preset, corpus, steps, settings, "none", 1)}
        for number in (n for n in numbers if n > 1):
            for name in names:
                sides[name, number] = lambda name=name, number=number: _run(
                    folder, preset, corpus, steps, settings, name, number
                )
        times = in_turn({"predict": predict, **sides}, rounds)
    figures: dict[str, float | str] = {"cores": own_cores(), "load (1, 5, 15 minutes)": load}
    for key in sides:
        measured, predicted = statistics.median(times[key]), statistics.median(found[key][1:])
        label = f"{key[0]}, {key[1]}"
        figures[f"{label}: measured (ms)"] = measured * 1e3
        figures[f"{label}: predicted (ms)"] = predicted * 1e3
        figures[f"{label}: predicted / measured"] = statistics.median(
            a / b for a, b in zip(found[key][1:], times[key], strict=True)
        )
    report(figures, as_json)


def _predicted(config, vocab: int, most: int, numbers: list[int]) -> dict:
    from charlm.costs.estimate import rows
    from charlm.costs.measuring import measured
    from charlm.costs.work import work_of

    work = work_of(config, vocab)
    machine = measured(config, vocab, config.train.micro_batch_size, most)
    every = [row for number in numbers for row in rows(config, work, machine, number)]
    return {(row.strategy, row.processes): row.seconds for row in every}


def _run(
    folder: Path, preset: str, corpus: str, steps: int, settings: list[str], name: str, number: int
) -> float:
    """Return the median seconds between two steps of a run in so many processes."""
    from charlm.config.cores import own_cores

    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    start = [sys.executable, "-m"]
    if number > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={number}", "-m"]
    keys = [f"data.source={corpus}", f"train.max_steps={steps}", f"train.eval_every={steps}"]
    keys += ["train.sample_every=0", *settings, *KEYS[name]]
    command = [*start, "charlm", "train", "--config", preset, "--out", str(out), "-q", *keys]
    threads = str(max(1, own_cores() // number))
    subprocess.run(
        command,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
    )
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    moments = [record["seconds"] for record in records if record["kind"] == "train"]
    return float(statistics.median(np.diff(moments)[WARM_UP:]))


def scale(kind: Annotated[str, typer.Argument(help="A kind of GPU.")] = "h100") -> None:
    """Print what docs/scale.md says of 8 to 16,384 devices: arithmetic, nothing is measured."""
    from charlm.costs.scaling import tables

    print("\n".join(tables(kind)))
