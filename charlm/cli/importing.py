"""charlm import: a run of a checkpoint that another program made."""

from pathlib import Path
from typing import Annotated

import typer

from charlm.cli import output
from charlm.cli.escaping import quoted
from charlm.cli.signals import StopSignals, load_torch


def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The checkpoint: ckpt.pt, or model.pt.")
    ],
    meta: Annotated[
        Path | None, typer.Option(help="nanoGPT's meta.pkl, or minGPT's config.json.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="The text that it was trained on, for its alphabet.")
    ] = None,
    n_head: Annotated[
        int | None, typer.Option(min=1, help="Heads of makemore's transformer.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run folder. Default: the next free name under runs/."),
    ] = None,
) -> None:
    """Make a run of a checkpoint of nanoGPT, minGPT or makemore.

    Then it can be sampled, scored, served and exported like any run, and another run can start from its
    weights. Nothing in the files is run. minGPT's config.json is found beside its model.pt; the alphabet is
    in nanoGPT's meta.pkl, or else in the text.

    For example: charlm import model.pt --text names.txt --n-head 4
    """
    load_torch()
    with StopSignals() as stop, stop.at_once():
        from charlm.exchange.importing import import_checkpoint as make_run

        run = make_run(file, out, meta=meta, text=text, n_head=n_head)
        place = run.path
        described = run.config.model.described(run.tokenizer.vocab_size)
    output.result(f"{place}: {described}, step {run.checkpoints.all()[-1].step:,}")
    output.say(f"sample from it: charlm sample --run {quoted(str(place))}")
