"""Options and arguments that several verbs share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override keys, such as train.max_steps=500."),
]
_CONFIG = typer.Option(
    "--config", "-c", metavar="FILE|PRESET", help="A YAML file or a preset's name."
)
ConfigName = Annotated[str | None, _CONFIG]
RequiredConfig = Annotated[str, _CONFIG]
RunSeed = Annotated[int | None, typer.Option(help="Override run.seed.")]
RunDevice = Annotated[str | None, typer.Option(help="Override run.device: auto, cpu, cuda, mps.")]

Run = Annotated[
    Path | None, typer.Option(help="Run folder. Default: the newest in runs/.", readable=False)
]
Checkpoint = Annotated[str, typer.Option(help="best, last, or a step.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]

TextName = Annotated[
    str, typer.Argument(metavar="TEXT", help="A file, folder, glob, named text or -.")
]
Unit = Annotated[Literal["chars", "bytes"], typer.Option(help="Symbols are characters or bytes.")]
Encoding = Annotated[str, typer.Option(help="Encoding of the text.")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def overridden(overrides: list[str] | None, options: Mapping[str, object]) -> list[str]:
    """Return KEY=VALUE overrides, with those of options by their key; None was not given."""
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *given]
