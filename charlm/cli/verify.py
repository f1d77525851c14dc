"""charlm verify: check the files of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.options import A_RUN, Run, either
from charlm.cli.signals import StopSignals, load_torch
from charlm.cli.spelling import spelling
from charlm.errors import CheckpointError, MachineError, Phrase, Setting, Words

if TYPE_CHECKING:
    from charlm.runs.verify import Finding


def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="A run or a checkpoint. Default: the newest run.", **A_RUN
        ),
    ] = None,
    run: Run = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per part.")] = False,
) -> None:
    """Check the files of a run against their checksums.

    Each file has a SHA-256 that was recorded when it was written.

    For example: charlm verify runs/gpt
    """
    load_torch()
    from charlm.runs.folder import find_run, or_in_runs
    from charlm.runs.verify import verify as findings

    found: list[Finding] = []
    named = either(folder, run, "--run")
    chosen = find_run(None).path if named is None else or_in_runs(named)
    with StopSignals() as stop, stop.at_once():
        for one in findings(chosen):
            found.append(one)
            line = one.line(spelling)
            if json:
                problem = line if one.problem else None
                place = str(one.path)
                output.result_json({"path": place, "state": one.state, "problem": problem})
            else:
                output.facts({one.state: output.one_line(line)})
    _refuse(chosen, found)


def _refuse(chosen: Path, found: "list[Finding]") -> None:
    """Say how many parts are wrong, if any."""
    wrong = [finding for finding in found if finding.problem]
    if not wrong:
        return
    states = {finding.state for finding in wrong}
    sound = {finding.path for finding in found if finding.state == "sound"}
    folders = {path.parent for path in sound if path.parent.name == "checkpoints"}
    # A sound checkpoint may not fit its neighbours; an older one would not fit either.
    older = all(one.path not in sound and one.path.parent in folders for one in wrong)
    then: Words = "see above how to mend it"
    if older and states == {"damaged"}:
        then = Phrase(
            "{} continues from the newest sound checkpoint", Setting("resume", str(chosen))
        )
    parts_are = "1 part is" if len(wrong) == 1 else f"{len(wrong)} parts are"
    kind = MachineError if states == {"unread"} else CheckpointError
    raise kind(chosen, f"{parts_are} {' or '.join(sorted(states))}", then)
