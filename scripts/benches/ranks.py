"""Several processes against one: a training step of the same model, and the same bits."""

import hashlib
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

from benches.common import AsJson, Corpus, Rounds, in_turn, ratio, report

WARM = 10  # steps left out
DIFFERENT = "DIFFERENT"


def ranks(
    preset: Annotated[str, typer.Argument(help="A preset or a file.")] = "gpt",
    changes: Annotated[list[str] | None, typer.Argument(help="Its settings: KEY=VALUE.")] = None,
    processes: Annotated[int, typer.Option(min=2, help="Of one thread each.")] = 2,
    corpus: Corpus = "python-docs",
    steps: Annotated[int, typer.Option(min=20, help="Of each run.")] = 110,
    rounds: Rounds = 2,
    as_json: AsJson = False,
) -> None:
    """Time a step in processes of one thread against one process with as many threads, in turn.

    In each precision. The batch is that of the preset, a micro-batch an equal part for each process. A
    third run, in one process of one thread, must leave the bits of the processes; else exit with 1.
    """
    from charlm.config import load_config

    figures: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        for dtype in ("float32", "bfloat16"):
            settings = [f"data.source={corpus}", f"run.dtype={dtype}", *(changes or [])]
            batch = load_config(preset, settings).train.batch_size
            settings += ["train.parallel=ddp", f"train.micro_batch_size={batch // processes}"]
            settings += [f"train.max_steps={steps}", f"train.eval_every={10 * steps}"]
            settings += ["train.sample_every=0", "run.device=cpu"]

            def step(size: int, threads: int, settings: list[str] = settings) -> float:
                run = Path(scratch) / f"run-{size}-{threads}"
                command = ["--config", preset, "--out", str(run), "-q", *settings]
                return _step_seconds(run, command, size, threads)

            times = in_turn(
                {
                    "one": lambda step=step: step(1, processes),
                    "all": lambda step=step: step(processes, 1),
                },
                rounds,
            )
            step(1, 1)
            alone, together = (_hash(Path(scratch) / f"run-{n}-1") for n in (1, processes))
            figures |= {
                f"{dtype}: a step, one process (ms)": statistics.median(times["one"]) * 1e3,
                f"{dtype}: a step, {processes} processes (ms)": statistics.median(times["all"])
                * 1e3,
                f"{dtype}: ratio of speeds": ratio(times["one"], times["all"]),
                f"{dtype}: bits": "equal" if alone == together else DIFFERENT,
            }
    report(figures, as_json)
    if DIFFERENT in figures.values():
        raise typer.Exit(1)


def _step_seconds(run: Path, command: list[str], size: int, threads: int) -> float:
    """Train anew; return the median seconds between two steps."""
    shutil.rmtree(run, ignore_errors=True)
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"]
    subprocess.run(
        [sys.executable, "-m", *(launch if size > 1 else []), "charlm", "train", *command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [record["seconds"] for record in records if record["kind"] == "train"]
    return statistics.median(np.diff(times)[WARM:])


def _hash(run: Path) -> str:
    files = sorted(run.glob("checkpoints/step-*/*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
