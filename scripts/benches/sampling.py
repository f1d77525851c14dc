"""Drawing characters."""

import statistics
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benches import nanogpt as peer
from benches.common import AsJson, checkout, ratio, report, seconds
from benches.machine import GEMM_FLOPS, gemm_seconds, seconds_a_gigabyte


def sampling(
    preset: Annotated[str, typer.Argument(help="A preset or a file: a GPT.")] = "nanogpt-gpu",
    nanogpt: Annotated[
        Path | None, typer.Option(callback=checkout, help="A checkout, as the reference.")
    ] = None,
    chars: Annotated[int, typer.Option(min=1, help="Drawn, after one.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Texts side by side, beside one alone.")] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """Time sampling from random weights against nanoGPT's `generate`, and against the machine.

    A text's first characters are read in another way than the rest, and timed by themselves. One text
    reads every weight for every character; many side by side do the arithmetic instead, and read the
    keys and values of each. nanoGPT draws a tenth of the characters, with its window full.
    """
    import torch

    from charlm.config import load_config
    from charlm.models import build_model
    from charlm.models.onednn import is_faster
    from charlm.sampling import Context, Settings, generate
    from charlm.sampling.gpt_reader import FIRST

    model_config = load_config(preset).model
    model = build_model(model_config, 65).eval()
    prompt = np.zeros(1, np.int64)

    def ours(rows: int, count: int, weights: str = "float32", before: int = 1) -> float:
        """Return the seconds of a character of all rows, after some that are not timed."""
        context = Context(model, prompt, weights, several=rows > 1)
        drawn = generate(context, before + count, Settings(), range(rows))
        for _ in range(before):
            next(drawn)
        return seconds(lambda: [None for _ in drawn]) / count

    loaded = FIRST + 2  # characters after which one text is read by compiled loops
    sides = {
        "one text, at first": lambda: ours(1, min(chars, FIRST)),
        "one text": lambda: ours(1, chars, before=loaded),
        "one text, int8": lambda: ours(1, chars, "int8", loaded),
        f"{batch} texts": lambda: ours(batch, max(1, chars // 10)),
        "memory": seconds_a_gigabyte,
        "peak": gemm_seconds,
        "oneDNN": partial(gemm_seconds, onednn=is_faster()),
    }
    if nanogpt:
        theirs = peer.model_of(nanogpt, model_config)
        full = torch.zeros(1, model_config.block_size, dtype=torch.int64)
        count = max(1, chars // 10)
        sides["nanoGPT"] = lambda: seconds(lambda: theirs.generate(full, count)) / count
        many = full.expand(batch, -1)
        sides[f"nanoGPT, {batch} texts"] = lambda: seconds(lambda: theirs.generate(many, 4)) / 4
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(side())
    middle = {name: statistics.median(values) for name, values in times.items()}
    parameters = model_config.parameter_count(65)
    limit = 4 * parameters / 1e9 * middle["memory"]
    arithmetic = 2 * parameters * batch * middle["peak"] / GEMM_FLOPS
    held = 3 / 4 * model_config.block_size  # positions in view, on average, once it is full
    keys = 8 * held * model_config.n_layer * model_config.n_embd * batch / 1e9 * middle["memory"]
    figures: dict[str, float | str] = {"parameters": float(parameters)}
    for name in (one := [name for name in sides if name.startswith("one text")]):
        figures[f"{name} (characters/s)"] = 1 / middle[name]
    figures[f"{batch} texts (characters/s)"] = batch / middle[f"{batch} texts"]
    figures["memory (GB/s)"] = 1 / middle["memory"]
    for name in one:
        figures[f"{name}: share of reading float32 weights once"] = limit / middle[name]
    figures["float32 GEMM peak of oneDNN, if used (GFLOP/s)"] = GEMM_FLOPS / middle["oneDNN"] / 1e9
    figures["float32 GEMM peak (GFLOP/s)"] = GEMM_FLOPS / middle["peak"] / 1e9
    figures[f"{batch} texts: share of that peak"] = arithmetic / middle[f"{batch} texts"]
    figures[f"{batch} texts: share of that and reading keys and values"] = (
        arithmetic + keys
    ) / middle[f"{batch} texts"]
    if nanogpt:
        figures["nanoGPT, one text (characters/s)"] = 1 / middle["nanoGPT"]
        figures["one text: times as fast"] = 1 / ratio(times["one text"], times["nanoGPT"])
        figures["one text, int8: times as fast"] = 1 / ratio(
            times["one text, int8"], times["nanoGPT"]
        )
        figures[f"{batch} texts: times as fast"] = 1 / ratio(
            times[f"{batch} texts"], times[f"nanoGPT, {batch} texts"]
        )
    report(figures, as_json)
