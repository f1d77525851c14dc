"""charlm eval: every character of a text scored once, and by which protocol."""

import errno
import glob
import json as json_format
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from charlm.cli import output
from charlm.cli.signals import Stopped, StopSignals, load_torch
from charlm.errors import DataError, UsageError

if TYPE_CHECKING:
    from charlm.config import DataConfig
    from charlm.evaluation.protocols import Cut
    from charlm.evaluation.score import Score
    from charlm.evaluation.scoring import Scored
    from charlm.evaluation.unknown import LeftOut
    from charlm.runs.weights import SavedModel
    from charlm.text import Scan, Source, Tokenizer
    from charlm.text.tokens import Ids

Listener = Callable[["Scored"], None]
# It reads a text as its run did.
MENDS = {
    r"data\.source=-": "--file -",
    r"[^;]*data\.encoding=.*": " convert it to UTF-8 first, with iconv",
    r"use data\.unit=bytes": "name a run of bytes, which can score it",
}


def evaluate(
    run: Annotated[
        Path | None, typer.Option(help="Run folder. Default: the newest in runs/.", readable=False)
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"], typer.Option(help="Part of the run's text.")
    ] = "val",
    file: Annotated[
        str | None, typer.Option(help="Score this text instead: a file, folder, glob, name or -.")
    ] = None,
    protocol: Annotated[
        Literal["windows", "sliding", "stream"],
        typer.Option(
            help="windows: consecutive, context only inside. sliding: overlapping, so that each "
            "character has a window less a stride of context. stream: all the context the model "
            "can use, for counted models."
        ),
    ] = "windows",
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Characters in a window. Default: the model's own.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Characters that a sliding window moves on. Default: half of it."),
    ] = None,
    unknown: Annotated[
        Literal["error", "uniform"],
        typer.Option(
            help="Characters of --file that the model lacks: refused, or left out of what it sees "
            "and each charged ln(1114112 - V) nats for its code point plus its share of saying "
            "where they stand, ln((N + 1) C(N, u)) / u for u of N."
        ),
    ] = "error",
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Show the loss by position in the window too.")
    ] = False,
    per_char: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write one JSON line a character: its bits and the five likeliest; - is stdout.",
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Score a trained model: each character of a text once, with a 95 % interval.

    For example: charlm eval --split val --json
    """
    from charlm.runs import find_run

    load_torch()
    _check_options(file, protocol, by_position, per_char, json)
    found = find_run(run)
    config = found.read_config([f"run.device={device}"])
    if per_char not in (None, "-"):
        _check_place(Path(per_char), found.path, file or config.data.source)

    with StopSignals() as stop, stop.scratch() as scratch:
        try:
            with stop.at_once():
                from charlm.evaluation import protocols
                from charlm.runs.weights import load_model

                saved = load_model(found, checkpoint, device)
                cut = protocols.choose(
                    saved.model, protocol, block_size, stride, per_char is not None
                )
                with output.mends(MENDS):
                    text = (
                        _Text(_split(saved, split), saved.tokenizer)
                        if file is None
                        else _given(saved, file, unknown, scratch)
                    )
            with _lines(per_char, text.tokenizer, saved.tokenizer) as each:
                score = _score(saved, text, cut, by_position, each, stop)
        except Stopped:
            return stop.exit_code
    if json:
        output.result_json(_record(split, file, cut, score, saved, by_position))
        return 0
    # Where the characters took standard output, the summary must not end up among them.
    tell = output.say if per_char == "-" else output.result
    tell(_summary(file or split, score, saved.tokenizer.unit))
    if score.by_position:
        tell(_table(score.by_position))
    output.say(
        f"{score.chars:,} scored once: {cut.in_words}; {found.path} step {saved.step}\n"
        f"{_about_interval(score)}"
    )
    if text.left_out:
        bits = text.left_out.charge_nats / math.log(2)
        output.note(
            f"{score.unknown:,} of them are unknown to the model: left out of what it saw, and "
            f"charged {bits:.2f} bits each (--unknown uniform)"
        )
    return 0


def _check_options(
    file: str | None, protocol: str, by_position: bool, per_char: str | None, json: bool
) -> None:
    if file == "":
        raise UsageError("--file: expected a file, folder, glob, name or -, got an empty name")
    if by_position and protocol != "windows":
        raise UsageError(f"--by-position: {protocol} has no positions; use --protocol windows")
    if per_char == "":
        raise UsageError("--per-char: expected a file or -, got an empty name")
    if per_char == "-" and json:
        raise UsageError("--per-char - and --json both want standard output; give --per-char FILE")


def _check_place(place: Path, run: Path, text: str) -> None:
    """Refuse to write over a run, or over the text that is scored or that the run was made of."""
    from charlm.runs import RunFolder

    where = place.resolve()
    if where.is_relative_to(run.resolve()):
        raise UsageError(f"--per-char {place}: inside the run {run}; choose another place")
    if any(RunFolder(p).exists() and (p / "checkpoints").is_dir() for p in where.parents):
        raise UsageError(f"--per-char {place}: inside another run; choose another place")
    # A text may be named as a file, a folder or a glob.
    if where.is_file() and any(
        where.is_relative_to(Path(path).resolve()) for path in (text, *glob.iglob(text))
    ):
        raise UsageError(f"--per-char {place}: belongs to the text {text}; choose another place")


def _record(
    split: str,
    file: str | None,
    cut: "Cut",
    score: "Score",
    saved: "SavedModel",
    by_position: bool,
) -> dict[str, Any]:
    interval = score.interval
    record: dict[str, Any] = {
        "split": None if file else split,
        "protocol": cut.name,
        "chars": score.chars,
        "loss_nats": score.loss_nats,
        "bits_per_char": score.bits_per_char,
        "perplexity": score.perplexity,
        "run": str(saved.run.path),
        "step": saved.step,
        "file": file,
        "bits_per_byte": score.bits_per_byte,
        "interval": interval and {"low": interval.low, "high": interval.high},
        "block_size": cut.block_size,
        "stride": cut.stride if cut.name == "sliding" else None,
        "unknown": score.unknown,
    }
    if by_position:
        record["by_position"] = list(score.by_position or ())
    return record


def _summary(name: str, score: "Score", unit: str) -> str:
    interval = score.interval
    around = f" (95 %: {interval.low:.4f} to {interval.high:.4f})" if interval else ""
    bits = f"{score.bits_per_byte:.4f} bits a byte"
    if unit == "chars":
        bits = f"{score.bits_per_char:.4f} bits a character, {bits}"
    return f"{name}: {score.loss_nats:.4f} nats{around}, {bits}, perplexity {score.perplexity:.3f}"


def _about_interval(score: "Score") -> str:
    from charlm.evaluation.score import BLOCK_CHARS, FEWEST_BLOCKS, RESAMPLES

    if score.interval:
        return (
            f"95 % interval: block bootstrap, {RESAMPLES:,} resamples of "
            f"{score.interval.blocks:,} blocks of {score.interval.block_chars:,}"
        )
    if not math.isfinite(score.loss_nats):
        return "no interval: the mean is not finite"
    return f"no interval: fewer than {FEWEST_BLOCKS} blocks of {BLOCK_CHARS:,}"


def _table(by_position: tuple[float, ...]) -> str:
    """Show positions 1, 2, 4, 8, ... and the last."""
    longest = len(by_position)
    shown = [1 << k for k in range(longest.bit_length())]
    rows = [f"{p:8d}  {by_position[p - 1]:6.4f}" for p in sorted({*shown, longest})]
    return "\n".join(["position    nats", *rows])


def _score(
    saved: "SavedModel",
    text: "_Text",
    cut: "Cut",
    by_position: bool,
    each: Listener | None,
    stop: StopSignals,
) -> "Score":

    from charlm.evaluation.scoring import score_text, utf8_lengths

    def advance(chars: int) -> None:
        stop.check()
        bar.update(chars)

    bar = output.scoring_bar(len(text.ids) - 1)
    with bar:
        return score_text(
            saved.model,
            text.ids,
            cut,
            byte_lengths=utf8_lengths(text.tokenizer),
            left_out=text.left_out,
            by_position=by_position,
            each=each,
            progress=advance,
        )


@contextmanager
def _lines(
    per_char: str | None, symbols: "Tokenizer", known: "Tokenizer"
) -> Iterator[Listener | None]:
    """Open where the characters go, and yield what writes them there as JSON lines."""
    if per_char is None:
        yield None
        return

    def write(scored: "Scored") -> None:
        assert scored.likeliest is not None
        likeliest = zip(scored.likeliest.ids.tolist(), scored.likeliest.p.tolist(), strict=True)
        columns = (scored.positions, scored.symbols, scored.nats, scored.known)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for position, symbol, nats, is_known in rows:
            bets = zip(*next(likeliest), strict=True) if is_known else ()
            bits = round(nats / math.log(2), 6) if math.isfinite(nats) else None
            line = {
                "position": position,
                key: name(symbols, symbol),
                "bits": bits,
                "likeliest": [[name(known, i), round(p, 6)] for i, p in bets],
            }
            print(json_format.dumps(line), file=out)

    key, name = _naming(symbols.unit)
    if per_char == "-":
        out = sys.stdout
        yield write
        return
    with _replacing(Path(per_char)) as out:
        yield write


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Yield a text file that takes its place at `path` when the block succeeds, else vanishes.

    Raises:
        MachineError: The disk or its permissions refuse; an older file is unharmed.
        OSError: There is no such folder, or `path` is one.
    """
    from charlm.storage.atomic import put_in_place, scratch_folder

    if path.exists() and not path.is_file():  # a device or a pipe has nothing to keep
        with path.open("w", encoding="utf-8") as out:
            yield out
        return
    place = path.resolve()  # of a symbolic link, the file and not the link is replaced
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with scratch_folder(place.parent) as folder:
        temporary = folder / place.name
        with temporary.open("w", encoding="utf-8") as out:
            yield out
        put_in_place(temporary, place)


