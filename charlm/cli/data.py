"""charlm data: named texts, and facts about any text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import completion, output
from charlm.cli.baselines import data_config, fitted
from charlm.cli.options import Encoding, File, TextName, Unit, named_text
from charlm.cli.verb import Verb
from charlm.errors import DataError

if TYPE_CHECKING:
    from charlm.text.datasets import Dataset

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
    file: File = None,
    unit: Unit = "chars",
    encoding: Encoding = "utf-8",
) -> None:
    """Describe a text: size, checksum, alphabet and parts."""
    from charlm.text import open_source, scan_text

    source = named_text(source, file)
    data = data_config(source, unit, encoding)
    opened = open_source(source, output.download_bar())
    scan = scan_text(opened, data)
    tokenizer = fitted(scan, data)
    rows = {"source": source}
    if opened.files is not None:
        rows["files"] = f"{opened.files:,}"
    rows |= {"size": f"{scan.size:,} {unit}", "sha256": scan.sha256}
    rows["symbols"] = str(tokenizer.vocab_size)
    if alphabet := getattr(tokenizer, "alphabet", ""):
        rows["alphabet"] = repr(alphabet[:60]) + " ..." * (len(alphabet) > 60)
    for name, (start, stop) in scan.bounds(data).items():
        if stop > start:
            rows[name] = f"{stop - start:,} {unit}"
    output.facts(rows)
    for remark in scan.notes:
        output.note(remark)


def _dataset(name: str) -> "Dataset":
    from charlm.text.datasets import DATASETS
    from charlm.text.sources import EMBEDDED

    if name in EMBEDDED:
        raise DataError(name, "built in: nothing to fetch or add")
    if name not in DATASETS:
        raise DataError(name, "not a named text", f"use one of {', '.join(DATASETS)}")
    return DATASETS[name]
