"""charlm config: the presets, and a JSON schema for editors."""

import json
from typing import Annotated

import typer

from charlm.cli import output

app = typer.Typer(
    help="Presets and the schema of a configuration.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_presets() -> None:
    """List the presets with what each is for."""
    from charlm.config import preset_names, preset_text

    width = max(map(len, preset_names()))
    for name in preset_names():
        first = preset_text(name).splitlines()[0].lstrip("# ")
        output.result(f"{name:<{width}}  {first}")


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name of a preset.")]) -> None:
    """Print a preset's commented YAML, to start a file of your own from."""
    from charlm.config import preset_text

    output.result(preset_text(name).rstrip())


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of a configuration, for completion and checks in an editor."""
    from charlm.config import Config

    output.result(json.dumps(Config.model_json_schema(), indent=2))
