"""charlm graph: the chain rule of an arithmetic expression, drawn."""

import keyword
import math
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import output
from charlm.cli.spelling import Verb
from charlm.errors import MachineError, NonFiniteError, UsageError

if TYPE_CHECKING:
    import graphviz

    from charlm.backprop.value import Value

PICTURES = (".svg", ".png", ".pdf", ".dot")


class GraphCommand(Verb):
    """Knows what to do about an expression that starts with a minus and so looks like an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            UsageError: What was read as an option may have been meant as an expression.
        """
        minus = [argument for argument in args if re.match(r"-[^-]", argument)]
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if not minus:
                raise
            reason = error.format_message().rstrip(".")
            raise UsageError(
                f"{reason}; if {minus[0]!r} is an expression, put -- before it, after any options"
            ) from None


def graph(
    expression: Annotated[
        str, typer.Argument(metavar="EXPRESSION", help="In quotes, such as '(a*b + c) * f'.")
    ],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=NUMBER", help="What each name stands for.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw it with Graphviz: .svg, .png, .pdf or .dot."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw the chain rule of an arithmetic expression, from its result down to each input.

    The expression may hold numbers, names, + - * / **, parentheses, and square, sqrt, exp, log,
    sin, cos, tan, tanh and relu. Put -- before one that starts with a minus.

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
            raise NonFiniteError(
                f"{value.label}: its gradient is {value.grad}, no finite number; choose other "
                "values"
            )
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
            raise UsageError(
                f"{argument}: expected NAME=NUMBER, such as a=2; the expression comes first, in "
                "quotes"
            )
        if keyword.iskeyword(name):
            raise UsageError(f"{argument}: {name} is reserved; choose a name such as {name}_")
        if name in values:
            raise UsageError(f"{argument}: {name} is given twice; keep one")
        try:
            values[name] = float(number)
        except ValueError:
            raise UsageError(
                f"{argument}: {number!r} is not a number; write one such as 2 or -0.5"
            ) from None
        if not math.isfinite(values[name]):
            raise UsageError(f"{argument}: expected a finite number")
    return values


def _check_place(out: Path) -> None:
    """Refuse what can be seen to be wrong before anything is printed."""
    if out.suffix.lower() not in PICTURES:
        raise UsageError(f"{out}: not a kind of picture; end it in one of {', '.join(PICTURES)}")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise UsageError(f"{out}: is a folder; name a file in it")


def _draw(result: "Value", out: Path) -> None:
    from charlm.backprop.graph import as_dot
    from charlm.storage import write_file

    try:
        picture = as_dot(result)
    except ImportError:
        raise MachineError(
            f"{out}: not drawn, as the package graphviz is missing; pip install 'charlm[graph]'"
        ) from None
    kind = out.suffix.lower().removeprefix(".")
    write_file(out, picture.source.encode() if kind == "dot" else _render(picture, kind, out))


def _render(picture: "graphviz.Digraph", kind: str, out: Path) -> bytes:
    import graphviz

    try:
        return bytes(picture.pipe(kind, quiet=True))
    except graphviz.ExecutableNotFound:
        raise MachineError(
            f"{out}: not drawn, as the program dot is missing; install Graphviz from your system's "
            "packages or https://graphviz.org/download, or write a .dot file"
        ) from None
    except graphviz.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip() or f"exit {error.returncode}"
        raise MachineError(
            f"{out}: not drawn, as dot failed: {said}; write a .dot file, or try another kind"
        ) from None
