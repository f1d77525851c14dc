"""nanoGPT as a reference: its training run and its model."""

import pickle
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benches.common import text_of

TRAIN = [
    sys.executable,
    "-W",
    "ignore",
    "-u",
    "train.py",
    "config/train_shakespeare_char.py",
]


CPU_RECIPE = (  # as its README has it
    "--device=cpu --eval_iters=20 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 "
    "--n_embd=128 --lr_decay_iters=2000 --dropout=0.0"
)


@dataclass
class Course:
    """How a run went: wall seconds of the whole command, and when each loss was known."""

    wall: float
    startup: float
    evaluation: float
    losses: list[tuple[float, float]]

    def reached(self, loss: float) -> float | None:
        return next((when for when, value in self.losses if value <= loss), None)


def prepare(checkout: Path, folder: Path, corpus: str) -> Path:
    """Copy it, and write what its prepare.py would have, without the packages that needs."""
    from charlm.text import CharTokenizer

    copy = folder / "nanogpt"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
    text = text_of(corpus)
    ids = CharTokenizer(text).encode(text).astype(np.uint16)
    cut = int(len(ids) * 0.9)
    data = copy / "data" / "shakespeare_char"
    ids[:cut].tofile(data / "train.bin")
    ids[cut:].tofile(data / "val.bin")
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": int(ids.max()) + 1}))
    return copy


def step_ms(copy: Path, steps: int, *, compiled: bool) -> float:
    """Return the median milliseconds of a step, as nanoGPT itself reports them."""
    flags = f"{CPU_RECIPE} --compile={compiled} --log_interval=1 --max_iters={steps}"
    done = subprocess.run(
        [*TRAIN, *flags.split()], cwd=copy, check=True, capture_output=True, text=True
    )
    times = [float(t) for t in re.findall(r"iter \d+: .*?time ([\d.]+)ms", done.stdout)]
    return statistics.median(times[10:])


def course(copy: Path) -> Course:
    """Run nanoGPT's CPU recipe as its README has it, and read the clock at each line it prints."""
    flags = f"{CPU_RECIPE} --compile=False --eval_interval=250 --log_interval=1 --max_iters=2000"
    began = time.perf_counter()
    process = subprocess.Popen(
        [*TRAIN, *flags.split()], cwd=copy, stdout=subprocess.PIPE, text=True
    )
    startup, evaluation, losses, last = 0.0, 0.0, [], 0.0
    assert process.stdout
    for line in process.stdout:
        now = time.perf_counter() - began
        if found := re.match(r"step \d+: .*val loss ([\d.]+)", line):
            losses.append((now, float(found[1])))
            evaluation += now - last if startup else 0.0
        elif line.startswith("iter"):
            startup = startup or now
            last = now
    if process.wait():
        raise SystemExit("nanoGPT failed; see above")
    return Course(time.perf_counter() - began, startup, evaluation, losses)


def model_of(checkout: Path, config):
    """Return nanoGPT's model of this shape, with random weights."""
    import contextlib
    import io

    sys.path.insert(0, str(checkout))
    with contextlib.redirect_stdout(io.StringIO()):
        from model import GPT, GPTConfig

        shape = {key: getattr(config, key) for key in ("n_layer", "n_head", "n_embd", "block_size")}
        return GPT(GPTConfig(vocab_size=65, bias=False, dropout=0.0, **shape)).eval()
