"""What contexts may look at: parts of the text that was read, each as one number.

A view is one array of 64-bit numbers, updated with each character: hashes of words, the place in the
line, the last characters, and the characters of this line and of the line before.
"""

from typing import no_type_check

import numpy as np
from numba import int64, uint64

from charlm.config.context_mixing import FARTHEST, NAMED, parts_of
from charlm.models.counts import Array
from charlm.models.kernel import kernel
from charlm.text.tokenizer import CharTokenizer, Tokenizer

OTHER, LETTER, NEWLINE, BOUNDARY = range(4)  # the last: between records
IN_WORDS = "'\u2019_"  # count as parts of words, beside letters and digits

# Places in a view. `WORD` to `PARAGRAPH` are hashes, 0 for none.
WORD, WORD_1, WORD_2, WORD_3, GAP, LINE, PARAGRAPH, COLUMN, LINES, ABOVE_LENGTH, READ = range(11)
FOLLOWED = 11  # what followed when the last one, two and three characters occurred before
LAST = 14  # the last character + 1 outside words, 0 inside
RECENT = 15  # the last characters, a ring
WIDTH = 256  # columns of a line that are distinguished
THIS, ABOVE = RECENT + FARTHEST, RECENT + FARTHEST + WIDTH  # ids + 1 of this line, the one before
SIZE = ABOVE + WIDTH
BEGINNING = 4  # characters that tell how a line begins

FIRST = "word word-1 word-2 word-3 gap line paragraph column lines"  # parts in the first places
CODES = {name: place for place, name in enumerate(FIRST.split())} | {"last": LAST, "above": ABOVE}
CODES |= {f"after-{n + 1}": FOLLOWED + n for n in range(3)}
assert CODES.keys() == set(NAMED), "each part that a configuration may name has a place"


def codes_of(looks_at: str) -> Array:
    """Return the parts as numbers: places in a view, and -d for the character d places back."""
    parts = parts_of(looks_at)
    return np.array([-p if isinstance(p, int) else CODES[p] for p in parts], np.int64)


def classes_of(tokenizer: Tokenizer) -> Array:
    """Return the class of each symbol, and its id in lower case: (2, V) int32."""
    if isinstance(tokenizer, CharTokenizer):
        symbols = list(tokenizer.alphabet)
    else:
        symbols = [chr(i) for i in range(128)]  # bytes above are parts of letters, mostly
    own = {symbol: i for i, symbol in enumerate(symbols)}
    kinds = [
        NEWLINE if s == "\n" else LETTER if s.isalnum() or s in IN_WORDS else OTHER for s in symbols
    ]
    if tokenizer.boundary is not None:
        kinds[tokenizer.boundary] = BOUNDARY
    lower = [own.get(s.lower(), i) for i, s in enumerate(symbols)]
    others = range(len(symbols), tokenizer.vocab_size)
    return np.array([[*kinds, *(LETTER for _ in others)], [*lower, *others]], np.int32)


@kernel
@no_type_check
def mixed(number: int, other: int) -> int:
    """Return a hash of two 64-bit numbers: the finalizer of MurmurHash3 on their combination.

    They may be hashes of the same thing, such as a letter that is also the whole word. In a plain sum
    or difference they would cancel out, so one is multiplied first.
    """
    h = (uint64(number) + uint64(1)) * uint64(0x9E3779B97F4A7C15) ^ uint64(other)
    h = (h ^ (h >> uint64(33))) * uint64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> uint64(33))) * uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> uint64(33))


@kernel
@no_type_check
def see(view: Array, symbol: int, classes: Array) -> None:
    """Update a view with the next character of the text."""
    kind, one = classes[0, symbol], uint64(symbol + 1)
    if kind == BOUNDARY:
        view[:] = 0  # what follows sees nothing before it
    read, column = int64(view[READ]), int64(view[COLUMN])  # numba adds signed to unsigned as floats
    view[RECENT + read % FARTHEST] = one
    view[READ] = read + 1
    if kind == LETTER:
        view[WORD] = mixed(view[WORD], uint64(classes[1, symbol] + 1))
        view[LAST] = uint64(0)
    else:
        if view[WORD]:
            if not view[PARAGRAPH]:
                view[PARAGRAPH] = view[WORD]
            view[WORD_3], view[WORD_2], view[WORD_1] = view[WORD_2], view[WORD_1], view[WORD]
            view[WORD] = view[GAP] = uint64(0)
        view[GAP], view[LAST] = mixed(view[GAP], one), one
    if kind != NEWLINE:
        if column < BEGINNING:
            view[LINE] = mixed(view[LINE], one)
        if column < WIDTH:
            view[THIS + column] = one
            view[COLUMN] = column + 1
        return
    view[LINES] = uint64(1)
    if column == 0:  # an empty line
        view[PARAGRAPH], view[LINES] = uint64(0), uint64(2)
    for i in range(column):
        view[ABOVE + i] = view[THIS + i]
    view[ABOVE_LENGTH], view[COLUMN], view[LINE] = column, 0, 0


@kernel
@no_type_check
def part(view: Array, code: int) -> int:
    """Return a part of the text; 0 if there is none, as before the text's start."""
    if code < 0:
        place = int64(view[READ]) + code
        return view[RECENT + place % FARTHEST] if place >= 0 else uint64(0)
    if code == ABOVE:
        column = int64(view[COLUMN])
        return view[ABOVE + column] if column < int64(view[ABOVE_LENGTH]) else uint64(0)
    return view[code]
