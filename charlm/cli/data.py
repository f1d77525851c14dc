"""charlm data: named texts, and facts about any text."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import completion, output
from charlm.cli.baselines import data_config, fitted
from charlm.cli.options import DataKeys, Encoding, File, TextName, Unit, text_and_keys
from charlm.cli.verb import Verb
from charlm.errors import DataError

if TYPE_CHECKING:
    from charlm.config import DataConfig
    from charlm.text import Scan, Source, Tokenizer
    from charlm.text.datasets import Dataset
    from charlm.text.survey import Survey

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
    from charlm.text.parts import record_bounds
    from charlm.text.survey import Survey
    from charlm.text.symbol_notes import rare_note

    source, keys = text_and_keys(source, file, keys)
    data = data_config(source, unit, encoding, keys=keys)
    unit = data.unit
    opened = open_source(source, output.download_bar())
    with output.bytes_bar() as progress:
        scan = scan_text(opened, data, progress, Survey(data))
    tokenizer = fitted(scan, data)
    rows = {"source": source}
    if opened.files is not None:
        rows["files"] = f"{opened.files:,}"
    rows |= {"size": f"{scan.size:,} {unit}", "sha256": scan.sha256}
    rows |= _of_symbols(scan, tokenizer)
    bounds, units = scan.bounds(data), str(unit)
    if scan.records and scan.survey:
        rows |= _of_records(scan.survey)
        with suppress(DataError):  # there are too few
            bounds, units = record_bounds(scan.records.records, data), "records"
    for name, (start, stop) in bounds.items():
        if stop > start:
            rows[name] = f"{stop - start:,} {units}"
    output.facts(rows)
    found = [*scan.notes, rare_note(scan, data), _unseen(opened, data, scan, tokenizer)]
    for remark in filter(None, [*found, *(scan.survey.notes() if scan.survey else [])]):
        output.note(remark)


def _of_symbols(scan: "Scan", tokenizer: "Tokenizer") -> dict[str, str]:
    """Describe an alphabet, without the symbols that nobody sees."""
    specials = [i for i in (tokenizer.escape, tokenizer.boundary) if i is not None]
    rows = {"symbols": str(tokenizer.vocab_size - len(specials))}
    if tokenizer.escape is not None:
        rows["symbols"] += f", and one for {len(scan.strange_to(tokenizer)):,} rare ones"
    alphabet = getattr(tokenizer, "alphabet", "")
    if alphabet := "".join(c for i, c in enumerate(alphabet) if i not in specials):
        rows["alphabet"] = repr(alphabet[:60]) + " ..." * (len(alphabet) > 60)
    return rows


def _of_records(survey: "Survey") -> dict[str, str]:
    """Describe the records of a list."""
    mean = survey.symbols / max(1, survey.records)
    lengths = f"{mean:.1f} characters on average, the longest {survey.longest:,}"
    rows = {"records": f"{survey.records:,}; {lengths}"}
    if survey.repeats:
        rows["repeats"] = f"{100 * survey.repeats:.3g} % of the records"
    return rows


def _unseen(
    source: "Source", data: "DataConfig", scan: "Scan", tokenizer: "Tokenizer"
) -> str | None:
    """Describe symbols that only the validation part has, if they may matter; reads the text again."""
    from charlm.cli.signals import StopSignals
    from charlm.text import encode_corpus
    from charlm.text.symbol_notes import may_be_unseen, unseen_note

    if not may_be_unseen(scan, data):
        return None
    with StopSignals() as stop, stop.scratch() as scratch, stop.at_once(), suppress(DataError):
        with output.bytes_bar() as progress:
            corpus = encode_corpus(source, data, scan, tokenizer, scratch / "tokens", progress)
        return unseen_note(scan, corpus, tokenizer)
    return None


def _dataset(name: str) -> "Dataset":
    from charlm.text.datasets import DATASETS
    from charlm.text.sources import EMBEDDED

    if name in EMBEDDED:
        raise DataError(name, "built in: nothing to fetch or add")
    if name not in DATASETS:
        raise DataError(name, "not a named text", f"use one of {', '.join(DATASETS)}")
    return DATASETS[name]
