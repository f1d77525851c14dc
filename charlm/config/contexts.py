"""What a counted model may look at, named in a configuration.

    contexts: [1, 2, 3, [word, word-1], [1, column]]

A number n is the last n characters; a list is a combination of parts of the text.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator

from charlm.config.values import shown, wrong

FARTHEST = 32  # characters back that a context may reach by a number
MOST = 64  # contexts, and parts of one
PARTS = {
    "word": "the letters of the word so far, in lower case",
    "word-1": "the last whole word",
    "word-2": "the whole word before that",
    "word-3": "the one before that",
    "gap": "what stood between the last whole word and this one",
    "line": "how the line begins: its first four characters",
    "column": "how many characters of the line have been read, up to 255",
    "above": "the character of the line before in this column",
    "paragraph": "the first word after the last empty line",
    "lines": "whether this line follows an empty one",
    "last": "the last character, if it is not part of a word",
    "after-1": "the two characters that came after the last two occurrences of the last character",
    "after-2": "the same for the last two characters",
    "after-3": "the same for the last three characters",
}


def _number(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= FARTHEST:
        raise wrong(f"expected a number from {least} to {FARTHEST}, got {shown(value)}")
    return value


def _part(value: Any) -> int | str:
    if isinstance(value, str):
        if value in PARTS:
            return value
        raise wrong(f"unknown part {shown(value)}", f"use {', '.join(PARTS)}, or a number")
    return _number(value, 1)


def _context(value: Any) -> int | list[int | str]:
    if isinstance(value, list | tuple):
        if not 1 <= len(value) <= MOST:
            raise wrong(f"expected 1 to {MOST} parts in a context, got {len(value)}")
        return [_part(part) for part in value]
    if isinstance(value, str):
        raise wrong(f"expected a number or a list, got {shown(value)}", f"write [{value[:20]}]")
    return _number(value, 0)


def _contexts(value: Any) -> list[int | list[int | str]]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST:
        raise wrong(f"expected a list of 1 to {MOST} contexts, got {shown(value)}")
    found: list[int | list[int | str]] = []
    for context in map(_context, value):
        if context in found:
            raise wrong(f"the context {context} is there twice", "leave one out")
        found.append(context)
    return found


Contexts = Annotated[list[int | list[int | str]], BeforeValidator(_contexts)]
