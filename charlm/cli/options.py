"""Options and arguments that several verbs share."""

import glob
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar

import typer

from charlm.cli import completion
from charlm.cli.spelling import spelling
from charlm.errors import DataError, Phrase, Setting, UsageError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        autocompletion=completion.keys,
        help="Override keys, such as train.max_steps=500.",
    ),
]
DataKeys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        autocompletion=completion.keys,
        help="Keys of the section data, such as data.records=lines.",
    ),
]
ConfigName = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE|PRESET",
        autocompletion=completion.configurations,
        help="A YAML file or a preset's name.",
    ),
]
RunSeed = Annotated[int | None, typer.Option(help="Override run.seed.")]
RunDevice = Annotated[
    str | None,
    typer.Option(
        autocompletion=completion.devices, help="Override run.device: auto, cpu, cuda, mps."
    ),
]

# Of what takes the folder of a run; the command itself says what is wrong with it.
A_RUN: dict[str, Any] = {"readable": False, "autocompletion": completion.runs}

RunPlace = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="A run. Default: the newest in runs/.", **A_RUN),
]
Run = Annotated[Path | None, typer.Option(help="The same as RUN.", **A_RUN)]
Checkpoint = Annotated[
    str, typer.Option(autocompletion=completion.checkpoints, help="best, last, or a step.")
]
Device = Annotated[
    str, typer.Option(autocompletion=completion.devices, help="auto, cpu, cuda or mps.")
]

TextName = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT",
        autocompletion=completion.texts,
        help="A file, folder, glob, named text or -.",
    ),
]
File = Annotated[
    str | None,
    typer.Option(
        "--file", metavar="TEXT", autocompletion=completion.texts, help="The same as TEXT."
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--file",
        metavar="TEXT",
        autocompletion=completion.texts,
        help="Override data.source: a file or a named text.",
    ),
]
Unit = Annotated[Literal["chars", "bytes"], typer.Option(help="Symbols are characters or bytes.")]
Encoding = Annotated[str, typer.Option(help="Encoding of the text.")]

AdaptKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the section adapt: what the model learns while it reads. For "
        "example: adapt.weights=true.",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


Value = TypeVar("Value")


def either(argument: Value | None, option: Value | None, flag: str) -> Value | None:
    """Return what was given as an argument or as an option, None for neither; refuse both."""
    if argument is not None and option is not None:
        what = f"given twice: {str(argument)!r}, then {str(option)!r}"
        raise UsageError(flag, what, "keep one")
    return option if argument is None else argument


def named_text(argument: str | None, option: str | None) -> str:
    """Return the text that a command needs, given as an argument or with --file."""
    text = either(argument, option, "--file")
    if text is None:
        raise UsageError("TEXT", "missing", "name a file, folder, glob, named text or -")
    return text


def text_and_keys(
    argument: str | None, option: str | None, keys: list[str] | None
) -> tuple[str, list[str]]:
    """Return the text that a command needs, and the KEY=VALUE that follow it.

    With --file, the first of these comes where the text would be.
    """
    given = keys or []
    if option is not None and argument is not None and argument.startswith("data."):
        return option, [argument, *given]
    return named_text(argument, option), given


@contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """Yield a file that was named, to read bytes; - is standard input.

    Raises DataError if there is no such file, MachineError if it cannot be opened.
    """
    from charlm.storage.machine import machine_errors

    if file == "-":
        yield sys.stdin.buffer
        return
    with machine_errors(file):
        try:
            source = open(file, "rb")  # noqa: SIM115 -- closed below
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            mend = "name a file, or - for standard input"
            raise DataError(file, f"cannot be read: {error.strerror}", mend) from None
    with source:
        yield source


def check_place(place: Path, run: Path, text: str, option: str) -> None:
    """Refuse to write over a run, or over the text that it was made of or that is scored."""
    from charlm.runs import RunFolder

    where = place.resolve()
    texts = (text, *glob.iglob(text))  # it may be named as a file, a folder or a glob
    if where.is_relative_to(run.resolve()):
        what = f"inside the run {run}"
    elif any(RunFolder(p).exists() and (p / "checkpoints").is_dir() for p in where.parents):
        what = "inside another run"
    elif where.is_file() and any(where.is_relative_to(Path(path).resolve()) for path in texts):
        what = f"belongs to the text {text}"
    else:
        return
    raise UsageError(f"{option} {place}", what, "choose another place")


def of_adapt(settings: list[str] | None) -> list[str]:
    """Return what --set was given; refuse keys of other sections."""
    for setting in settings or []:
        if not setting.startswith("adapt."):
            what = "only keys of the section adapt can be set here"
            raise UsageError(f"--set {setting}", what, "name one, such as adapt.weights=true")
    return settings or []


def overridden(overrides: list[str] | None, options: Mapping[str, object]) -> list[str]:
    """Return KEY=VALUE overrides, then those of options by their key; None was not given.

    Raise UsageError if two of them set the same key: one would be ignored.
    """
    given = {f"{key}={value}": key for key, value in options.items() if value is not None}
    seen: dict[str, str] = {}
    for override in (changes := [*(overrides or []), *given]):
        key, equals, _ = override.partition("=")
        key = key.strip()
        if not equals and Path(override).exists():
            mend = Phrase("a text is given as {}", Setting("data.source", shlex.quote(override)))
            raise UsageError(override, "expected KEY=VALUE", mend)
        within = (k for k in seen if k == key or k.startswith(f"{key}."))  # a section replaces keys
        if equals and (lost := next(within, None)) is not None:
            second = override if override not in given else _as_option(key, options[key])
            raise UsageError(key, f"given twice: {seen[lost]}, then {second}", "keep one")
        seen[key] = override
    return changes


def _as_option(key: str, value: object) -> str:
    shown = f"{value:g}" if isinstance(value, float) else value
    return spelling(Setting(key.rpartition(".")[2], shown))
