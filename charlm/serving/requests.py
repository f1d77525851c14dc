"""What clients may ask for: OpenAI's dialect of completions, and scores.

Field names are those of that API, where a "token" is a character here (for a run of bytes, a byte).
"""

import difflib
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

MOST_STOPS = 64
LONGEST_STOP = 1000  # characters
_A_STOP = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
_STOPS = {"type": "array", "items": _A_STOP, "maxItems": MOST_STOPS}


def _whole(value: Any) -> Any:
    """Return 3 for 3.0, which is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Prompt = Annotated[str, Field(max_length=1 << 20)]
Nothing = Annotated[float, Field(ge=0, le=0)]
Whole = BeforeValidator(_whole)
Fraction = Annotated[float, Field(gt=0, le=1)]

Unknown = Literal["error", "skip", "nearest"]


class Refused(Exception):
    """A request that cannot be answered: one sentence, and the field that is wrong."""

    def __init__(self, message: str, field: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.field, self.status = message, field, status


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(max_length=1000)]


class StreamOptions(BaseModel):
    """What a stream has besides texts."""

    include_usage: bool = False
    include_obfuscation: bool = False  # of no effect here


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=64)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=1 << 20), Whole] | None = 16  # characters
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Fraction | None = None
    n: Annotated[int, Field(ge=1, le=64), Whole] | None = 1
    stop: Annotated[
        str | list[str] | None, WithJsonSchema({"anyOf": [_A_STOP, _STOPS, {"type": "null"}]})
    ] = None  # which are checked for what else may be wrong with them, too
    seed: Annotated[int, Field(ge=0, lt=2**62), Whole] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), Whole] | None = None
    echo: bool | None = False
    user: str | None = None  # of no effect
    # Of that API, and accepted only where they change nothing.
    best_of: Annotated[int, Whole] | None = None
    frequency_penalty: Nothing | None = None
    presence_penalty: Nothing | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    suffix: Literal[""] | None = None
    # charlm's own.
    top_k: Annotated[int, Field(ge=1), Whole] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=10)] | None = None
    allow: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    unknown: Unknown = "error"


class ScoreRequest(_Request):
    """POST /v1/score."""

    input: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=1024)]


class NextRequest(_Request):
    """POST /v1/next: what may come after a prompt."""

    prompt: Prompt = ""
    top: Annotated[int, Field(ge=1, le=100), Whole] = 5
    unknown: Unknown = "error"


def checked(kind: type[Any], body: bytes) -> Any:
    """Return a request from the body of a message, or raise Refused."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])
            near = difflib.get_close_matches(name, kind.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise Refused(f"unknown field {name!r}{hint}", name) from None
        field = ".".join(str(part) for part in first["loc"] if part in kind.model_fields) or None
        what = first["msg"][0].lower() + first["msg"][1:]
        raise Refused(f"{field}: {what}" if field else what, field) from None
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON") from None
