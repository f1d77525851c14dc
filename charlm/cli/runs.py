"""charlm runs: the runs of a folder, their copies, their removal, and their metrics for others."""

import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from charlm.cli import output
from charlm.cli.escaping import one_word
from charlm.cli.options import A_RUN, Json, RunPlace, check_place
from charlm.cli.verb import Verb
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.runs.listing import Summary

app = typer.Typer(
    help="List, copy, merge, save or remove runs, or export metrics.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
AGES = ((86_400, "d"), (3600, "h"), (60, "min"))


@app.callback()
def _all_runs(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_runs(json=json)


@app.command("list", cls=Verb)
def list_runs(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Where to look. Default: runs/.")
    ] = None,
    json: Json = False,
) -> None:
    """List runs, the newest first.

    A run is finished, stopped (charlm train --resume continues it) or running.
    """
    from charlm.runs.folder import RUNS, runs_under
    from charlm.runs.listing import summary

    place = folder or RUNS
    found = [summary(run) for run in runs_under(place)]
    if json:
        output.result_json({"runs": [asdict(one) | {"path": str(one.path)} for one in found]})
    elif found:
        _show(found)
    else:
        output.note(f"no run in {place}; train one with: charlm train --config quickstart")


@app.command("rm", cls=Verb)
def remove(
    names: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs to remove.", **A_RUN)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs with all their files, after asking.

    Refuses a run that is being trained, that holds other files, or that a mixture reads.
    """
    from charlm.config.memory import human_bytes
    from charlm.runs.folder import find_run
    from charlm.runs.listing import check_removable, remove_run, summary

    runs = list({run.path.resolve(): run for run in map(find_run, names)}.values())
    check_removable(runs)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--yes", "missing, and there is no terminal to ask on", "add it")
        found = [summary(run) for run in runs]
        _show(found)
        size = human_bytes(sum(one.bytes for one in found))
        these = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
        try:
            sure = typer.confirm(f"remove {these}, {size}?", err=True)
        except typer.Abort:  # Ctrl-C or Ctrl-D, which leave the cursor behind the question
            output.say("\nnothing was removed")
            raise typer.Exit(128 + signal.SIGINT) from None
        if not sure:
            output.say("nothing was removed")
            return
    for run in runs:
        remove_run(run)
        output.say(f"removed {one_word(run.path)}")


@app.command("save", cls=Verb)
def save(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run.", **A_RUN)],
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until the run has heard it.")
    ] = 60.0,
) -> None:
    """Ask a run that is being trained to save after its current step.

    Works through its folder, so also for runs that torchrun started, and from another machine.
    """
    from charlm.runs.folder import find_run
    from charlm.runs.requests import ask_to_save

    if ask_to_save(find_run(run), wait):
        output.say(f"{one_word(run)} saves after its current step")
    else:
        output.note(f"{one_word(run)} has not heard it yet: it is in a long step, or evaluates")


@app.command("merge", cls=Verb)
def merge(run: Annotated[Path, typer.Argument(metavar="RUN", help="The run.", **A_RUN)]) -> None:
    """Make ordinary checkpoints of those that are in parts.

    A run with train.sharded_saves=true writes such parts. The weights stay the same, bit by bit.
    """
    from charlm.runs.folder import find_run
    from charlm.runs.merging import merge_run

    merged = merge_run(find_run(run))
    if merged:
        output.say(f"merged step {', '.join(map(str, merged))} of {one_word(run)}")
    else:
        output.note(f"no checkpoint of {one_word(run)} is in parts")


@app.command("copy", cls=Verb)
def copy(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run.", **A_RUN)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.")],
    without: Annotated[
        Literal["text"] | None, typer.Option(help="What to leave out: the text it learned from.")
    ] = None,
) -> None:
    """Copy a run, with or without its text.

    To share only a model, use charlm export, which also leaves out the optimizer and the log.
    """
    from charlm.config.memory import human_bytes
    from charlm.lifecycle.copying import copy_run
    from charlm.runs.folder import find_run

    size = copy_run(find_run(run), out, with_text=without is None)
    output.say(f"copied {one_word(run)} to {one_word(out)}, {human_bytes(size)}")


@app.command("export", cls=Verb)
def export_metrics(
    place: RunPlace = None,
    form: Annotated[
        Literal["csv", "jsonl"], typer.Option("--format", help="csv, or jsonl: JSON Lines.")
    ] = "csv",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: standard output."),
    ] = None,
) -> None:
    """Write the metrics of a run as a table for other programs.

    One row for each step: losses in nats, learning rate, gradient norm, speed, wall time. For example:
    charlm runs export runs/gpt -o gpt.csv
    """
    from charlm.runs.export import export
    from charlm.runs.folder import find_run
    from charlm.storage.atomic import replacing

    run = find_run(place)
    if out is None or out == Path("-"):
        out, rows = None, export(run.metrics_path, form, sys.stdout)
    else:
        check_place(out, run.path, run.config.data.source, "--out")
        with replacing(out) as file:
            rows = export(run.metrics_path, form, file)
    if experts := run.config.training_runs().keys() - {""}:
        expert = one_word(run.path / "experts" / min(experts))
        output.note(f"each expert has steps of its own: charlm runs export {expert}")
    if out is not None:
        output.say(f"wrote {rows:,} row{'s' * (rows != 1)} to {one_word(out)}")


def _show(found: "list[Summary]") -> None:
    from charlm.config.memory import human_bytes

    rows = [["run", "model", "text", "step", "best", "size", "age", "state"]]
    for one in found:
        best = "-" if one.best_loss_nats is None else f"{one.best_loss_nats:.4f}"
        step = "-" if one.step is None else f"{one.step:,}"
        text = Path(one.text).name if one.text else "-"
        cells = [
            one_word(one.path),
            one_word(one.model or "-"),
            one_word(text),
            step,
            best,
            human_bytes(one.bytes),
        ]
        rows.append([*cells, _age(time.time() - one.written), one.state])
    output.result("\n".join(output.aligned(rows, right=range(3, 7), shorten=(2, 0, 1))))


def _age(seconds: float) -> str:
    least, unit = next((age for age in AGES if seconds >= age[0]), (1, "s"))
    return f"{max(0, seconds) / least:.0f} {unit}"
