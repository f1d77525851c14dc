"""charlm explain: what a configuration means in shapes, parameters, FLOPs and memory."""

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.errors import CharlmError

if TYPE_CHECKING:
    from charlm.config import Config

ASSUMED_VOCAB = 65  # of Tiny Shakespeare, when the text is not here to be counted


def explain(
    config: Annotated[
        str,
        typer.Option(
            "--config", "-c", metavar="FILE|PRESET", help="A YAML file or a preset's name."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Override keys.")
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=1, max=2**21, help="Symbols. Default: counted in the text."),
    ] = None,
) -> None:
    """Show shapes, parameters, FLOPs a step and memory of a configuration, without training it."""
    from charlm.config import load_config
    from charlm.config import size as cost

    checked = load_config(config, overrides or [])
    vocab = vocab_size or _count_symbols(checked)
    parts = cost.parts(checked.model, vocab)
    total = sum(part.parameters for part in parts)
    output.result(f"{checked.model.type}: V = {vocab} symbols, T = {checked.model.block_size}\n")
    output.result("shapes of one batch")
    for name, shape in _shapes(checked, vocab):
        output.result(f"  {name:<31} {shape}")
    output.result("\nparameters")
    for part in parts:
        shape = " x ".join(f"{n:,}" for n in part.shape)
        times = f"{part.copies} x " if part.copies > 1 else ""
        output.result(f"  {part.name:<31} {times + '(' + shape + ')':<22} {part.parameters:>14,}")
    output.result(f"  {'total':<31} {'':<22} {total:>14,}")
    flops = cost.flops_per_step(checked, vocab)
    chars = checked.train.batch_size * checked.model.block_size
    output.result(f"\ntraining step: {chars:,} characters, {_flops(flops)}FLOP")
    steps, minutes = checked.train.max_steps, checked.train.minutes
    length = f"{steps:,} steps, {_flops(flops * steps)}FLOP"
    output.result(f"whole run: {f'{minutes:g} minutes by the clock' if minutes else length}")
    output.result("\nmemory in training (float32; activations are an estimate)")
    memory = cost.training_bytes(checked, vocab)
    for name, count in {**memory, "total": sum(memory.values())}.items():
        output.result(f"  {name:<31} {cost.human_bytes(count):>14}")
    output.result(f"checkpoint on disk: {cost.human_bytes(cost.checkpoint_bytes(checked, vocab))}")


def _count_symbols(config: "Config") -> int:
    from charlm.text import DATASETS, open_source, scan_text

    source = config.data.source
    if config.data.unit == "bytes":
        return 256
    if source == "-" or (source in DATASETS and not DATASETS[source].path().is_file()):
        output.note(f"{source} is not here to be counted; assuming {ASSUMED_VOCAB} symbols")
        return ASSUMED_VOCAB
    try:
        return scan_text(open_source(source), config.data).tokenizer(config.data).vocab_size
    except CharlmError as error:
        output.note(f"{error}; assuming {ASSUMED_VOCAB} symbols")
        return ASSUMED_VOCAB


def _shapes(config: "Config", vocab: int) -> list[tuple[str, str]]:
    model = config.model
    b, t, c = (
        config.train.micro_batch_size or config.train.batch_size,
        model.block_size,
        getattr(model, "n_embd", 0),
    )
    rows: list[tuple[str, tuple[int, ...]]] = [("idx (B, T)", (b, t))]
    if model.type != "bigram":
        rows.append(("embeddings (B, T, C)", (b, t, c)))
    if model.type == "averaging":
        rows += [("averaging matrix (T, T)", (t, t)), ("joined (B, T, 2C)", (b, t, 2 * c))]
    if model.type in ("attention", "multihead", "gpt"):
        heads = getattr(model, "n_head", 1)
        rows += [
            ("query, key, value (B, H, T, D)", (b, heads, t, c // heads)),
            ("attention weights (B, H, T, T)", (b, heads, t, t)),
        ]
    if model.type == "gpt":
        rows.append(("expanded in the MLP (B, T, 4C)", (b, t, 4 * c)))
    rows += [("logits (B, T, V)", (b, t, vocab)), ("for the loss (B*T, V)", (b * t, vocab))]
    return [(name, "(" + ", ".join(f"{n:,}" for n in shape) + ")") for name, shape in rows]


def _flops(count: int) -> str:
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if count >= 10**power:
            return f"{Decimal(count) / 10**power:.3g} {prefix}"
    return f"{count} "
