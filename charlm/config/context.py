"""A counted model that looks at chosen parts of the text, not only at the last characters."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator

from charlm.config.base import ModelConfig, Part
from charlm.config.models import CountedWindow
from charlm.config.values import shown, text, wrong

FARTHEST = 32  # characters back that a part may be
MOST_PARTS = 32
NAMED = ("word", "word-1", "word-2", "line", "column", "above", "paragraph")


def parts_of(value: str) -> tuple[int | str, ...]:
    """Return the parts that a value of `looks_at` names, or raise ValueError."""
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


class ContextConfig(ModelConfig):
    """Counted, not trained: how often each character followed certain parts of the text before it."""

    trained_by: ClassVar = "counting"

    type: Literal["context"]
    """Which model this is."""
    block_size: CountedWindow = 256
    """Characters in a window when scored in windows; a part may be farther back than that."""
    looks_at: Annotated[
        str,
        AfterValidator(_parts),
        BeforeValidator(text),
        BeforeValidator(lambda value: str(value) if type(value) is int else value),
    ] = "1 2 3 word word-1 word-2"
    """What it looks at, the most telling first, as the last may be left out where the combination is
    new. A number: the character so many places back. `word`: the letters of the word so far, in
    lower case; `word-1`, `word-2`: the whole words before it. `line`: how the line begins, its first
    four characters. `column`: how many characters the line has so far. `above`: the character of
    the line before in that column. `paragraph`: the first word after the last empty line."""

    @property
    def brief(self) -> str:  # noqa: D102
        return f"context {self.looks_at}"

    def described(self, vocab_size: int) -> str:  # noqa: D102
        return f"context: {self.looks_at}"

    def sizes(self) -> dict[str, Any]:  # noqa: D102
        return {"block_size": self.block_size, "looks_at": self.looks_at}

    def facts(self, chars: int) -> tuple[str, list[tuple[str, str]]]:  # noqa: D102
        counted = f"the training part{f', {chars:,} characters' if chars else ''}"
        looked = "; ".join(map(str, parts_of(self.looks_at)))
        return "counts", [("looks at", looked), ("smoothing", "kneser-ney"), ("counted", counted)]

    def parts(self, vocab_size: int) -> list[Part]:
        """Return an empty list: it has no weights."""
        return []

    def table_bytes(self, vocab_size: int, chars: int) -> int:
        """Return the size of the counted text, from which the counts are made again."""
        return chars * (1 if vocab_size <= 256 else 4)
