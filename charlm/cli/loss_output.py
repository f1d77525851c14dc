"""The loss of a model on a text, in words and for JSON."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charlm.evaluation.protocols import Cut
    from charlm.evaluation.score import Score
    from charlm.runs.load import SavedModel


def record(
    split: str | None, file: str | None, cut: "Cut", score: "Score", saved: "SavedModel"
) -> dict[str, Any]:
    """Return what `charlm eval` says, for JSON."""
    return {
        "split": split,
        "protocol": cut.name,
        "chars": score.chars,  # or bytes, of a run of bytes
        **score.in_units(saved.tokenizer.unit),
        "run": str(saved.run.path),
        "step": saved.step,
        "file": file,
        **as_json(score, saved.tokenizer.unit),  # adds what is not above
        "block_size": cut.block_size,
        "stride": cut.stride if cut.name == "sliding" else None,
        "unknown": score.unknown,
        "unit": saved.tokenizer.unit,
        **({} if saved.tokenizer.escape is None else {"escapes": score.escapes}),
        **({} if score.records is None else _of_records(score)),
    }


def _of_records(score: "Score") -> dict[str, Any]:
    """Return how many records were scored and the loss of one, for JSON."""
    nats = score.nats_per_record
    perplexity = math.exp(nats) if nats is not None and nats < 700 else None
    return {
        "records": score.records,
        "nats_per_record": nats,
        "perplexity_per_record": perplexity,
    }


def as_json(score: "Score", unit: str) -> dict[str, Any]:
    """Return a loss in every unit, for JSON."""
    interval = score.interval
    return {
        **score.in_units(unit),
        "interval": interval and {"low": interval.low, "high": interval.high},
    }


def summary(name: str, score: "Score", unit: str) -> str:
    """Return a loss in words, and a table of it by position if there is one."""
    interval = score.interval
    around = f" (95 %: {interval.low:.4f} to {interval.high:.4f})" if interval else ""
    bits = f"{score.bits_per_byte:.4f} bits per byte"
    if unit == "chars":
        bits = f"{score.bits_per_symbol:.4f} bits per character, {bits}"
    lines = [
        f"{name}: {score.loss_nats:.4f} nats{around}, {bits}, perplexity {score.perplexity:.3f}"
    ]
    if (nats := score.nats_per_record) is not None:
        whole = f"{nats:.3f} nats ({nats / math.log(2):.3f} bits) a record, its end included"
        lines.append(f"{score.records:,} record{'s' * (score.records != 1)}: {whole}")
    return "\n".join([*lines, *_by_position(score.by_position or ())])


def about_interval(score: "Score") -> str:
    """Say how the interval was computed, or why there is none."""
    from charlm.evaluation.score import BLOCK_CHARS, FEWEST_BLOCKS, RESAMPLES

    if score.interval:
        return (
            f"95 % interval: block bootstrap, {RESAMPLES:,} resamples of "
            f"{score.interval.blocks:,} blocks of {score.interval.block_chars:,}"
        )
    if not math.isfinite(score.loss_nats):
        return "no 95 % interval: the loss is not finite"
    enough = f"{FEWEST_BLOCKS} blocks of {BLOCK_CHARS:,} characters"
    return f"no 95 % interval: the text has fewer than {enough}"


def _by_position(nats: tuple[float, ...]) -> list[str]:
    """Return a table of positions 1, 2, 4, 8, ... and the last, if there are any."""
    shown = {1 << k for k in range(len(nats).bit_length())} | {len(nats)} if nats else set()
    rows = [f"{p:8d}  {nats[p - 1]:6.4f}" for p in sorted(shown)]
    return ["position    nats", *rows] if rows else []
