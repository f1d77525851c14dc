"""charlm eval: the loss of a trained model on a text, each character scored once."""

import json as json_format
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
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
from charlm.errors import CharlmError, UsageError

if TYPE_CHECKING:
    from charlm.evaluation import Ladder
    from charlm.evaluation.given import GivenText
    from charlm.evaluation.protocols import Cut
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
            "have more context. stream: all the context the model can use, for counted models. "
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
    from charlm.config import changed
    from charlm.runs import find_run

    load_torch()
    if source is not None and split is not None:
        raise UsageError(f"--split {split}", "a --file is scored as a whole", "leave one out")
    adapt = of_adapt(settings)
    _check_options(source, protocol, adapt, by_position, per_char, json)
    split = split or "val"
    found = find_run(either(place, run, "--run"))
    config = changed(found.config, [f"run.device={device}", *adapt])
    if per_char not in (None, "-"):
        check_place(Path(per_char), found.path, source or config.data.source, "--per-char")
    with StopSignals() as stop, stop.scratch() as scratch:
        with stop.at_once():
            from charlm.evaluation import protocols
            from charlm.evaluation.given import GivenText, adaptive_reader, open_part
            from charlm.evaluation.unknown import escape_nats
            from charlm.runs.load import load_model

            saved = replace(load_model(found, checkpoint, device), config=config)
            if saved.remark:
                output.note(saved.remark)
            cut = protocols.choose(saved.model, protocol, block_size, stride, per_char is not None)
            if source is None:
                text = GivenText(open_part(saved.run, split)[0], saved.tokenizer)
            else:
                text = _given(saved, source, unknown, scratch)
            output.prepare(saved.model, stop.requested)
            reader = adaptive_reader(saved) if protocol == "adaptive" else None
        with _writer(per_char, text.tokenizer, saved.tokenizer) as each:
            score = _score(saved, text, cut, reader, by_position, each, stop)
    if json:
        said = record(None if source else split, source, cut, score, saved)
        said |= {"learned": reader.learned} if reader else {}
        output.result_json(said | ({"by_position": score.by_position} if by_position else {}))
        return
    # Where the characters took standard output, the summary must not end up among them.
    tell = output.say if per_char == "-" else output.result
    unit = saved.tokenizer.unit
    tell(summary(one_word(source or split), score, unit))
    how = f"scored {score.chars:,} characters {cut.in_words}"
    output.say(f"{output.in_unit(how, unit)}; {one_word(found.path)} step {saved.step}")
    if reader:
        output.say(f"adaptive: {learned(reader.learned)}")
    output.say(output.in_unit(about_interval(score), unit))
    if not text.left_out:
        _compare_with_baselines(saved, cut, score, source is None and split == "val")
    if text.left_out:
        cost = f"cost {text.left_out.charge_nats / math.log(2):.2f} bits each (--unknown uniform)"
        output.note(f"{score.unknown:,} of them are unknown to the model and {cost}")
    if score.escapes:
        cost = f"cost {escape_nats(saved.tokenizer.vocab_size) / math.log(2):.2f} bits more each"
        output.note(f"{score.escapes:,} of them are rare or unknown: one symbol, and they {cost}")


def _compare_with_baselines(saved: "SavedModel", cut: "Cut", score: "Score", of_val: bool) -> None:
    from charlm.evaluation.unknown import uniform_nats

    tokenizer = saved.tokenizer
    uniform = uniform_nats(tokenizer.vocab_size, score.escapes, score.chars)
    if of_val and (ladder := _kept_ladder(saved, cut, score)):
        adaptive = cut.name == "adaptive"
        output.say(f"reached: {reached(ladder, score.loss_nats, tokenizer.unit, adaptive)}")
    elif worse := worse_than_uniform(score.loss_nats, tokenizer.vocab_size, uniform):
        output.note(f"this is {worse}")


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
