"""charlm report: a page about one run or several, to look at."""

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.escaping import one_word
from charlm.cli.options import A_RUN, Device
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.reporting.opened import Opened

OURS = b'<meta name="generator" content="charlm '  # in each page
HEAD = 1 << 12  # bytes within which it stands


def report(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="The run, and others to compare it with. Default: the newest in runs/.",
            **A_RUN,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")
    ] = Path("report.html"),
    passage: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Show what surprises the run in this text. Default: the validation part's beginning.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Show a run in one page to open in a browser.

    The page is one file that loads nothing. It shows what surprises the run, what its heads look at,
    what it writes, and charts.

    For example: charlm report runs/gpt -o gpt.html
    """
    from charlm.reporting.extra import check_installed

    check_installed()
    load_torch()
    from charlm.reporting.opened import open_runs

    with StopSignals() as stop:
        with stop.at_once():
            runs = open_runs(places or [None], device)
            check_place(out, runs)
        write_page(runs, out, passage, seed, stop, quiet)
    size = out.stat().st_size
    output.result(f"{one_word(out)}: {size / 1e6:.1f} MB; open it in a browser")


def check_place(out: Path, runs: "list[Opened]") -> None:
    """Refuse to write over what is no report, and into a folder that is not there."""
    from charlm.runs import RunFolder

    where = out.resolve()
    named = f"--out {out}"
    if out.is_dir():
        raise UsageError(named, "is a folder", "name a file in it, such as report.html")
    if not out.parent.is_dir():
        raise UsageError(named, f"there is no folder {out.parent}", "make it first")
    for parent in where.parents:
        of_run = RunFolder(parent).exists() and (parent / "checkpoints").is_dir()
        if of_run and where != RunFolder(parent).report_path.resolve():
            mend = "choose another place, or report.html there"
            raise UsageError(named, f"inside the run {parent}", mend)
    for run in runs:
        source = run.config.data.source
        texts = (source, *glob.iglob(source))
        if where.is_file() and any(where == Path(text).resolve() for text in texts):
            raise UsageError(named, f"is the text of {run.run.path}", "choose another place")
    if out.exists() and not _is_report(out):
        raise UsageError(named, "is there already and is no report", "choose another place")


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return OURS in file.read(HEAD)


def write_page(
    runs: "list[Opened]",
    out: Path,
    passage: str | None,
    seed: int,
    stop: StopSignals,
    quiet: bool = False,
) -> None:
    """Make a page about runs, with bars, and write it."""
    from charlm.reporting.page import page_of
    from charlm.reporting.passage import passage_from, passage_of
    from charlm.storage import write_file

    chosen = passage_of(runs[0]) if passage is None else passage_from(runs[0], passage)
    for run in runs:
        if run.saved.remark:
            output.note(run.saved.remark)
        output.prepare(run.model, stop.requested, quiet)
    with output.steps(quiet, stop.requested) as progress:
        page = page_of(runs, chosen, seed, progress, stop.requested)
    write_file(out, page.encode())
