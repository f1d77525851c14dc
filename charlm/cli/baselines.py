"""charlm baselines: the loss on a text of models that need no training."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import output
from charlm.cli.options import (
    DataKeys,
    Encoding,
    File,
    Json,
    TextName,
    Unit,
    overridden,
    text_and_keys,
)
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import DataError, Phrase, Setting, UsageError, number_of

if TYPE_CHECKING:
    from charlm.config import DataConfig
    from charlm.evaluation import Ladder, Rung
    from charlm.text import Corpus, Scan, Tokenizer


def baselines(
    source: TextName = None,
    keys: DataKeys = None,
    file: File = None,
    val_fraction: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share to score, at the end; the rest is for training."),
    ] = 0.1,
    unit: Unit = "chars",
    encoding: Encoding = "utf-8",
    max_order: Annotated[int, typer.Option(min=1, max=16, help="Longest n-gram to try.")] = 10,
    block_size: Annotated[
        int | None,
        typer.Option(min=1, help="Score n-grams in windows of this length. Default: all context."),
    ] = None,
    json: Json = False,
) -> None:
    """Score a text without training: n-grams and compressors.

    For example: charlm baselines my.txt
    """
    source, keys = text_and_keys(source, file, keys)
    data = data_config(source, unit, encoding, val_fraction, keys)
    unit = data.unit
    load_torch()
    with StopSignals() as stop, stop.scratch() as scratch, stop.at_once():
        from charlm.evaluation.baselines import climb
        from charlm.text.tokenizer import seen_symbols

        corpus, tokenizer = _read(data, scratch)
        parts = corpus.splits
        ladder = climb(
            parts["train"], parts["val"], tokenizer, block_size=block_size, max_order=max_order
        )
    if json:
        described = {"text": source, "unit": unit, "symbols": seen_symbols(tokenizer)}
        output.result_json(described | as_json(ladder, unit))
    else:
        output.result("\n".join(table(ladder, unit)))


def data_config(
    text: str,
    unit: str,
    encoding: str,
    val_fraction: float = 0.1,
    keys: list[str] | None = None,
) -> "DataConfig":
    """Say how a command reads a text, or raise UsageError for an option or key that is wrong."""
    from pydantic import ValidationError

    from charlm.config import DataConfig, changed, read_config
    from charlm.config.sections import COMMON_ENCODINGS

    if not val_fraction < 1:
        where = f"--val-fraction {val_fraction:g}"
        raise UsageError(where, "leaves nothing to train on", "use a share below 1")
    options = {"unit": unit, "encoding": encoding, "val_fraction": val_fraction}
    try:
        data = DataConfig.model_validate(options)
    except ValidationError:  # the options have refused other mistakes
        raise UsageError("--encoding", f"unknown {encoding!r}", COMMON_ENCODINGS) from None
    if given := overridden(keys, {}):
        for key in given:
            if not key.startswith("data.") or key.startswith("data.source"):
                mend = "name one, such as data.records=lines"
                raise UsageError(key, "only keys of the section data can be set here", mend)
        # Any model will do: only the section of the text is used.
        whole = read_config(b"model: {type: bigram}", "").model_copy(update={"data": data})
        data = changed(whole, given, "the options").data
    return data.model_copy(update={"source": text})  # any name; opening it says what is wrong


def _read(data: "DataConfig", scratch: Path) -> tuple["Corpus", "Tokenizer"]:
    """Read a text twice: for its alphabet and for its ids."""
    from charlm.text import encode_corpus, open_source, scan_text
    from charlm.text.parts import check_scored
    from charlm.text.reading import table_note

    source = open_source(data.source, output.download_bar())
    with output.bytes_bar() as progress:
        scan = scan_text(source, data, progress)
        for remark in filter(None, [table_note(source, data), *scan.notes]):
            output.note(remark)
        check_scored(scan.size, scan.bounds(data), data)
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
    # Bits per byte compare with byte models and file sizes; in ASCII they are those per character.
    both = any(rung.score.bytes != rung.score.chars for rung in ladder.rungs)
    yield (
        f"{'baseline':<26}{'nats':>8}{f'bits/{symbol}':>11}{'bits/byte' if both else '':>{11 * both}}"
        f"{'perplexity':>12}{'seconds':>9}"
    )
    yield from (_row(rung, both) for rung in ladder.rungs if not rung.adaptive)
    if ladder.compressed:
        yield "adaptive: these learn from the validation text while they read it"
        yield from (_row(rung, both) for rung in ladder.rungs if rung.adaptive)
    yield from _legend(ladder, symbols)


def _row(rung: "Rung", with_bytes: bool) -> str:
    score = rung.score
    per_byte = f"{score.bits_per_byte:11.4f}" if with_bytes else ""
    return (
        f"{rung.name:<26}{score.loss_nats:8.4f}{score.bits_per_symbol:11.4f}{per_byte}"
        f"{score.perplexity:12.3f}{rung.seconds:9.1f}"
    )


def _legend(ladder: "Ladder", symbols: str) -> Iterator[str]:
    from charlm.evaluation.baselines import MIN_COMPRESSED

    symbol = symbols.removesuffix("s")
    all_context = "with all the context before each"
    how = f"in windows of {ladder.block_size}" if ladder.block_size else all_context
    yield (
        f"scored on {number_of(ladder.scored, f'validation {symbol}')}, {how}; "
        f"counted on {_share(ladder.counted, ladder.train)} training {symbols}"
    )
    chosen = (
        f"; order {ladder.order} was chosen on the end of the training part, so another may be "
        "better here"
    )
    yield (
        "unigram and bigram: add-one smoothing; longer n-grams: Kneser-Ney"
        f"{chosen if ladder.order else ''}"
    )
    if ladder.compressed:
        yield (
            "compressors have no windows; they first learned from "
            f"{_share(ladder.compressed, ladder.train)} training {symbols}; gzip looks back "
            "32 KiB, bzip2 900 kB, xz 8 MiB"
        )
    else:
        yield f"no compressors: they need at least {MIN_COMPRESSED:,} validation {symbols}"
    if worse := ladder.worse_than_uniform():
        yield f"worse than uniform, so worse than guessing: {', '.join(worse)}"


def _share(part: int, whole: int) -> str:
    return f"all {whole:,}" if part == whole else f"the last {part:,} of {whole:,}"


def as_json(ladder: "Ladder", unit: str) -> dict[str, Any]:
    """Return a ladder for JSON."""
    return {
        "protocol": ladder.protocol,
        "block_size": ladder.block_size,
        "train": ladder.train,
        "counted": ladder.counted,
        "scored": ladder.scored,
        "best_order": ladder.order,
        "compressed": ladder.compressed,
        "baselines": [
            {
                "name": rung.name,
                **rung.score.in_units(unit),
                "seconds": round(rung.seconds, 3),
                "adaptive": rung.adaptive,
            }
            for rung in ladder.rungs
        ],
    }


def reached(ladder: "Ladder", loss_nats: float, unit: str, adaptive: bool = False) -> str:
    """Say between which two baselines of its protocol a loss is, and name the protocol.

    For a loss that is not adaptive, the best adaptive baseline is named as well.
    """
    from charlm.evaluation.ladder import is_above

    if worse := worse_than_uniform(loss_nats, ladder.loss_nats("uniform")):
        return worse
    below, above = ladder.place(loss_nats, adaptive)
    past, ahead = (_named(rung) if rung else "" for rung in (below, above))
    if not above:
        said = f"better than every baseline of this protocol; the best of them: {past}"
    else:
        level = not is_above(loss_nats, above.score.loss_nats)
        said = f"{'level with' if level else 'short of'} {ahead}"
        said = f"past {past}, {said}" if past else said
    how = f"in windows of {ladder.block_size}" if ladder.block_size else "stream"
    named = [rung for rung in (below, above) if rung]
    saw = _what_they_saw(ladder, named, unit)
    return "; ".join([f"{said}, {'adaptive' if adaptive else how}", *saw])


def _named(rung: "Rung") -> str:
    return f"{rung.name} ({rung.score.loss_nats:.4f})"


def _what_they_saw(ladder: "Ladder", rungs: "list[Rung]", unit: str) -> Iterator[str]:
    """Say what else must be known of baselines to compare with them."""
    symbols = f"training {output.units(unit)}"
    compressors = [rung.name for rung in rungs if rung.adaptive]
    ngrams = [rung.name for rung in rungs if not rung.adaptive and rung.name != "uniform"]
    part = f"{_share(ladder.compressed, ladder.train)} {symbols}"
    whole = ladder.compressed == ladder.train
    if compressors and not whole:
        yield f"{' and '.join(compressors)} first learned from {part}"
    if ngrams and ladder.counted < ladder.train:
        yield f"{' and '.join(ngrams)} counted on {_share(ladder.counted, ladder.train)} {symbols}"
    if not compressors and (best := ladder.scored_alike(adaptive=True)[-1]).adaptive:
        after = "" if whole else f" after {part}"
        yield f"the best adaptive baseline, which learns from the scored text{after}: {_named(best)}"


def worse_than_uniform(loss_nats: float, uniform: float) -> str | None:
    """Say that a loss is worse than `uniform`, that of guessing; None if it is not."""
    from charlm.evaluation.ladder import is_above

    if not is_above(loss_nats, uniform):
        return None
    return f"worse than uniform ({uniform:.4f}): guessing, every symbol alike, is better"
