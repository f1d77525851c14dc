"""What counted models look at: contexts of the next character, each as one hash.

    past = start(contexts, alphabet)
    advance(past, symbol, learn)      one more character was read
    past.hashes                       of each context, of what has been read

A context is the last n characters or a combination of parts (`charlm.config.contexts` names them).
Everything is brought up to date with each character, in integers, so that every machine gets the
same bits. Hashes may collide.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, no_type_check

import numpy as np
import numpy.typing as npt
from numba import int64, uint64

from charlm.config.contexts import PARTS
from charlm.models.kernel import kernel
from charlm.text.tokenizer import CharTokenizer, Tokenizer

Array = npt.NDArray[Any]

# The parts with names, in the order of `PARTS`. Words are hashes, characters are ids + 1; 0: none.
WORD, WORD_1, WORD_2, WORD_3, GAP, LINE, COLUMN, ABOVE = range(8)
PARAGRAPH, LINES, LAST, AFTER_1, AFTER_2, AFTER_3 = range(8, 14)
RECENT = 14  # a part more than this is the character so many places back
ORDERS = 3  # of `after`
SLOTS = 1 << 18  # for each of these orders
ONE, TWO = 21, (1 << 42) - 1  # bits of one character + 1, and of two
WIDTH = 256  # columns of a line that are told apart
BEGINNING = 4  # characters that tell how a line begins
IN_WORDS = "'\u2019"  # stand in words, beside letters and digits


class Alphabet(NamedTuple):
    """What must be known of the symbols."""

    letter: Array  # whether each stands in words, (V,) uint8
    folded: Array  # the id of each in lower case, (V,) int64
    newline: int  # the id of the line end; -1: there is none


class Past(NamedTuple):
    """What has been read; arrays, which the kernels change."""

    hashes: Array  # of each context, (C,) uint64
    parts: Array  # those with names, then, from `RECENT` + 1 on, the last characters + 1, uint64
    lines: Array  # ids + 1 of this line, and of the line before, (2, 256) uint64; 0 after its end
    after: Array  # the last two characters after each context of 1 to 3, (3, SLOTS) uint64
    slots: Array  # of these contexts, (3,) int64
    codes: Array  # the parts of all combinations, one after another, int64
    ends: Array  # where each combination ends in `codes`; equal ends: none, (C,) int64
    orders: Array  # of the last n characters, the context, or -1, as far as needed, int64
    letter: Array
    folded: Array
    newline: Array  # (1,) int64


def alphabet_of(tokenizer: Tokenizer) -> Alphabet:
    """Return the classes of a tokenizer's symbols. Of bytes, those above 127 count as letters."""
    size = tokenizer.vocab_size
    symbols = list(tokenizer.alphabet) if isinstance(tokenizer, CharTokenizer) else None
    symbols = symbols if symbols is not None else [chr(i) for i in range(128)]
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    letter, folded = np.ones(size, np.uint8), np.arange(size)
    letter[: len(symbols)] = [s.isalnum() or s in IN_WORDS for s in symbols]
    folded[: len(symbols)] = [ids.get(s.lower(), i) for i, s in enumerate(symbols)]
    return Alphabet(letter, folded, ids.get("\n", -1))


def start(contexts: Sequence[int | Sequence[int | str]], alphabet: Alphabet) -> Past:
    """Return a past in which nothing has been read."""
    codes: list[int] = []
    ends, names = [], list(PARTS)
    for context in contexts:
        if not isinstance(context, int):
            codes += [RECENT + p if isinstance(p, int) else names.index(p) for p in context]
        ends.append(len(codes))
    longest = max([ORDERS, *(context for context in contexts if isinstance(context, int))])
    orders = np.full(longest + 1, -1, np.int64)
    for i, context in enumerate(contexts):
        if isinstance(context, int):
            orders[context] = i
    farthest = max([RECENT + longest, *codes])
    past = Past(
        hashes=np.zeros(len(contexts), np.uint64),
        parts=np.zeros(farthest + 1, np.uint64),
        lines=np.zeros((2, WIDTH), np.uint64),
        after=np.zeros((ORDERS, SLOTS), np.uint64),
        slots=np.zeros(ORDERS, np.int64),
        codes=np.array(codes, np.int64),
        ends=np.array(ends, np.int64),
        orders=orders,
        letter=alphabet.letter,
        folded=alphabet.folded.astype(np.int64),
        newline=np.array([alphabet.newline], np.int64),
    )
    reset(past)
    return past


