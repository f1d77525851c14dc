"""charlm novelty: how much of a run's samples is new, and how much was recited."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import completion, output
from charlm.cli.escaping import one_word
from charlm.cli.options import Checkpoint, Device, Json, Run, RunPlace, either
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import DataError, UsageError, check_stop, number_of

if TYPE_CHECKING:
    from charlm.cli.novelty_output import Row, Shown
    from charlm.runs import RunFolder
    from charlm.sampling import Drawing
    from charlm.text import Split

TEMPERATURES = (0.5, 0.8, 1.0)
MANY, FEW = 1000, 100  # texts in a row by default; few if they take long
LONG = 100  # characters of a text, on average


def novelty(
    place: RunPlace = None,
    run: Run = None,
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            min=1,
            max=1_000_000,
            help=f"Texts in a row. Default: {MANY:,}, or {FEW} if they are long.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--file",
            autocompletion=completion.texts,
            help="Measure these texts instead of samples: a file, folder, glob, named text or -.",
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Of a row of samples; repeatable. Default: 0.5, 0.8 and 1."),
    ] = None,
    chars: Annotated[
        int,
        typer.Option(
            min=1, help="Length of a text; of a run with records, the most that is sampled."
        ),
    ] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the first sample of each row.")] = 0,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Say how much of a run's samples is new.

    The rest stands in the training part.

    Records are looked up as a whole and compared with the nearest training record, by edit distance.
    Of longer texts, the longest span is sought that the training part has as well. A row for the
    held-out part shows what is usual.

    For example: charlm novelty runs/names --temperature 0.8
    """
    load_torch()
    from charlm.runs import find_run

    if source is not None and temperature:
        mend = "leave one out"
        raise UsageError(f"--temperature {temperature[0]:g}", "a --file is not sampled", mend)
    found = find_run(either(place, run, "--run"))
    with StopSignals() as signals:
        request = _Request(found, number, chars, seed, checkpoint, device, quiet)
        shown = _measured(request, source, temperature or TEMPERATURES, signals)
    if json:
        output.result_json({"run": str(found.path), **shown.as_json()})
        return
    output.result("\n\n".join("\n".join(table) for table in shown.tables()))
    for remark in () if quiet else shown.remarks():
        output.say(remark)


def _measured(
    request: "_Request", source: str | None, temperatures: Sequence[float], signals: StopSignals
) -> "Shown":
    """Sample, or read the texts of a file, and measure them and the held-out part."""
    from charlm.cli.novelty_output import Shown
    from charlm.evaluation.given import open_part
    from charlm.evaluation.novelty import measure

    run = request.run
    train = open_part(run, "train")[0]
    count = request.number or (FEW if _mean_length(train) > LONG else MANY)
    if source is None:
        rows = list(_drawn(request, count, temperatures, signals))
        if not rows:
            raise UsageError(f"--chars {request.chars}", "no sample ended before it", "raise it")
    else:
        with signals.at_once():
            rows = [_of_file(request, source, count)]
    rows += _held_out(run, count, request.chars)
    with output.steps(request.quiet, signals.requested) as progress:
        measured = measure([row.texts for row in rows], train, run.tokenizer, progress)
    return Shown(rows, measured, run.tokenizer.unit)


def _mean_length(part: "Split") -> float:
    """Return the mean length of the records of a part."""
    from charlm.text.borders import Borders

    return math.inf if part.boundary is None else len(part) / (len(Borders(part)) - 1) - 1


@dataclass(frozen=True)
class _Request:
    """What to measure."""

    run: "RunFolder"
    number: int | None  # of texts in a row; None: by their length
    chars: int  # most characters of one
    seed: int
    checkpoint: str
    device: str
    quiet: bool


def _drawn(
    request: _Request, count: int, temperatures: Sequence[float], signals: StopSignals
) -> Iterator["Row"]:
    """Yield a row of samples for each temperature."""
    from charlm import sampling
    from charlm.config import changed
    from charlm.runs.load import load_model

    run = request.run
    options = [f"run.device={request.device}", f"sample.max_new_chars={request.chars}"]
    configs = [changed(run.config, [*options, f"sample.temperature={t}"]) for t in temperatures]
    first = sampling.choose_seed(request.seed)
    saved = load_model(run, request.checkpoint, request.device)
    if saved.remark:
        output.note(saved.remark)
    output.prepare(saved.model, signals.requested, request.quiet)
    prompt = saved.config.sample.prompt if run.tokenizer.boundary is None else ""
    ids = sampling.encode_prompt(run.tokenizer, prompt)
    for config in configs:
        task = sampling.task_of(run.tokenizer, config.sample, (), None, "float32")
        many = 1 if task.settings.greedy else count  # others would be the same text
        drawing = sampling.Drawing(saved.model, run.tokenizer, ids, task, signals.requested, many)
        yield from _row(request, drawing, range(first, first + many))


def _row(request: _Request, drawing: "Drawing", seeds: range) -> Iterator["Row"]:
    """Draw a text for each seed, and yield a row of those that are whole, if any is."""
    from charlm.cli.novelty_output import Row

    temperature = drawing.task.settings.temperature
    name, texts = f"temperature {temperature:g}", []
    with output.bar(name, "text", len(seeds), disable=request.quiet or None) as bar:
        for group in drawing.groups(seeds):
            texts += drawing.draw(group)
            check_stop(drawing.should_stop)
            bar.update(len(group))
    of_records = drawing.tokenizer.boundary is not None
    whole = [text.text() for text in texts if text.ended == "boundary" or not of_records]
    if len(whole) < len(texts):
        cut = f"{len(texts) - len(whole):,} of {number_of(len(texts), 'sample')} cut off"
        output.note(f"{name}: {cut} at --chars {request.chars}, and left out")
    if whole:
        facts = {"temperature": temperature, "cut_off": len(texts) - len(whole)}
        yield Row(name, whole, facts)


def _of_file(request: _Request, name: str, count: int) -> "Row":
    """Return a row of given texts, read as the run read its own."""
    from charlm.cli.novelty_output import Row
    from charlm.evaluation.given import read_as
    from charlm.evaluation.given_texts import texts_of_source
    from charlm.text import open_source

    data = request.run.config.data.model_copy(update={"source": name})
    notes: list[str] = []
    with output.bytes_bar(request.quiet) as bar, read_as(data):
        progress, length = partial(bar, "reading"), request.chars
        chosen = texts_of_source(open_source(name), data, count, length, notes, progress)
    for remark in notes:
        output.note(remark)
    if len(chosen.texts) < chosen.of:
        what = f"{len(chosen.texts):,} of its {number_of(chosen.of, 'text')}, spread evenly"
        output.note(f"{one_word(name)}: {what}; for more, raise -n")
    return Row(Path(name).name or name, chosen.texts, {"file": name})


def _held_out(run: "RunFolder", count: int, chars: int) -> Iterator["Row"]:
    """Yield a row of the held-out part, if there is one."""
    from charlm.cli.novelty_output import HELD_OUT, Row
    from charlm.evaluation.given import open_part
    from charlm.evaluation.given_texts import texts_of_part

    try:
        part = open_part(run, "val")[0]
    except DataError:
        output.note("this run has no held-out part to compare with")
        return
    chosen = texts_of_part(part, run.tokenizer, count, chars)
    yield Row(HELD_OUT, chosen.texts, {"split": "val"})
