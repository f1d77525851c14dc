"""What stood in the text before: passages that end as the text does now, and what came next there.

A match model predicts the character that followed the last passage that ended alike; there are
several, which differ in how long a passage must be. `after-n` in a view is what followed the last n characters the last time.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from numba import int64, uint32, uint64

from charlm.config.context_mixing import FARTHEST
from charlm.models.bit_tables import STRETCH, Array
from charlm.models.context_table import HALF, leads_through
from charlm.models.kernel import kernel
from charlm.models.symbol_tree import Walks
from charlm.models.undo import FOLLOWERS, HISTORY, INDEX, Undo, note
from charlm.models.view import FOLLOWED, READ, mixed, part

LEAST_LENGTHS = np.array([5, 8, 12], np.int64)  # characters that a passage must share to be found
INDEX_BITS = 20  # of the index of passages
FOLLOWING = 3  # orders for which the characters that followed are kept
FOLLOW_BITS = 16
HISTORY_BITS = 22
OTHER_CHANGES = 16  # at least as many as a character can make here


class Passages(NamedTuple):
    """The text so far, and M ways to find a passage in it; arrays are changed in place."""

    history: Array  # (2^HISTORY_BITS,) int32, a ring of what was counted
    clock: Array  # (1,) int64: characters counted
    places: Array  # (M 2^INDEX_BITS,) int32: the place after a passage with this hash
    followed: Array  # (FOLLOWING 2^FOLLOW_BITS,) uint64: the last two characters after a hash
    trust: Array  # (M, 64) uint32: p of a 1, by the length of a match and the bit it expects
    match: Array  # (M, 3) int64: where a match continues, how long it is, what it expects or -1


def no_passages() -> Passages:
    """Return what is known of an empty text."""
    ways = len(LEAST_LENGTHS)
    return Passages(
        history=np.zeros(1 << HISTORY_BITS, np.int32),
        clock=np.zeros(1, np.int64),
        places=np.zeros(ways << INDEX_BITS, np.int32),
        followed=np.zeros(FOLLOWING << FOLLOW_BITS, np.uint64),
        trust=np.full((ways, 64), HALF, np.uint32),
        match=np.tile(np.array([0, 0, -1]), (ways, 1)),
    )


@kernel
@no_type_check
def follow(t: Passages, walks: Walks, node: int, k: int, inputs: Array, i: int) -> int:
    """Write what matches expect, from input i on; return the state of the first, 0 for no match."""
    state = 0
    for j in range(len(t.match)):
        expected = t.match[j, 2]
        inputs[i] = inputs[i + 1] = 0
        if leads_through(walks, expected, node, k):
            long = _length_class(t.match[j, 1])
            if j == 0:
                state = 1 + long // 2
            p = int64(t.trust[j, 2 * long + walks.bits[expected, k]] >> uint32(20))
            inputs[i], inputs[i + 1] = STRETCH[p], 4 * (p - 2048)
        i += 2
    return state


@kernel
@no_type_check
def _length_class(length: int) -> int:
    return length if length < 16 else min(16 + (length - 16) // 4, 31)


@kernel
@no_type_check
def trust_matches(t: Passages, walks: Walks, node: int, k: int, bit: int) -> None:
    """Learn from a bit how far matches can be trusted."""
    for j in range(len(t.match)):
        expected = t.match[j, 2]
        if leads_through(walks, expected, node, k):
            i = 2 * _length_class(t.match[j, 1]) + walks.bits[expected, k]
            p = int64(t.trust[j, i])
            t.trust[j, i] = uint32(p + ((bit * 0xFFFFFFFF - p) >> 7))


@kernel
@no_type_check
def add(t: Passages, undo: Undo, view: Array, symbol: int) -> None:
    """Append a character to the text; the view is what was seen before it."""
    for n in range(FOLLOWING):
        at = _after_last(view, n)
        old = t.followed[at]
        note(undo, FOLLOWERS, at, int64(old))
        t.followed[at] = (old << uint64(20) | uint64(symbol + 1)) & uint64((1 << 40) - 1)
    time = t.clock[0]
    at = time & (len(t.history) - 1)
    note(undo, HISTORY, at, int64(t.history[at]))
    t.history[at] = symbol
    t.clock[0] = time + 1


@kernel
@no_type_check
def find_matches(t: Passages, undo: Undo, view: Array, symbol: int, counted: bool) -> None:
    """Continue or find matches, for a view that has seen `symbol` last; `counted`: see `add`."""
    for n in range(FOLLOWING):
        view[FOLLOWED + n] = t.followed[_after_last(view, n)]
    time, ring, read = t.clock[0], len(t.history) - 1, int64(view[READ])
    for j in range(len(t.match)):
        match, least = t.match[j], LEAST_LENGTHS[j]
        if match[2] == symbol:
            match[0], match[1] = match[0] + 1, match[1] + 1
        else:
            match[1] = 0
        if read >= least:
            h = uint64(j)
            for i in range(least):
                h = mixed(h, part(view, -1 - i))
            at = (j << INDEX_BITS) + int64(h >> uint64(64 - INDEX_BITS))
            if match[1] == 0:
                match[0] = int64(t.places[at])
                match[1] = _common(t.history, view, match[0])
                if match[1] < least:
                    match[1] = 0
            if counted:
                note(undo, INDEX, at, int64(t.places[at]))
                t.places[at] = time
        inside = time - ring <= match[0] < time
        match[2] = t.history[match[0] & ring] if match[1] > 0 and inside else -1


@kernel
@no_type_check
def _after_last(view: Array, n: int) -> int:
    """Return the place in `followed` of the last n + 1 characters."""
    h = uint64(n + 1)
    for i in range(n + 1):
        h = mixed(h, part(view, -1 - i))
    return (n << FOLLOW_BITS) + int64(h >> uint64(64 - FOLLOW_BITS))


@kernel
@no_type_check
def _common(history: Array, view: Array, at: int) -> int:
    """Return how many characters before a place in the history equal the last ones, up to 32."""
    ring, most, length = len(history) - 1, min(FARTHEST, at), 0
    while length < most:
        if history[(at - 1 - length) & ring] + 1 != int64(part(view, -1 - length)):
            break
        length += 1
    return length


@kernel
@no_type_check
def no_match(t: Passages) -> None:
    """Let go of what is matched, as at a text's beginning."""
    for j in range(len(t.match)):
        t.match[j, 0] = t.match[j, 1] = 0
        t.match[j, 2] = -1