def _naming(unit: str) -> tuple[str, Callable[["Tokenizer", int], str | int]]:
    """Return what a symbol is called and how it is written: a character, or a byte's number."""
    if unit == "bytes":
        return "byte", lambda tokenizer, idx: idx
    return "char", lambda tokenizer, idx: tokenizer.decode([idx])


class _Text:
    """A text to score.

    Args:
        ids: What the model knows of it, by the model's ids.
        tokenizer: An alphabet that has all of it.
        left_out: What the model does not know of it.
    """

    def __init__(
        self, ids: "Ids", tokenizer: "Tokenizer", left_out: "LeftOut | None" = None
    ) -> None:
        self.ids = ids
        self.tokenizer = tokenizer
        self.left_out = left_out


def _split(saved: "SavedModel", name: str) -> "Ids":
    from charlm.text import open_corpus

    part = open_corpus(saved.run.tokens).splits[name]
    if len(part) < 2:
        raise DataError(
            f"{saved.run.path}: its {name} part has {len(part)} characters; it was made with "
            f"data.{name}_fraction {getattr(saved.config.data, f'{name}_fraction', 0)}"
        )
    return part


def _given(saved: "SavedModel", file: str, unknown: str, scratch: Path) -> _Text:
    """Encode a text with the run's alphabet; what has no id is refused or set apart."""
    from charlm.evaluation.unknown import leave_out
    from charlm.text import CharTokenizer, open_source, scan_text

    data = saved.config.data.model_copy(
        update={"source": file, "val_fraction": 0.0, "test_fraction": 0.0}
    )
    source = open_source(file)
    with output.bytes_bar(quiet=False) as bar:
        scan = scan_text(source, data, lambda read: bar("reading", read))
    for remark in scan.notes:
        output.note(remark)
    own = saved.tokenizer
    strange = scan.strange_to(own)
    known = scan.size - sum(int(scan.counts[ord(c)]) for c in strange)
    if strange and unknown == "error":
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in strange[:4])
        more = f" and {len(strange) - 4} more" if len(strange) > 4 else ""
        raise DataError(
            f"{source.name}: {shown}{more} not in the alphabet of this run, which has "
            f"{own.vocab_size} symbols; --unknown uniform charges {scan.size - known:,} characters"
        )
    if known < 2:
        of_it = " that the model knows" if strange else ""
        raise DataError(
            f"{file}: one character{of_it} cannot be scored: there is none before it"
            if known
            else f"{file}: the model knows none of its characters; use another model"
        )
    if not strange:
        return _Text(_encode(source, data, scan, own, scratch), own)
    assert isinstance(own, CharTokenizer)
    wide = CharTokenizer([*own.alphabet, *strange])
    text = _encode(source, data, scan, wide, scratch)
    ids, left_out = leave_out(text, wide, own, scratch / "known.bin")
    return _Text(ids, wide, left_out)


def _encode(
    source: "Source",
    data: "DataConfig",
    scan: "Scan",
    tokenizer: "Tokenizer",
    scratch: Path,
) -> "Ids":
    from charlm.text import encode_corpus

    with output.bytes_bar(quiet=False) as bar:
        corpus = encode_corpus(
            source, data, scan, tokenizer, scratch / "tokens", lambda read: bar("encoding", read)
        )
    return corpus.splits["train"]
