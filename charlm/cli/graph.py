"""charlm graph: the chain rule of an arithmetic expression, drawn."""

import keyword
import math
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import output
from charlm.cli.options import Json
from charlm.cli.verb import Verb
from charlm.errors import MachineError, NonFiniteError, UsageError

if TYPE_CHECKING:
    from charlm.backprop.value import Value

PICTURES = (".svg", ".png", ".pdf", ".dot")


class GraphCommand(Verb):
    """A command whose expression may start with a minus and so look like an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; explain how to write an expression that starts with a minus."""
        minus = next((argument for argument in args if re.match(r"-[^-]", argument)), None)
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if not minus:
                raise
            what = error.format_message().rstrip(".")
            mend = f"if {minus!r} is an expression, put -- before it, after any options"
            raise UsageError("", what, mend) from None


def graph(
    expression: Annotated[
        str, typer.Argument(metavar="EXPRESSION", help="In quotes, such as '(a*b + c) * f'.")
    ],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=NUMBER", help="The value of each name.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Also draw it with Graphviz: .svg, .png, .pdf or .dot.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show the chain rule of an arithmetic expression.

    Each value has its gradient, from the result back to the inputs. The expression may hold
    numbers, names, + - * / **, parentheses, and square, sqrt, exp, log, sin, cos, tan, tanh and
    relu. Put -- before one that starts with a minus.

    For example: charlm graph "(a*b + c) * f" a=2 b=-3 c=10 f=-2
    """
    from charlm.backprop.expression import parse
    from charlm.backprop.graph import as_records, as_text

    if out is not None:
        _check_place(out)
    result = parse(expression, _read_values(values or []))
    result.backward()
    for value in result.history():
        if not math.isfinite(value.grad):
            what = f"its gradient is {value.grad}, not finite"
            raise NonFiniteError(value.label, what, "choose other values")
    if json:
        output.result_json(as_records(result))
    else:
        output.result(as_text(result))
    if out is not None:
        _draw(result, out)


def _read_values(arguments: list[str]) -> dict[str, float]:
    """Read NAME=NUMBER arguments."""
    values: dict[str, float] = {}
    for argument in arguments:
        name, equals, number = argument.partition("=")
        name = unicodedata.normalize("NFKC", name)  # as Python reads it in the expression
        if not equals or not name.isidentifier():
            mend = "put the expression first, in quotes"
            raise UsageError(argument, "expected NAME=NUMBER, such as a=2", mend)
        if keyword.iskeyword(name):
            raise UsageError(argument, f"{name} is reserved", f"choose a name such as {name}_")
        if name in values:
            raise UsageError(argument, f"{name} is given twice", "keep one")
        try:
            values[name] = float(number)
        except ValueError:
            what = f"{number!r} is not a number"
            raise UsageError(argument, what, "write one such as 2 or -0.5") from None
        if not math.isfinite(values[name]):
            raise UsageError(argument, "expected a finite number")
    return values


def _check_place(out: Path) -> None:
    """Refuse a wrong file name before anything is printed."""
    if out.suffix.lower() not in PICTURES:
        raise UsageError(out, "unknown kind of picture", f"end it in one of {', '.join(PICTURES)}")
    if not out.parent.is_dir():
        raise UsageError(out, f"there is no folder {out.parent}", "make it first")
    if out.is_dir():
        raise UsageError(out, "is a folder", "name a file in it")


def _draw(result: "Value", out: Path) -> None:
    from charlm.backprop.graph import as_dot
    from charlm.storage import write_file

    try:
        import graphviz

        picture = as_dot(result)
    except ImportError:
        what = "not drawn: the package graphviz is missing"
        raise MachineError(out, what, "pip install 'charlm[graph]'") from None
    kind = out.suffix.lower().removeprefix(".")
    try:
        drawn = picture.source.encode() if kind == "dot" else picture.pipe(kind, quiet=True)
    except graphviz.ExecutableNotFound:
        install = "install Graphviz from your system's packages or https://graphviz.org/download"
        mend = f"{install}, or write a .dot file"
        raise MachineError(out, "not drawn: the program dot is missing", mend) from None
    except graphviz.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip() or f"exit {error.returncode}"
        mend = "write a .dot file, or try another kind"
        raise MachineError(out, f"not drawn: dot failed: {said}", mend) from None
    write_file(out, drawn)
