"""charlm data: named texts, and facts about any text."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import completion, output
from charlm.cli.baselines import data_config, fitted
from charlm.cli.options import DataKeys, Encoding, File, TextName, Unit, text_and_keys
from charlm.cli.spelling import one_line
from charlm.cli.verb import Verb
from charlm.errors import DataError, number_of

if TYPE_CHECKING:
    from charlm.config import DataConfig
    from charlm.text import Corpus, Scan, Source, Tokenizer
    from charlm.text.datasets import Dataset
    from charlm.text.survey import Survey

# What `charlm train` does with each part of a text.
USES = {
    "train": "to learn from",
    "val": "to measure the loss on",
    "test": "for a last measurement",
}

app = typer.Typer(
    help="Named texts, and facts about any text.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list", cls=Verb)
def list_texts() -> None:
    """List the named texts and whether each is on this machine."""
    from charlm.text.datasets import DATASETS
    from charlm.text.sources import EMBEDDED

    for name, about in EMBEDDED.items():
        output.result(f"{name:<14} built in     {about}")
    for name, dataset in DATASETS.items():
        state = "here" if dataset.path().is_file() else "not fetched"
        output.result(f"{name:<14} {state:<11}  {dataset.about}")


@app.command("fetch", cls=Verb)
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=completion.texts, help="Name of a text.")
    ],
) -> None:
    """Download a named text and check its SHA-256."""
    output.content(str(_dataset(name).fetch(output.download_bar())))


@app.command("add", cls=Verb)
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=completion.texts, help="Name of a text.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Your copy of the text.")],
) -> None:
    """Add your own copy of a named text, after the same check."""
    output.content(str(_dataset(name).add(file)))


@app.command("info", cls=Verb)
def info(
    source: TextName = None,
    keys: DataKeys = None,
    file: File = None,
    unit: Unit = "chars",
    encoding: Encoding = "utf-8",
) -> None:
    """Describe a text: size, checksum, alphabet and parts.

    Of a list, it says how many records there are, whether they repeat, and in which order they stand.

    For example: charlm data info names.txt data.records=lines
    """
    from charlm.text import open_source, scan_text
    from charlm.text.survey import Survey
    from charlm.text.symbol_notes import rare_note

    source, keys = text_and_keys(source, file, keys)
    data = data_config(source, unit, encoding, keys=keys)
    opened = open_source(source, output.download_bar())
    with output.bytes_bar() as progress:
        scan = scan_text(opened, data, progress, Survey(data))
    tokenizer = fitted(scan, data)
    rows = {"source": source}
    if opened.files is not None:
        rows["files"] = f"{opened.files:,}"
    rows |= {"size": f"{scan.size:,} {output.units(data.unit)}", "sha256": scan.sha256}
    rows |= _of_symbols(scan, tokenizer)
    if scan.records and scan.survey:
        rows |= _of_records(scan.survey)
    parts, remarks = _parts(opened, data, scan, tokenizer)
    output.facts(rows | {name: f"{many}, {USES[name]}" for name, many in parts.items()})
    found = [*scan.notes, rare_note(scan, data), *(scan.survey.notes() if scan.survey else [])]
    for remark in filter(None, [*found, *remarks]):
        output.note(remark)


def _of_symbols(scan: "Scan", tokenizer: "Tokenizer") -> dict[str, str]:
    """Describe an alphabet, without the symbols that nobody sees."""
    from charlm.text.tokenizer import seen_symbols

    rows = {"symbols": f"{seen_symbols(tokenizer):,} different {output.units(tokenizer.unit)}"}
    if tokenizer.escape is not None:
        rare = number_of(len(scan.strange_to(tokenizer)), "rare one")
        rows["symbols"] += f", and one symbol for {rare}"
    specials = [i for i in (tokenizer.escape, tokenizer.boundary) if i is not None]
    alphabet = getattr(tokenizer, "alphabet", "")
    if alphabet := "".join(c for i, c in enumerate(alphabet) if i not in specials):
        rows["alphabet"] = repr(alphabet[:60]) + " ..." * (len(alphabet) > 60)
    return rows


def _of_records(survey: "Survey") -> dict[str, str]:
    """Describe the records of a list."""
    mean = survey.symbols / max(1, survey.records)
    lengths = f"{mean:.1f} characters on average, {survey.longest:,} at most"
    rows = {"records": f"{survey.records:,}, of {lengths}"}
    if survey.repeats:
        rows["repeats"] = f"{100 * survey.repeats:.3g} % of the records repeat another"
    return rows


def _parts(
    source: "Source", data: "DataConfig", scan: "Scan", tokenizer: "Tokenizer"
) -> tuple[dict[str, str], list[str]]:
    """Return how long the parts are that `charlm train` would make, and remarks about them.

    Where that depends on repeats, or symbols may be in one part only, the text is encoded as it would be.
    """
    from charlm.text.parts import check_parts, record_bounds
    from charlm.text.symbol_notes import may_be_unseen, unseen_note

    unit, remarks = output.units(data.unit), []
    try:
        if scan.records:
            bounds, unit = record_bounds(scan.records.records, data), "records"
        else:
            bounds = scan.bounds(data)
            check_parts(scan.size, data)
        counts = {name: last - first for name, (first, last) in bounds.items()}
        repeats = scan.records and scan.survey and scan.survey.may_repeat
        if repeats or may_be_unseen(scan, data):
            with _encoded(source, data, scan, tokenizer) as corpus:
                if scan.records:
                    counts = {name: part.records or 0 for name, part in corpus.splits.items()}
                remarks = [*filter(None, [unseen_note(scan, corpus, tokenizer)])]
    except DataError as error:
        return {}, [f"charlm train would refuse this text: {one_line(error)}"]
    return {name: f"{count:,} {unit}" for name, count in counts.items() if count}, remarks


@contextmanager
def _encoded(
    source: "Source", data: "DataConfig", scan: "Scan", tokenizer: "Tokenizer"
) -> "Iterator[Corpus]":
    """Yield the ids of a text, in a folder that is removed again."""
    from charlm.cli.signals import StopSignals
    from charlm.text import encode_corpus

    with StopSignals() as stop, stop.scratch() as scratch, stop.at_once():
        with output.bytes_bar() as progress:
            corpus = encode_corpus(source, data, scan, tokenizer, scratch / "tokens", progress)
        yield corpus


def _dataset(name: str) -> "Dataset":
    from charlm.text.datasets import DATASETS
    from charlm.text.sources import EMBEDDED

    if name in EMBEDDED:
        raise DataError(name, "built in: nothing to fetch or add")
    if name not in DATASETS:
        raise DataError(name, "not a named text", f"use one of {', '.join(DATASETS)}")
    return DATASETS[name]
