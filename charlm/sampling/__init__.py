"""Choose the next character, and string characters into text.

Read `choose` first (the pure steps from logits to a character), then `reader`, `gpt_reader`,
`ngram_reader` and `readers` (a character in, the next logits out, fast), `generate` (ids as they come),
`stream` and `write` (text as it comes), `draw` (several texts), `load` (the same for Python programs).
"""

from charlm.sampling.choose import Settings
from charlm.sampling.draw import Drawing, Text
from charlm.sampling.generate import Context, Drawn, generate
from charlm.sampling.load import Writer, load
from charlm.sampling.prompt import encode_prompt
from charlm.sampling.readers import reader_of
from charlm.sampling.stream import Piece
from charlm.sampling.write import (
    Task,
    allowed_ids,
    check_weights,
    choose_seed,
    settings_of,
    write,
)

__all__ = [
    "Context",
    "Drawing",
    "Drawn",
    "Piece",
    "Settings",
    "Task",
    "Text",
    "Writer",
    "allowed_ids",
    "check_weights",
    "choose_seed",
    "encode_prompt",
    "generate",
    "load",
    "reader_of",
    "settings_of",
    "write",
]
