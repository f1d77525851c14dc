"""charlm baselines: the loss on a text of models that need no training."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import output
from charlm.cli.options import Encoding, File, Json, TextName, Unit, named_text
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import DataError, Phrase, Setting, UsageError

if TYPE_CHECKING:
    from charlm.config import DataConfig
    from charlm.evaluation.baselines import Ladder
    from charlm.text import Corpus, Scan, Tokenizer


def baselines(
    source: TextName = None,
    file: File = None,
    val_fraction: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share to score, at the end; the rest is for training."),
    ] = 0.1,
    unit: Unit = "chars",
    encoding: Encoding = "utf-8",
    max_order: Annotated[int, typer.Option(min=1, max=16, help="Longest n-gram to try.")] = 10,
    json: Json = False,
) -> None:
    """Score a text without training: n-grams and compressors.

    For example: charlm baselines my.txt
    """
    source = named_text(source, file)
    data = data_config(source, unit, encoding, val_fraction)
    load_torch()
    with StopSignals() as stop, stop.scratch() as scratch, stop.at_once():
        from charlm.evaluation.baselines import climb

        corpus, tokenizer = _read(data, scratch)
        parts = corpus.splits
        ladder = climb(parts["train"], parts["val"], tokenizer, max_order=max_order)
    if json:
        described = {"text": source, "unit": unit, "symbols": tokenizer.vocab_size}
        output.result_json(described | as_json(ladder))
    else:
        output.result("\n".join(table(ladder, unit)))


def data_config(text: str, unit: str, encoding: str, val_fraction: float = 0.1) -> "DataConfig":
    """Say how a command reads a text, or raise UsageError for an option that is out of range."""
    from pydantic import ValidationError

    from charlm.config import DataConfig

    if not val_fraction < 1:
        where = f"--val-fraction {val_fraction:g}"
        raise UsageError(where, "leaves nothing to train on", "use a share below 1")
    keys = {"unit": unit, "encoding": encoding, "val_fraction": val_fraction}
    try:
        data = DataConfig.model_validate(keys)
    except ValidationError:  # the options have refused other mistakes
        mend = "utf-8, utf-16 and latin-1 are common"
        raise UsageError("--encoding", f"unknown {encoding!r}", mend) from None
    return data.model_copy(update={"source": text})  # any name; opening it says what is wrong


def _read(data: "DataConfig", scratch: Path) -> tuple["Corpus", "Tokenizer"]:
    """Read a text twice: for its alphabet and for its ids."""
    from charlm.text import encode_corpus, open_source, scan_text
    from charlm.text.corpus import split_bounds

    source = open_source(data.source, output.download_bar())
    with output.bytes_bar() as progress:
        scan = scan_text(source, data, progress)
        for remark in scan.notes:
            output.note(remark)
        bounds = split_bounds(scan.size, data)
        for name in ("train", "val"):
            length = bounds[name][1] - bounds[name][0]
            if length < 2:
                whole = f"{scan.size:,} {output.units(data.unit)}"
                what = f"its {name} part has {length} of {whole} and needs 2"
                raise DataError(data.source, what, "use a longer text or another --val-fraction")
        tokenizer = fitted(scan, data)
        corpus = encode_corpus(source, data, scan, tokenizer, scratch / "tokens", progress)
    return corpus, tokenizer


def fitted(scan: "Scan", data: "DataConfig") -> "Tokenizer":
    """Fit the tokenizer of a text for a command that has no option for `data.max_vocab`."""
    try:
        return scan.tokenizer(data)
    except DataError as error:
        raise error.replace(mend=Phrase("use {}", Setting("data.unit", "bytes"))) from None


def table(ladder: "Ladder", unit: str) -> Iterator[str]:
    """Yield the lines of the table and its legend."""
    symbol, symbols = unit.removesuffix("s"), output.units(unit)
    yield f"{'baseline':<26}{'nats':>8}{f'bits/{symbol}':>11}{'perplexity':>12}{'seconds':>9}"
    for rung in ladder.rungs:
        score = rung.score
        yield (
            f"{rung.name:<26}{score.loss_nats:8.4f}{score.bits_per_char:11.4f}"
            f"{score.perplexity:12.3f}{rung.seconds:9.1f}"
        )
    yield (
        f"scored on {ladder.scored:,} validation {symbols}, with all the context before each; "
        f"counted on the last {ladder.counted:,} training {symbols}"
    )
    chosen = "; the best order was chosen on the end of the training part" if ladder.order else ""
    yield f"unigram and bigram: add-one smoothing; longer n-grams: Kneser-Ney{chosen}"
    if not ladder.compressed:
        from charlm.evaluation.baselines import MIN_COMPRESSED

        yield f"no compressors: they need at least {MIN_COMPRESSED:,} validation {symbols}"
        return
    yield (
        "compressors: extra compressed size of the validation text after the last "
        f"{ladder.compressed:,} training {symbols}; gzip looks back 32 KiB, bzip2 900 kB, xz 8 MiB"
    )


def as_json(ladder: "Ladder") -> dict[str, Any]:
    """Return a ladder for JSON."""
    return {
        "protocol": "stream",
        "counted": ladder.counted,
        "scored": ladder.scored,
        "best_order": ladder.order,
        "compressed": ladder.compressed,
        "baselines": [
            {
                "name": rung.name,
                "loss_nats": rung.score.loss_nats,
                "bits_per_char": rung.score.bits_per_char,
                "perplexity": rung.score.perplexity,
                "seconds": round(rung.seconds, 3),
            }
            for rung in ladder.rungs
        ],
    }


def reached(ladder: "Ladder", loss_nats: float) -> str:
    """Say between which two baselines a loss is."""
    from charlm.evaluation.baselines import as_printed

    below, above = ladder.place(loss_nats)
    past, ahead = (f"{r.name} ({r.score.loss_nats:.4f})" if r else "" for r in (below, above))
    if not above:
        return f"better than every baseline; the best of them: {past.removeprefix('best ')}"
    level = as_printed(above.score.loss_nats) == as_printed(loss_nats)
    if not past:
        return f"level with {ahead}" if level else f"no baseline; next: {ahead}"
    return f"past {past}, {'level with' if level else 'short of'} {ahead}"
