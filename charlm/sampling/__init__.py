"""Choose the next character, and turn characters into text.

Read in this order: `choose` (from logits to a character, in pure steps), `prompt`, `reader` (read
on: characters in, the next logits out), `gpt_reader`, `ngram_reader`, `readers` (the fastest for
a model), `generate` (ids, one by one), `stream`, `write` (text, piece by piece), `draw` (several
texts), `load` (the same for Python programs).
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
