"""charlm import: a run of a checkpoint that another program made."""

from pathlib import Path
from typing import Annotated

import typer

from charlm.cli import output
from charlm.cli.escaping import quoted
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import UsageError


def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The checkpoint, such as nanoGPT's ckpt.pt.")
    ],
    meta: Annotated[
        Path | None, typer.Option(help="nanoGPT's meta.pkl, which has the alphabet.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Instead: the text that the model was trained on.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run folder. Default: the next free name under runs/."),
    ] = None,
) -> None:
    """Make a run of a checkpoint of nanoGPT.

    Then it can be sampled, scored, served and exported like any run, and another run can start from its
    weights. Nothing in the files is run.

    For example: charlm import ckpt.pt --meta meta.pkl
    """
    load_torch()
    with StopSignals() as stop, stop.at_once():
        from charlm.exchange.nanogpt import import_nanogpt, read_nanogpt
        from charlm.runs import next_free_name

        if (meta is None) == (text is None):
            read_nanogpt(file)  # a file that is none needs no alphabet
            what = "the checkpoint does not have its alphabet"
            raise UsageError("--meta or --text", what, "give one of them")
        place = out or next_free_name("nanogpt")
        run = import_nanogpt(file, place, meta=meta, text=text)
        described = run.config.model.described(run.tokenizer.vocab_size)
    output.result(f"{place}: {described}, step {run.checkpoints.all()[-1].step:,}")
    output.say(f"sample from it: charlm sample --run {quoted(str(place))}")
