"""charlm score: how likely each of many texts is, one line for each, as they are read."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from charlm.cli import completion, output
from charlm.cli.escaping import one_word
from charlm.cli.options import A_RUN, Checkpoint, Device
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import DataError, UsageError, number_of

if TYPE_CHECKING:
    from charlm.cli.score_output import Form
    from charlm.evaluation.each import Ranking, TextReading, TextScore
    from charlm.runs.load import SavedModel
    from charlm.text.records import Records

MOST = 10_000_000  # texts that are ranked: they are held in memory


def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            autocompletion=completion.texts,
            help="Texts, one a line, or as the run's own records are: a file, folder, glob, named "
            "text, or - for standard input.",
        ),
    ] = "-",
    run: Annotated[
        Path | None, typer.Option(help="A run. Default: the newest in runs/.", **A_RUN)
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a line of JSON for each text. Default for a file or pipe."
        ),
    ] = False,
    tsv: Annotated[
        bool,
        typer.Option(
            "--tsv",
            help="Print columns, divided by tabs: rank (if ranked), nats, bits a character, "
            "characters, unknown (or rare) ones, text.",
        ),
    ] = False,
    table: Annotated[
        bool,
        typer.Option("--table", help="Print these columns to be read. Default on a terminal."),
    ] = False,
    top: Annotated[
        int, typer.Option(min=0, max=MOST, metavar="N", help="Only the N most likely, in order.")
    ] = 0,
    bottom: Annotated[
        int,
        typer.Option(
            min=0, max=MOST, metavar="N", help="Only the N least likely, the least likely first."
        ),
    ] = 0,
    threshold: Annotated[
        float | None, typer.Option(help="Only texts above this, which are less likely. See --by.")
    ] = None,
    by: Annotated[
        Literal["nats", "bits"],
        typer.Option(
            help="What --top, --bottom and --threshold compare. nats: of the whole text. bits: a "
            "character's mean, in bits, which does not grow with the length."
        ),
    ] = "nats",
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
) -> None:
    """Score each of many texts by itself.

    Candidates can be ranked, and texts found that do not fit.

    Each line of the output is the score of one text, from its first character to its end.

    For example: charlm score names.txt --run runs/names --bottom 10
    """
    form = _form(json, tsv, table)
    load_torch()
    if threshold is not None and (top or bottom):
        what = "every text of a ranking is printed"
        raise UsageError(f"--threshold {threshold:g}", what, "leave out --top and --bottom")
    with StopSignals() as stop:
        saved, reading = _opened(source, run, checkpoint, device, stop)
        totals = _Totals()
        _write(saved, reading, _Asked(form, by, threshold, top, bottom), totals, stop)
    for remark in reading.notes():
        output.note(remark)
    _summarise(saved, reading, totals)


@dataclass(frozen=True)
class _Asked:
    """What is printed."""

    form: "Form"
    by: str
    threshold: float | None
    top: int
    bottom: int


def _form(json: bool, tsv: bool, table: bool) -> "Form":
    """Return the form of the output; raise UsageError if several were asked for."""
    asked: dict[Form, bool] = {"json": json, "tsv": tsv, "table": table}
    chosen = [form for form in asked if asked[form]]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]}", "given both", "choose one")
    return chosen[0] if chosen else "table" if sys.stdout.isatty() else "json"


def _opened(
    source: str, run: Path | None, checkpoint: str, device: str, stop: StopSignals
) -> "tuple[SavedModel, TextReading]":
    """Load the model, and open the texts."""
    from charlm.runs import find_run

    found = find_run(run)
    with stop.at_once():
        from charlm.evaluation.each import TextReading
        from charlm.runs.load import load_model
        from charlm.text.sources import open_stream

        saved = load_model(found, checkpoint, device)
        if saved.remark:
            output.note(saved.remark)
        reading = TextReading(open_stream(source, output.download_bar()), saved.config.data)
        output.prepare(saved.model, stop.requested)
        if source == "-" and sys.stdin.isatty():
            output.say("reading texts from the terminal; Ctrl-D ends them")
    return saved, reading


def _write(
    saved: "SavedModel", reading: "TextReading", asked: _Asked, totals: "_Totals", stop: StopSignals
) -> None:
    """Score the texts and write what was asked for."""
    from charlm.cli.score_output import Lines
    from charlm.evaluation.each import Ranking

    ranked = bool(asked.top or asked.bottom)
    lines = Lines(asked.form, saved.tokenizer.unit, ranked)
    ranking: Ranking[TextScore] | None = Ranking(asked.top, asked.bottom) if ranked else None
    keep = _Keep(asked.by, asked.threshold, ranking)
    for scores in _scored(saved, reading, stop, shown=not ranked):
        totals.add(scores)
        lines.write((None, one) for one in scores if keep(one))
    for ends in (ranking.top(), ranking.bottom()) if ranking else ():
        lines.write(ends)


def _scored(
    saved: "SavedModel", reading: "TextReading", stop: StopSignals, shown: bool
) -> Iterator[list["TextScore"]]:
    """Yield scores as the texts come."""
    from charlm.evaluation.each import TextScorer

    scorer = TextScorer(saved.model, saved.tokenizer, stop.requested)
    hidden = (shown and sys.stdout.isatty()) or None  # where the lines are seen themselves
    unit = saved.tokenizer.unit.removesuffix("s")
    with output.bar("scoring", unit, disable=hidden) as bar:
        for records in _as_they_come(reading.records(), stop):
            for scores in scorer.score_read(records):
                yield scores
                bar.update(sum(one.chars for one in scores))


def _as_they_come(records: "Iterator[Records]", stop: StopSignals) -> "Iterator[Records]":
    """Yield the same; a signal ends the wait for more."""
    while True:
        with stop.at_once():
            some = next(records, None)
        if some is None:
            return
        yield some


@dataclass
class _Keep:
    """Decides which texts are printed when they are read; takes the others into the ranking."""

    by: str
    threshold: float | None
    ranking: "Ranking[TextScore] | None"

    def __call__(self, one: "TextScore") -> bool:
        value = one.nats if self.by == "nats" else one.bits_per_char
        if self.ranking:
            self.ranking.add(value, one)
            return False
        return self.threshold is None or not value <= self.threshold  # what is no number is odd


@dataclass
class _Totals:
    """Sums over all texts."""

    texts: int = 0
    chars: int = 0
    nats: float = 0.0
    strange: int = 0  # texts with unknown characters

    def add(self, scores: list["TextScore"]) -> None:
        """Take some more."""
        self.texts += len(scores)
        self.chars += sum(one.chars for one in scores)
        self.nats += sum(one.nats for one in scores)
        self.strange += sum(one.unknown > 0 for one in scores)


def _summarise(saved: "SavedModel", reading: "TextReading", totals: _Totals) -> None:
    """Say on stderr what was scored; raise DataError if that is nothing."""
    unit = saved.tokenizer.unit
    if not totals.chars:
        what = "holds no text to score"
        raise DataError(reading.source.name, what, "write one text a line, or name a file of texts")
    mean = f"{totals.nats / totals.chars:.4f} nats a {output.one(unit)}"
    each = f"{totals.nats / totals.texts:.2f} a text"
    many = f"{number_of(totals.texts, 'text')}, {number_of(totals.chars, output.one(unit))}"
    output.say(f"scored {many}: {mean}, {each}; {one_word(saved.run.path)} step {saved.step}")
    if totals.strange:
        have = number_of(totals.strange, "text has", "texts have")
        which = f"{have} {output.units(unit)} that the model does not know"
        charged = "each is charged by a uniform code (see the docs)"
        if saved.tokenizer.escape is not None:
            which = f"{have} characters that are rare in the run's text, or not in it"
            charged = (
                "the model reads one symbol for all of them, and each also costs its code point"
            )
        output.note(f"{which}; {charged}")
