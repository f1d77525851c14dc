"""charlm verify: is a run on the disk what was written?"""

from pathlib import Path
from typing import Annotated

import typer

from charlm.cli import output
from charlm.cli.signals import Stopped, StopSignals
from charlm.errors import CheckpointError


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
    from charlm.storage import find_run
    from charlm.training.verify import verify as parts

    damaged = 0
    chosen = folder or find_run(None).path
    with StopSignals() as stop:
        try:
            with stop.at_once():
                for part in parts(chosen):
                    damaged += part.problem is not None
                    if json:
                        facts = {"sound": not part.problem, "problem": part.problem}
                        output.result_json({"path": str(part.path), **facts})
                    elif part.problem:
                        output.result(f"damaged  {part.problem}")
                    else:
                        output.result(f"sound    {part.path}: {part.says}")
        except Stopped:
            return stop.exit_code
    if damaged:
        parts_are = "1 part is" if damaged == 1 else f"{damaged} parts are"
        raise CheckpointError(
            f"{chosen}: {parts_are} damaged; --resume goes on from the newest sound checkpoint"
        )
    return 0