@kernel
@no_type_check
def reset(past: Past) -> None:
    """Begin a new text, of which nothing has been read; what followed contexts is kept."""
    past.parts[:] = uint64(0)
    past.parts[LINES] = 1
    past.lines[:] = uint64(0)
    _hash(past)


@kernel
@no_type_check
def advance(past: Past, symbol: int, learn: bool) -> None:
    """Read one more character; `learn`: remember what it followed."""
    if learn:
        for k in range(ORDERS):
            before = past.after[k, past.slots[k]] << uint64(ONE)
            past.after[k, past.slots[k]] = (before | uint64(symbol + 1)) & uint64(TWO)
    for j in range(len(past.parts) - 1, RECENT + 1, -1):
        past.parts[j] = past.parts[j - 1]
    past.parts[RECENT + 1] = symbol + 1
    if past.letter[symbol]:
        past.parts[WORD] = joined(past.parts[WORD], uint64(past.folded[symbol] + 1))
        past.parts[LAST] = 0
    else:
        _end_word(past.parts)
        past.parts[GAP] = joined(past.parts[GAP], uint64(symbol + 1))
        past.parts[LAST] = symbol + 1
    _place(past.parts, past.lines, symbol, symbol == past.newline[0])
    _hash(past)


@kernel
@no_type_check
def _end_word(parts: Array) -> None:
    """Let the word so far be the last whole one, if there is one."""
    if parts[WORD]:
        if not parts[PARAGRAPH]:
            parts[PARAGRAPH] = parts[WORD]
        for part in range(WORD_3, WORD, -1):
            parts[part] = parts[part - 1]
        parts[WORD], parts[GAP] = 0, 0


@kernel
@no_type_check
def _place(parts: Array, lines: Array, symbol: int, ends: bool) -> None:
    """Move on in the line, or to the next."""
    column = int64(parts[COLUMN])  # numba adds signed to unsigned numbers as floats
    lines[0, column] = symbol + 1
    if ends:
        empty = column == 0
        parts[LINES] = 2 if empty else 1
        if empty:
            parts[PARAGRAPH] = 0
        lines[1] = lines[0]
        lines[0] = uint64(0)
        column, parts[LINE] = 0, 0
    else:
        if column < BEGINNING:
            parts[LINE] = joined(parts[LINE], uint64(symbol + 1))
        column = min(column + 1, WIDTH - 1)
    parts[COLUMN] = column
    parts[ABOVE] = lines[1, column]


@kernel
@no_type_check
def _hash(past: Past) -> None:
    """Compute the hash of each context."""
    key = uint64(0)
    for n in range(len(past.orders)):
        if n > 0:
            key = joined(key, past.parts[RECENT + n])
        if 1 <= n <= ORDERS:
            past.slots[n - 1] = int64(spread(key) & uint64(SLOTS - 1))
            past.parts[AFTER_1 + n - 1] = past.after[n - 1, past.slots[n - 1]]
        if past.orders[n] >= 0:
            past.hashes[past.orders[n]] = spread(key)
    first = 0
    for i in range(len(past.ends)):
        if past.ends[i] > first:
            key = uint64(i + 1)
            for c in range(first, past.ends[i]):
                key = joined(key, past.parts[past.codes[c]])
            past.hashes[i] = spread(key)
            first = past.ends[i]


@kernel
@no_type_check
def joined(key: int, value: int) -> int:
    """Return a key for a sequence that goes on with a value.

    The value may be the hash of what is in the key already, such as a letter that is also the word
    so far. So the key is multiplied first; in a plain sum they could cancel out.
    """
    h = (uint64(key) + uint64(1)) * uint64(0x9E3779B97F4A7C15) ^ uint64(value)
    return h ^ (h >> uint64(32))


@kernel
@no_type_check
def spread(key: int) -> int:
    """Return a hash of a key all of whose bits are good: the finalizer of MurmurHash3."""
    h = (uint64(key) ^ (uint64(key) >> uint64(33))) * uint64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> uint64(33))) * uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> uint64(33))
