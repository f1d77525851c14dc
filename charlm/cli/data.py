"""charlm data: named texts, and facts about any text."""

from pathlib import Path
from typing import Annotated

import typer

from charlm.cli import output
from charlm.cli.baselines import fitted
from charlm.cli.options import Encoding, TextName, Unit
from charlm.cli.spelling import Verb
from charlm.errors import DataError

app = typer.Typer(
    help="Named texts, and facts about any text.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_texts() -> None:
    """List the named texts and whether each is on this machine."""
    from charlm.text.datasets import DATASETS
    from charlm.text.sources import EMBEDDED

    for name, about in EMBEDDED.items():
        output.result(f"{name:<14} built in     {about}")
    for name, dataset in DATASETS.items():
        state = "here" if dataset.path().is_file() else "not fetched"
        output.result(f"{name:<14} {state:<11}  {dataset.about}")


@app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a text.")]) -> None:
    """Download a named text and check its SHA-256."""
    output.result(str(_dataset(name).fetch(output.download_bar(quiet=False))))


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a text.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Your copy of the text.")],
) -> None:
    """Add your own copy of a named text, after the same check."""
    output.result(str(_dataset(name).add(file)))


@app.command("info", cls=Verb)
def info(
    source: TextName,
    unit: Unit = "chars",
    encoding: Encoding = "utf-8",
) -> None:
    """Describe a text: size, checksum, alphabet and parts."""
    from charlm.config import read_config
    from charlm.text import open_source, scan_text
    from charlm.text.corpus import split_bounds

    data = read_config(
        b"model: {type: bigram}", "charlm", [f"data.unit={unit}", f"data.encoding={encoding}"]
    ).data.model_copy(update={"source": source})
    scan = scan_text(open_source(source, output.download_bar(quiet=False)), data)
    tokenizer = fitted(scan, data)
    output.result(f"source   {source}")
    output.result(f"size     {scan.size:,} {data.unit}")
    output.result(f"sha256   {scan.sha256}")
    output.result(f"symbols  {tokenizer.vocab_size}")
    if hasattr(tokenizer, "alphabet"):
        shown = repr(tokenizer.alphabet[:100])
        output.result(f"alphabet {shown}{' ...' if tokenizer.vocab_size > 100 else ''}")
    for name, (start, stop) in split_bounds(scan.size, data).items():
        if stop > start:
            output.result(f"{name:<8} {stop - start:,} {data.unit}")
    for remark in scan.notes:
        output.note(remark)


def _dataset(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from charlm.text.datasets import DATASETS
    from charlm.text.sources import EMBEDDED

    if name in EMBEDDED:
        raise DataError(name, "built in: nothing to fetch or add")
    if name not in DATASETS:
        raise DataError(name, "not a named text", f"use one of {', '.join(DATASETS)}")
    return DATASETS[name]
