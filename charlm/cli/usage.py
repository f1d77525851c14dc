"""Mistakes in the command itself, as one line: what was typed, and what is expected there.

typer checks values with pydantic, whose words are those of a Python program ("Input should be greater
than or equal to 1"). Here they become those of a command line.
"""

import re
from typing import Any

import typer
from pydantic import ValidationError

from charlm.cli.escaping import one_word
from charlm.cli.spelling import longest

_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_CHOICE = re.compile(r"Value error, .* is not one of (.*)\.", re.DOTALL)


def mistake_in_words(error: Exception) -> str:
    """Return one line for an error of typer, without what to do next."""
    cause = error.__cause__
    option: Any = getattr(error, "param", None)
    if option is not None and isinstance(cause, ValidationError):
        found: Any = cause.errors()[0]
        if expected := _expected(found):
            flag = longest(option) if option.param_type_name == "option" else option.metavar
            return f"{flag} {one_word(found['input'])}: expected {expected}"
    text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    return text if "\n" in text else text.rstrip(".")


def _expected(found: Any) -> str:
    """Return what was expected where pydantic found a mistake; empty for one of a rare kind."""
    kind = str(found["type"])
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"a number of {words} {found['ctx'][name]:,.15g}"
    if chosen := _CHOICE.fullmatch(found["msg"]):
        return f"one of {chosen[1].replace(chr(39), '')}"
    return _KINDS.get(kind.partition("_")[0], "")
