"""charlm eval: the loss of a trained model on a text, each character scored once."""

import json as json_format
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from charlm.cli import completion, output
from charlm.cli.baselines import reached, worse_than_uniform
from charlm.cli.escaping import one_word
from charlm.cli.loss_output import about_interval, record, summary
from charlm.cli.options import (
    AdaptKeys,
    Checkpoint,
    Device,
    Json,
    Run,
    RunPlace,
    check_place,
    either,
    of_adapt,
)
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import CharlmError, UsageError, number_of

if TYPE_CHECKING:
    from charlm.evaluation import Ladder
    from charlm.evaluation.given import GivenText
    from charlm.evaluation.protocols import Cut, Name
    from charlm.evaluation.score import Score
    from charlm.evaluation.scoring import Scored
    from charlm.models import AdaptiveReader
    from charlm.runs.load import SavedModel
    from charlm.text import Tokenizer

Unknown = Literal["error", "uniform"]
Listener = Callable[["Scored"], None]


def evaluate(
    place: RunPlace = None,
    run: Run = None,
    split: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option(help="Part of the run's text. Default: val."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--file",
            autocompletion=completion.texts,
            help="Score this instead: a file, folder, glob, named text or -.",
        ),
    ] = None,
    protocol: Annotated[
        Literal["windows", "sliding", "stream", "adaptive"],
        typer.Option(
            help="windows: consecutive windows. sliding: overlapping windows, so that characters "
            "have more context. stream: all the context the model can use, for counted models and those with a state. "
            "adaptive: the model may learn from each character after it is scored (see --set)."
        ),
    ] = "windows",
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Characters in a window. Default: the model's own.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Characters between starts of sliding windows. Default: half a window."),
    ] = None,
    unknown: Annotated[
        Unknown,
        typer.Option(
            help="Characters of --file that the model does not know. error: refuse the text. "
            "uniform: score them by a uniform code (see the docs). With data.min_count, they are "
            "read as the symbol of rare characters."
        ),
    ] = "error",
    settings: AdaptKeys = None,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Also show the loss by position in the window.")
    ] = False,
    per_char: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a JSON line for each character: its bits and the five most likely "
            "characters. - is standard output.",
        ),
    ] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score a trained model on a text.

    Each character is scored once; the loss has a 95 % confidence interval.

    For example: charlm eval --split val --json
    """
    load_torch()
    if source is not None and split is not None:
        raise UsageError(f"--split {split}", "a --file is scored as a whole", "leave one out")
    adapt = of_adapt(settings)
    _check_options(source, protocol, adapt, by_position, per_char, json)
    cut = (protocol, block_size, stride)
    order = _Order(split or "val", source, cut, unknown, by_position, per_char)
    result = _evaluated(order, either(place, run, "--run"), adapt, checkpoint, device)
    if json:
        _print_json(order, result)
    else:
        _print(order, result)


@dataclass(frozen=True)
class _Order:
    """What the command line asks for."""

    split: str
    source: str | None  # a text, instead of the split
    cut: "tuple[Name, int | None, int | None]"  # the protocol, its block size and stride
    unknown: Unknown
    by_position: bool
    per_char: str | None


@dataclass(frozen=True)
class _Result:
    """What was scored, and how well."""

    saved: "SavedModel"
    text: "GivenText"
    cut: "Cut"
    score: "Score"
    reader: "AdaptiveReader | None"


def _evaluated(
    order: _Order, place: Path | None, adapt: Sequence[str], checkpoint: str, device: str
) -> _Result:
    """Load the model and the text, and score."""
    from charlm.config import changed
    from charlm.runs import find_run

    found = find_run(place)
    config = changed(found.config, [f"run.device={device}", *adapt])
    if order.per_char not in (None, "-"):
        own = order.source or config.data.source
        check_place(Path(order.per_char), found.path, own, "--per-char")
    with StopSignals() as stop, stop.scratch() as scratch:
        with stop.at_once():
            from charlm.evaluation import protocols
            from charlm.evaluation.given import GivenText, adaptive_reader, open_part
            from charlm.runs.load import load_model

            saved = replace(load_model(found, checkpoint, device), config=config)
            if saved.remark:
                output.note(saved.remark)
            cut = protocols.choose(saved.model, *order.cut, order.per_char is not None)
            if order.source is None:
                text = GivenText(open_part(saved.run, order.split)[0], saved.tokenizer)
            else:
                text = _given(saved, order.source, order.unknown, scratch)
            output.prepare(saved.model, stop.requested)
            reader = adaptive_reader(saved) if cut.name == "adaptive" else None
        with _writer(order.per_char, text.tokenizer, saved.tokenizer) as each:
            score = _score(saved, text, cut, reader, order.by_position, each, stop)
        return _Result(saved, text, cut, score, reader)


def _print_json(order: _Order, result: _Result) -> None:
    """Print the loss as one JSON object."""
    saved, score, reader = result.saved, result.score, result.reader
    split = None if order.source else order.split
    said = record(split, order.source, result.cut, score, saved)
    said |= {"learned": reader.learned} if reader else {}
    output.result_json(said | ({"by_position": score.by_position} if order.by_position else {}))


def _print(order: _Order, result: _Result) -> None:
    """Print the loss in words, and what one must know of it."""
    saved, score, unit = result.saved, result.score, result.saved.tokenizer.unit
    # Where the characters took standard output, the summary must not end up among them.
    tell = output.say if order.per_char == "-" else output.result
    tell(summary(one_word(order.source or order.split), score, unit))
    how = f"scored {number_of(score.chars, 'character')} {result.cut.in_words}"
    output.say(f"{output.in_unit(how, unit)}; {one_word(saved.run.path)} step {saved.step}")
    if result.reader:
        remedy = "" if result.reader.learned else "; try --set adapt.weights=true"
        output.say(f"adaptive: {learned(result.reader.learned)}{remedy}")
    output.say(output.in_unit(about_interval(score), unit))
    _compare_with_baselines(result, order.source is None and order.split == "val")
    _note_strange(result)


def _compare_with_baselines(result: _Result, of_val: bool) -> None:
    """Say which baselines of the run the loss is between, or that it is worse than guessing."""
    from charlm.evaluation.unknown import uniform_nats

    saved, cut, score, left_out = result.saved, result.cut, result.score, result.text.left_out
    uniform = uniform_nats(saved.tokenizer.vocab_size, score.escapes, score.chars)
    if left_out:  # which costs the same however the others are predicted
        unknown = score.unknown / score.chars
        uniform = (1 - unknown) * uniform + unknown * left_out.charge_nats
    if of_val and (ladder := _kept_ladder(saved, cut, score)):
        adaptive, unit = cut.name == "adaptive", saved.tokenizer.unit
        output.say(f"reached: {reached(ladder, score.loss_nats, unit, adaptive)}")
    elif worse := worse_than_uniform(score.loss_nats, uniform):
        output.note(f"this is {worse}")


def _note_strange(result: _Result) -> None:
    """Note what characters cost that the model does not know, or that are rare, and name some."""
    from charlm.evaluation.unknown import escape_nats
    from charlm.text.tokenizer import some_of

    score, text = result.score, result.text
    named = f" ({some_of(text.strange)})" if text.strange else ""
    if text.left_out:
        are = number_of(score.unknown, "of them is", "of them are")
        cost = f"cost {text.left_out.charge_nats / math.log(2):.2f} bits each (--unknown uniform)"
        output.note(f"{are} unknown to the model{named}; they {cost}")
    if score.escapes:
        are = number_of(score.escapes, "of them is", "of them are")
        bits = escape_nats(result.saved.tokenizer.vocab_size) / math.log(2)
        output.note(
            f"{are} rare or unknown{named}: one symbol, and they cost {bits:.2f} bits more each"
        )


def _kept_ladder(saved: "SavedModel", cut: "Cut", score: "Score") -> "Ladder | None":
    """Return the baselines that the run has kept, if they were scored alike, on as many characters."""
    from charlm.evaluation.ladder import FACTS, kept
    from charlm.storage import read_manifest

    if cut.name not in ("windows", "adaptive"):
        return None
    facts = read_manifest(saved.run.text_path)
    made_of = {key: facts.get(key) for key in FACTS}
    if cut.name == "windows":  # baselines that are adaptive have none
        made_of["block_size"] = cut.length
    ladder = kept(saved.run.baselines_path, made_of)
    if ladder and cut.name == "adaptive":  # a compressor also pays for the first character
        coded = {rung.score.chars for rung in ladder.rungs if rung.adaptive}
        return ladder if coded == {score.chars + 1} else None
    return ladder if ladder and ladder.scored == score.chars else None


def learned(what: Sequence[str]) -> str:
    """Say what a model has learned while it read."""
    some = " and ".join(filter(None, (", ".join(what[:-1]), *what[-1:])))
    return f"learned {some} while reading" if what else "learned nothing"


def _check_options(
    file: str | None,
    protocol: str,
    settings: Sequence[str],
    by_position: bool,
    per_char: str | None,
    json: bool,
) -> None:
    for setting in settings:
        if protocol != "adaptive":
            what = f"nothing is learned under the protocol {protocol}"
            raise UsageError(f"--set {setting}", what, "use --protocol adaptive")
    if file == "":
        raise UsageError("--file", "got an empty name", "name a file, folder, glob, text or -")
    if by_position and protocol != "windows":
        raise UsageError("--by-position", f"{protocol} has no positions", "use --protocol windows")
    if per_char == "":
        raise UsageError("--per-char", "got an empty name", "name a file, or - for standard output")
    if per_char == "-" and json:
        mend = "write the characters to a file"
        raise UsageError("--per-char -", "--json needs standard output too", mend)


def _given(saved: "SavedModel", name: str, unknown: Unknown, scratch: Path) -> "GivenText":
    from charlm.evaluation.given import open_part, read_text
    from charlm.evaluation.repeats import copy_note

    with output.bytes_bar() as bar:
        text = read_text(name, saved.config.data, saved.tokenizer, scratch, unknown, bar)
    for remark in text.notes:
        output.note(remark)
    with suppress(CharlmError):  # a run that has lost its text can score another
        train, _ = open_part(saved.run, "train")
        if note := copy_note(text.ids, train, saved.tokenizer, one_word(name)):
            output.note(note)
    return text


@contextmanager
def _writer(
    per_char: str | None, symbols: "Tokenizer", known: "Tokenizer"
) -> Iterator[Listener | None]:
    """Yield a function that writes scored characters as JSON lines, if the option is given."""
    from charlm.storage.atomic import replacing

    if per_char is None:
        yield None
        return
    with nullcontext(sys.stdout) if per_char == "-" else replacing(Path(per_char)) as out:
        yield lambda scored: out.writelines(
            json_format.dumps(row) + "\n" for row in scored.records(symbols, known)
        )


def _score(
    saved: "SavedModel",
    text: "GivenText",
    cut: "Cut",
    reader: "AdaptiveReader | None",
    by_position: bool,
    each: Listener | None,
    stop: StopSignals,
) -> "Score":
    from charlm.evaluation.scoring import score_text, utf8_lengths

    with output.bar("scoring", text.tokenizer.unit.removesuffix("s"), len(text.ids) - 1) as bar:
        return score_text(
            saved.model,
            text.ids,
            cut,
            reader=reader,
            byte_lengths=utf8_lengths(text.tokenizer),
            left_out=text.left_out,
            by_position=by_position,
            each=each,
            progress=bar.update,
            should_stop=stop.requested,
        )
