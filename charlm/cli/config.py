"""charlm config: presets and the JSON schema; also reads --config for other verbs."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import completion, output
from charlm.cli.escaping import quoted
from charlm.cli.verb import Verb
from charlm.errors import Setting, UsageError

if TYPE_CHECKING:
    from charlm.config import Config

app = typer.Typer(
    help="Presets, and the configuration's JSON schema.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", cls=Verb)
def list_presets() -> None:
    """List the presets and what each is for."""
    from charlm.config import preset_names, preset_text

    width = max(map(len, preset_names()))
    for name in preset_names():
        first = preset_text(name).splitlines()[0].lstrip("# ")
        output.result(f"{name:<{width}}  {first}")


@app.command("show", cls=Verb)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=completion.configurations, help="Name of a preset."
        ),
    ],
) -> None:
    """Print a preset's commented YAML, to start your own from."""
    from charlm.config import preset_text

    output.content(preset_text(name).rstrip())


@app.command("schema", cls=Verb)
def schema() -> None:
    """Print the configuration's JSON schema, for editors."""
    from charlm.config import Config

    output.content(json.dumps(Config.model_json_schema(), indent=2))


def named_config(name: str | None, overrides: Sequence[str]) -> "Config":
    """Read the configuration that --config names, with KEY=VALUE overrides, or raise UsageError.

    Keys that gave way to the overrides are noted on stderr. A text that was named instead is
    answered with how to train on it.
    """
    from charlm.config import NotAConfiguration, load_config

    if name is None:
        mend = "name a YAML file or a preset, such as quickstart or gpt (charlm config list)"
        raise UsageError(Setting("config"), "missing", mend)
    notes: list[str] = []
    try:
        config = load_config(name, overrides, notes)
    except NotAConfiguration as error:
        command = f"charlm train -c gpt data.source={quoted(name)}"
        raise error.replace(mend=f"to train on it: {command}") from None
    for text in notes:
        output.note(text)
    return config
