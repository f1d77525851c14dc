"""charlm report: a page about one run or several, to look at."""

import glob
import os
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
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The page, FILE.html. Default: report.html."
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write each chart as SVG and PNG; the page only with --out."
        ),
    ] = None,
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

    if out is None and figures is None:
        out = _default()
    if out is not None:
        _check_new(out)
    check_installed()
    load_torch()
    from charlm.reporting.opened import open_runs

    with StopSignals() as stop:
        with stop.at_once():
            runs = open_runs(places or [None], device)
            if figures is not None:
                check_folder(figures)
            if out is not None:
                check_place(out, runs)
        if figures is not None:
            _prepare(runs, stop, quiet, told=out is not None)
            count = _draw(runs, figures, passage, stop, quiet)
            output.result(
                f"{one_word(figures)}: {count} chart{'s' * (count != 1)}, each as SVG and PNG"
            )
        if out is not None:
            write_page(runs, out, passage, seed, stop, quiet)
            size = out.stat().st_size
            output.result(f"{one_word(out)}: {size / 1e6:.1f} MB; open it in a browser")


def _default() -> Path:
    """Return where a page goes without --out: never over a file that was not named."""
    out = Path("report.html")
    if os.path.lexists(out):
        mend = f"name another with --out, or replace it with --out {out}"
        raise UsageError(out, "exists already", mend)
    return out


def _check_new(out: Path) -> None:
    """Refuse what cannot be the file of a page, whatever the run is."""
    from charlm.reporting.extra import check_name

    named = f"--out {out}"
    if out.is_dir():
        raise UsageError(named, "is a folder", "name a file in it, such as report.html")
    check_name(out, named, "end the name in .html, or write SVG and PNG with --figures DIR")
    if not out.parent.is_dir():
        raise UsageError(named, f"there is no folder {out.parent}", "make it first")


def check_folder(figures: Path) -> None:
    """Refuse to write figures into a run, or where there is no folder and none can be."""
    from charlm.runs import RunFolder

    where, named = figures.resolve(), f"--figures {figures}"
    if figures.exists() and not figures.is_dir():
        raise UsageError(named, "is no folder", "name a folder; it is made if it is missing")
    for parent, shown in zip((where, *where.parents), (figures, *figures.parents), strict=False):
        if RunFolder(parent).exists() and (parent / "checkpoints").is_dir():
            raise UsageError(named, f"inside the run {shown}", "choose another place")


def check_place(out: Path, runs: "list[Opened]") -> None:
    """Refuse to write into a run, and over a text or whatever is no report."""
    from charlm.runs import RunFolder

    where = out.resolve()
    named = f"--out {out}"
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


def _prepare(runs: "list[Opened]", stop: StopSignals, quiet: bool, told: bool = False) -> None:
    """Note what is odd about the runs unless it will be told, and do what their models need first."""
    for run in runs:
        if run.saved.remark and not told:
            output.note(run.saved.remark)
        output.prepare(run.model, stop.requested, quiet)


def _draw(
    runs: "list[Opened]", folder: Path, passage: str | None, stop: StopSignals, quiet: bool
) -> int:
    """Write the charts of runs as pictures, with bars; return how many charts there are."""
    from charlm.reporting.charts import charts_of, surprise_of
    from charlm.reporting.figures import write_figures
    from charlm.reporting.passage import passage_from

    given = None if passage is None else passage_from(runs[0], passage)
    total = sum(len(run.val) - 1 for run in runs if run.val)
    with output.steps(quiet, stop.requested) as progress:

        def scored(chars: int) -> None:
            progress("scoring", chars, total)

        charts = [*charts_of(runs, scored, stop.requested), surprise_of(runs[0], given)]
        for _ in write_figures(charts, folder):
            progress("drawing", 1, 2 * len(charts))
    return len(charts)


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
    _prepare(runs, stop, quiet)
    with output.steps(quiet, stop.requested) as progress:
        page = page_of(runs, chosen, seed, progress, stop.requested)
    write_file(out, page.encode())
