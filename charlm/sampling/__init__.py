"""Choose the next character, and turn characters into text.

Read in this order: `choose` (from logits to a character, in pure steps), `reader` (characters in,
the next logits out; the fastest way for a model), `gpt_numpy`, `gpt_kernels`, `gpt_reader` (one text
by a GPT), `ngram_reader`, `recurrent_reader`, `mingru_reader`, `adapted` (a model that learns from the prompt), `generate` (ids, one by
one), `rows` and `together` (texts that begin and end at different times), `stream` (their text), `draw` (several texts), `wanted` (until enough are new), `request` (checks
of the arguments), `write` (the same by settings as Python gives them).
"""

from charlm.sampling.adapted import AdaptedReader
from charlm.sampling.choose import Settings
from charlm.sampling.draw import Drawing, Task, Text
from charlm.sampling.generate import Context, generate
from charlm.sampling.request import (
    CONFIGURED,
    PROMPT,
    allowed_ids,
    check_weights,
    choose_seed,
    drawn_ids,
    encode_prompt,
    encode_stops,
    escape_in,
    meant_by,
    settings_of,
    task_of,
)
from charlm.sampling.stream import Piece
from charlm.sampling.wanted import Wanted, draw_wanted

__all__ = [
    "CONFIGURED",
    "PROMPT",
    "AdaptedReader",
    "Context",
    "Drawing",
    "Piece",
    "Settings",
    "Task",
    "Text",
    "Wanted",
    "allowed_ids",
    "check_weights",
    "choose_seed",
    "draw_wanted",
    "drawn_ids",
    "encode_prompt",
    "encode_stops",
    "escape_in",
    "generate",
    "meant_by",
    "settings_of",
    "task_of",
]
