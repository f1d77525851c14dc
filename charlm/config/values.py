"""The types of configuration values, and the base class of its sections.

`1e-3` is read as a number although YAML 1.1 calls it text. Nothing else is converted: any other
value is accepted as it is, or refused.
"""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from charlm.errors import Problem, Words

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INTEGER = re.compile(rf"[-+]?{_DIGITS}")
_NUMBER = re.compile(
    rf"[-+]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.?(inf|nan)", re.IGNORECASE
)
_MAX_DIGITS = 300  # of an integer that is read; no key takes a number near that
LARGEST = 10**12  # of integers with no bound of their own; products of four still fit into a float


def wrong(what: str, mend: Words = "") -> ValueError:
    """Return the error that a validator raises; pydantic passes it on, and `load` adds the place."""
    return ValueError(Problem("", what, mend))


def shown(value: Any) -> str:
    """Quote a given value for an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    quoted = repr(value)
    return quoted if len(quoted) <= 40 else quoted[:37] + "..."


def number(value: Any) -> float:
    """Return a value that is a finite number, as such or written as one; refuse anything else."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = value.lower().replace(".inf", "inf").replace(".nan", "nan")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"expected a number, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise wrong(f"expected a finite number, got {shown(value)}")
    return found


def integer(value: Any) -> int:
    """Return a value that is an integer, as such or written as one; refuse anything else."""
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(f"expected an integer, got {shown(value)}")
    return value


def text(value: Any) -> str:
    """Return a value that is text; refuse anything else."""
    if not isinstance(value, str):
        raise wrong(f"expected text, got {shown(value)}", "in a file, put it in quotes")
    try:
        value.encode("utf-8", "surrogateescape")  # the name of a file may hold any bytes
    except UnicodeEncodeError:
        what = f"{shown(value)} holds half of a surrogate pair"
        raise wrong(what, "write the character itself") from None
    return value


def _place(value: str) -> str:
    if not value or "\0" in value:
        raise wrong(f"expected a name or a path, got {shown(value)}")
    return value


# These come last in `Annotated`, so that the value is read before the range is checked.
Number = BeforeValidator(number)
Integer = BeforeValidator(integer)
Text = Annotated[str, BeforeValidator(text)]
Place = Annotated[Text, AfterValidator(_place)]
Size = Annotated[int, Field(ge=1, le=LARGEST), Integer]
Count = Annotated[int, Field(ge=0, le=LARGEST), Integer]
Share = Annotated[float, Field(ge=0, lt=1), Number]


class Section(BaseModel):
    """A frozen group of keys that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        return {} if values is None else values  # null: its keys are all commented out

    def conflicts(self) -> Iterator[Problem]:
        """Yield contradictions between keys; `where` is a key of this section, or empty."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> "Section":
        if found := [*self.conflicts()]:
            raise ValueError(*found)
        return self
