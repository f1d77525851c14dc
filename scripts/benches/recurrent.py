"""Recurrent models beside torch's own layers, and beside makemore's models."""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benches.common import AsJson, Rounds, charlm, in_turn, ratio, report, seconds

VOCAB = 65
STEP = re.compile(r"^step (\d+) \| loss \S+ \| step time (\S+)ms$", re.MULTILINE)
TEST = re.compile(r"^step (\d+) train loss: (\S+) test loss: (\S+)$", re.MULTILINE)


def recurrent(
    kind: Annotated[str, typer.Argument(help="rnn or lstm.")] = "lstm",
    layers: int = 2,
    hidden: int = 128,
    windows: int = 50,
    length: int = 50,
    steps: Annotated[int, typer.Option(min=1, help="Timed in each round.")] = 10,
    chars: Annotated[int, typer.Option(min=1, help="Drawn in each round.")] = 2000,
    rounds: Rounds = 7,
    as_json: AsJson = False,
) -> None:
    """Time steps and samples against torch's layer in a plain loop; by default in char-rnn's shape."""
    import torch
    from torch import nn

    from charlm.config.base import TYPES
    from charlm.fused.blocks import fused_forward
    from charlm.models import build_model, next_token_loss
    from charlm.models.device import choose_dtype, precision
    from charlm.sampling import Context, Settings, generate

    cpu = torch.device("cpu")
    shape = {"n_layer": layers, "n_embd": VOCAB, "n_hidden": hidden, "block_size": length}
    model = build_model(TYPES[kind](type=kind, **shape), VOCAB)
    fused = fused_forward(model)
    embedding, head = nn.Embedding(VOCAB, VOCAB), nn.Linear(hidden, VOCAB)
    layer = getattr(nn, kind.upper())(VOCAB, hidden, layers, batch_first=True)
    theirs = nn.ModuleList([embedding, layer, head])
    x, y = torch.randint(VOCAB, (2, windows, length))
    adamw = {one: torch.optim.AdamW(one.parameters(), fused=True) for one in (model, theirs)}

    def step(forward, module, dtype) -> None:
        adamw[module].zero_grad(set_to_none=True)
        with precision(cpu, dtype):
            logits = forward(x)
        next_token_loss(logits.float(), y).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        adamw[module].step()

    def steps_of(forward, module, dtype=torch.float32) -> float:
        return seconds(lambda: [step(forward, module, dtype) for _ in range(steps)]) / steps

    @torch.inference_mode()
    def plain_sample() -> None:
        state, idx = None, torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(chars):
            out, state = layer(embedding(idx), state)
            idx = torch.multinomial(head(out[:, -1]).softmax(-1), 1)

    def sample() -> None:
        context = Context(model, np.zeros(1, np.int64))
        for _ in generate(context, chars, Settings(), [1]):
            pass

    auto = choose_dtype("auto", cpu)
    times = in_turn(
        {
            "torch": lambda: steps_of(lambda ids: head(layer(embedding(ids))[0]), theirs),
            "charlm": lambda: steps_of(fused, model, auto),
            "charlm, float32": lambda: steps_of(fused, model),
            "torch, a character": lambda: seconds(plain_sample) / chars,
            "charlm, a character": lambda: seconds(sample) / chars,
        },
        rounds,
    )
    read = windows * length
    figures: dict[str, object] = {"precision of charlm": str(auto).removeprefix("torch.")}
    for name in ("torch", "charlm", "charlm, float32"):
        figures[f"training, {name} (characters/s)"] = read / statistics.median(times[name])
    for name in ("torch", "charlm"):
        each = statistics.median(times[f"{name}, a character"])
        figures[f"sampling, {name} (characters/s)"] = 1 / each
    figures["ratio training, charlm / torch"] = ratio(times["torch"], times["charlm"])
    figures["ratio training, float32"] = ratio(times["torch"], times["charlm, float32"])
    both = times["torch, a character"], times["charlm, a character"]
    figures["ratio sampling, charlm / torch"] = ratio(*both)
    report(figures, as_json)


def makemore(
    folder: Annotated[Path, typer.Option("--makemore", help="A checkout of karpathy/makemore.")],
    names: Annotated[Path, typer.Option(help="Its names.txt.")],
    kinds: Annotated[str, typer.Option(help="Of mlp, rnn, gru.")] = "mlp rnn gru",
    steps: Annotated[int, typer.Option(min=500, help="Of each run; a multiple of 500.")] = 5000,
    as_json: AsJson = False,
) -> None:
    """Train makemore's models by its defaults, and models of the same sizes by ours, for as many steps.

    The split is makemore's. A window here holds as many whole names as fit, so 16 windows of 16 have about makemore's 32 names.
    """
    split = Path(__file__).parent.parent / "makemore_split"
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        here = Path(scratch)
        command = [sys.executable, str(split), str(names.resolve()), str(here)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for kind in kinds.split():
            theirs = _makemore(folder, names, kind, steps, here / f"makemore-{kind}")
            ours = _charlm(kind, steps, here)
            for name, (loss, ms) in (("makemore", theirs), ("charlm", ours)):
                figures[f"{kind}, {name}: test loss (nats)"] = loss
                figures[f"{kind}, {name}: a step (ms)"] = ms
            figures[f"{kind}: ratio of times"] = ours[1] / theirs[1]
    report(figures, as_json)


def _makemore(folder: Path, names: Path, kind: str, steps: int, out: Path) -> tuple[float, float]:
    command = [sys.executable, "makemore.py", "-i", str(names.resolve()), "-o", str(out.resolve())]
    command += ["--type", kind, "--max-steps", str(steps + 1), "--num-workers", "0"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    times = [float(ms) for _, ms in STEP.findall(done.stdout)]
    losses = {int(step): float(test) for step, _, test in TEST.findall(done.stdout)}
    return losses[steps], statistics.median(times)


def _charlm(kind: str, steps: int, here: Path) -> tuple[float, float]:
    sizes = {"mlp": "context: 16, n_embd: 64, n_hidden: 64"}.get(kind, "n_embd: 64, n_hidden: 64")
    (here / f"{kind}.yaml").write_text(
        "data: {source: train.txt, records: lines, val_fraction: 0}\n"
        f"model: {{type: {kind}, block_size: 16, {sizes}}}\n"
        f"train: {{max_steps: {steps}, batch_size: 16, learning_rate: 3e-3}}\n"
        "run: {device: cpu}\n"
    )
    charlm("train", "--config", f"{kind}.yaml", "--out", kind, "-q", cwd=here)
    command = [
        sys.executable,
        "-m",
        "charlm",
        "eval",
        "--run",
        kind,
        "--file",
        "test.txt",
        "--json",
    ]
    done = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True)
    records = [
        json.loads(line) for line in (here / kind / "metrics.jsonl").read_text().splitlines()
    ]
    times = [record["seconds"] for record in records if record["kind"] == "train"]
    loss: float = json.loads(done.stdout)["loss_nats"]
    return loss, statistics.median(np.diff(times)) * 1e3
