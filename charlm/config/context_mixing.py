"""A counted model that mixes the predictions of many contexts, bit by bit."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from charlm.config.base import ModelConfig, Part
from charlm.config.models import CountedWindow
from charlm.config.values import Integer, shown, text, wrong
from charlm.errors import number_of

FARTHEST = 32  # characters back that a part may be
MOST_PARTS, MOST_CONTEXTS = 32, 128
WORDS = ("word", "word-1", "word-2", "word-3", "gap", "paragraph")
NAMED = (*WORDS, "last", "line", "column", "lines", "above", "after-1", "after-2", "after-3")
ROW_BYTES = 36  # for a group of nodes in a context, and a run
ROWS_A_CHARACTER = 0.5  # that a long context needs, about

LAST = tuple(" ".join(map(str, range(1, n + 1))) for n in (1, 2, 3, 4, 5, 6, 8))
DEFAULT = (
    *("lines", *LAST),
    *("word last", "word word-1 gap", "word word-1 word-2", "word word-2", "word paragraph 1"),
    *("word-1 1", "word word-1 paragraph", "word column", "word lines 1"),
    *("line column 1", "above 1", "column lines 1"),
    *("2", "2 3", "2 3 4", "3 4 5", "1 3", "1 2 4", "1 3 4", "1 2 4 5"),
    *("after-1 1", "after-2 1 2", "after-3", "after-1 1 2"),
)


def parts_of(value: str) -> tuple[int | str, ...]:
    """Return the parts that a context names, or raise ValueError."""
    found: list[int | str] = []
    for part in value.split():
        if part in NAMED:
            found.append(part)
        elif part.isdecimal() and part.isascii() and 1 <= int(part[:9]) <= FARTHEST:
            found.append(int(part[:9]))
        else:
            mend = f"use numbers from 1 to {FARTHEST}, and {', '.join(NAMED)}"
            raise wrong(f"unknown part {shown(part)}", mend)
    if not 1 <= len(found) <= MOST_PARTS:
        raise wrong(f"expected 1 to {MOST_PARTS} parts, got {len(found)}")
    return tuple(found)


def _parts(value: str) -> str:
    return " ".join(map(str, parts_of(value)))


Context = Annotated[
    str,
    AfterValidator(_parts),
    BeforeValidator(text),
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
]


Contexts = Annotated[
    tuple[Context, ...],
    Field(min_length=1, max_length=MOST_CONTEXTS),
    BeforeValidator(lambda value: value.split(";") if isinstance(value, str) else value),
]
Mebibytes = Annotated[int, Field(ge=1, le=1 << 20), Integer]


class ContextMixingConfig(ModelConfig):
    """Counted, not trained: many contexts predict each character bit by bit, and a mixer combines them."""

    trained_by: ClassVar = "counting"

    type: Literal["context-mixing"]
    """Which model this is."""
    block_size: CountedWindow = 256
    """Characters that a prediction may depend on, beside the training part."""
    contexts: Contexts = DEFAULT
    """The contexts: a list, or separated by `;`. Each is a list of parts of the text before the
    character. A number n: the character n places back. `word`: the letters of the current word so
    far, in lower case; `word-1` to `word-3`: the words before it; `gap`: what stands between the
    current word and the one before; `last`: the last character, unless it is part of a word. `line`:
    the first four characters of the line; `column`: the length of the line so far; `lines`: whether
    the line before is empty; `above`: the character in the same column of the line before.
    `paragraph`: the first word after the last empty line. `after-1` to `after-3`: the two characters
    that followed when the last one, two or three characters occurred before."""
    memory: Mebibytes = 1024
    """The largest size of its table, in MiB. A short text takes less; for a long text, rare contexts are
    dropped."""

    @property
    def brief(self) -> str:  # noqa: D102
        return f"context-mixing {len(self.contexts)}"

    def described(self, vocab_size: int) -> str:  # noqa: D102
        return (
            f"context-mixing: {number_of(len(self.contexts), 'context')}, at most {self.memory} MiB"
        )

    def facts(self, chars: int) -> tuple[str, list[tuple[str, str]]]:  # noqa: D102
        counted = "the training part"
        if chars:
            counted += f", {number_of(chars, 'character')}"
        table = f"at most {self.memory} MiB; a checkpoint holds only the text"
        rows = [("counted", counted), ("table", table), ("contexts", str(len(self.contexts)))]
        return "contexts, mixed", rows + [("", context) for context in self.contexts]

    def parts(self, vocab_size: int) -> list[Part]:
        """Return an empty list: it has no weights that gradients train."""
        return []

    def table_bytes(self, vocab_size: int, chars: int) -> int:
        """Return the bytes of the counted text, from which a loaded model fills its table again."""
        return chars * (1 if vocab_size <= 256 else 4)


def table_bits(contexts: Sequence[Any], chars: int, memory: int) -> int:
    """Return the logarithm (base 2) of the table's number of rows for a text, within `memory` MiB."""
    wanted = max(1 << 10, int(ROWS_A_CHARACTER * chars * len(contexts)))
    return min((wanted - 1).bit_length(), (memory * (1 << 20) // ROW_BYTES).bit_length() - 1)
