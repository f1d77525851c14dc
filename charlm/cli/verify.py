"""charlm verify: is a run on the disk what was written?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import CheckpointError, MachineError, Stopped

if TYPE_CHECKING:
    from charlm.runs.checks import Checked


def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            readable=False,
            help="A run, or one of its checkpoints. Default: the newest run.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each part.")
    ] = False,
) -> int:
    """Check every file of a run against the SHA-256 that was recorded when it was written.

    For example: charlm verify runs/gpt
    """
    load_torch()
    from charlm.runs import find_run
    from charlm.runs.checks import verify as parts

    found: list[Checked] = []
    chosen = folder or find_run(None).path
    with StopSignals() as stop:
        try:
            with stop.at_once():
                for part in parts(chosen):
                    found.append(part)
                    if json:
                        facts = {"state": part.state, "problem": part.problem}
                        output.result_json({"path": str(part.path), **facts})
                    else:
                        says = part.problem or f"{part.path}: {part.says}"
                        output.result(f"{part.state:8} {output.one_line(says)}")
        except Stopped:
            return stop.exit_code
    amiss = [part for part in found if part.problem]
    if not amiss:
        return 0
    states = {part.state for part in amiss}
    sound = {part.path for part in found if part.state == "sound"}
    folders = {path.parent for path in sound if path.parent.name == "checkpoints"}
    # One that is sound alone does not fit what lies beside it; an older one would not, either.
    older = all(part.path not in sound and part.path.parent in folders for part in amiss)
    then = "mend it as said above"
    if older and states == {"damaged"}:
        then = "--resume goes on from the newest sound checkpoint"
    parts_are = "1 part is" if len(amiss) == 1 else f"{len(amiss)} parts are"
    kind = MachineError if states == {"unread"} else CheckpointError
    raise kind(f"{chosen}: {parts_are} {' or '.join(sorted(states))}; {then}")
