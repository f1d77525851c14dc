"""What contexts know of the next bit: a hashed table of the bits that followed each of them.

A context and three nodes of a character's walk share a row: for each node, a probability, how often
it was updated, and a history of bits. Two more tables hold for each context the character that
followed it last and how often in a row, and how likely it follows again after so many times.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from numba import int64, uint32, uint64

from charlm.models.bit_tables import AFTER, GUESS, RATE, STRETCH, Array
from charlm.models.kernel import kernel
from charlm.models.symbol_tree import LEVELS, Walks
from charlm.models.undo import RUNS, SLOTS, Undo, note
from charlm.models.view import mixed, part

LONGEST_RUN = 32  # lengths of runs of one character that are distinguished, from 0
HALF = 1 << 31  # a probability of one half, of 32 bits


class Contexts(NamedTuple):
    """C contexts: their definitions, what followed them, and what they say of the next character.

    D: nodes on the longest walk to a character. Arrays are changed in place.
    """

    codes: Array  # parts of all contexts, one context after another, (parts,) int64
    begins: Array  # where each context's parts begin, and the end, (C + 1,) int64

    slots: Array  # (2^k, 8) uint32: a check and a use count, then each node's p, count and history
    runs: Array  # (2^k,) uint32: a check (6 bits), the last character, how often in a row (5 bits)
    sure: Array  # (C, LONGEST_RUN) uint32: p that a character follows again
    maps: Array  # (C, 256) uint32: of each history, p (22 bits) and how often seen (10)

    hashes: Array  # (C,) uint64: the contexts of the next character
    run: Array  # (C, 3) int64: its place in `runs`, the last character or -1, how often in a row
    found: Array  # (D, C) int64: rows of `slots`, -1: none
    seen: Array  # (D, C) int64: histories


def new_contexts(contexts: list[Array], slot_bits: int, depth: int) -> Contexts:
    """Return contexts that nothing has followed; each is given by its parts: see `view.codes_of`."""
    count = len(contexts)
    return Contexts(
        codes=np.concatenate([*contexts, np.empty(0, np.int64)]).astype(np.int64),
        begins=np.cumsum([0, *map(len, contexts)]).astype(np.int64),
        slots=np.zeros((1 << slot_bits, 8), np.uint32),
        runs=np.zeros(1 << slot_bits, np.uint32),
        sure=np.full((count, LONGEST_RUN), HALF, np.uint32),
        maps=np.tile(GUESS.astype(np.uint32) << 16, (count, 1)),
        hashes=np.zeros(count, np.uint64),
        run=np.zeros((count, 3), np.int64),
        found=np.zeros((depth, count), np.int64),
        seen=np.zeros((depth, count), np.int64),
    )


@kernel
@no_type_check
def look_up(c: Contexts, view: Array) -> None:
    """Find the contexts of the next character, and what followed each of them last."""
    for i in range(len(c.hashes)):
        h = uint64(i)
        for j in range(c.begins[i], c.begins[i + 1]):
            h = mixed(h, part(view, c.codes[j]))
        c.hashes[i] = h
        at = int64(h >> uint64(20) & uint64(len(c.runs) - 1))
        last = c.runs[at]
        c.run[i, 0], c.run[i, 1], c.run[i, 2] = at, -1, 0
        if last and last >> uint32(26) == h >> uint64(58):
            c.run[i, 1] = last >> uint32(5) & uint32(0x1FFFFF)
            c.run[i, 2] = last & uint32(LONGEST_RUN - 1)


@kernel
@no_type_check
def ask(c: Contexts, walks: Walks, node: int, k: int, inputs: Array) -> int:
    """Write three logits of each context for a node, the k-th on the way; return how many know it."""
    found, place = c.found[k], walks.place[node]
    if place == 1:
        _find(c, walks.group[node], found)
    else:
        _copy(c.found[k - 1], found)
    known = 0
    for i in range(len(found)):
        slot = c.slots[found[i], place] if found[i] >= 0 else uint32(0)
        history, at = int64(slot & uint32(255)), 3 * i
        c.seen[k, i] = history
        inputs[at] = inputs[at + 1] = inputs[at + 2] = 0
        if history:
            known += 1
            inputs[at] = STRETCH[c.maps[i, history] >> uint32(20)]
            inputs[at + 1] = STRETCH[slot >> uint32(20)]
        last = c.run[i, 1]
        if leads_through(walks, last, node, k):
            logit = STRETCH[c.sure[i, c.run[i, 2]] >> uint32(20)]
            inputs[at + 2] = logit if walks.bits[last, k] else -logit
    return known


@kernel
@no_type_check
def leads_through(walks: Walks, symbol: int, node: int, k: int) -> bool:
    """Tell whether a node is the k-th on the walk to a character; -1 is no character."""
    return symbol >= 0 and k < walks.length[symbol] and walks.nodes[symbol, k] == node


@kernel
@no_type_check
def _copy(old: Array, new: Array) -> None:
    for i in range(len(old)):  # a copy of slices needs memory of Python's
        new[i] = old[i]


@kernel
@no_type_check
def _find(c: Contexts, group: int, found: Array) -> None:
    """Find the rows of all contexts for a group of nodes."""
    for i in range(len(found)):
        h = mixed(c.hashes[i], uint64(group))
        check, at = _check(h), int64(h & uint64(len(c.slots) - 1))
        if c.slots[at, 0] >> uint32(16) == check:
            found[i] = at
        elif c.slots[at ^ 1, 0] >> uint32(16) == check:
            found[i] = at ^ 1
        else:
            found[i] = -1


@kernel
@no_type_check
def _check(h: int) -> int:
    """Return 16 bits of a hash that tell contexts in one place apart; 0 is for empty rows."""
    return max(uint32(h >> uint64(48)), uint32(1))


@kernel
@no_type_check
def count_bit(c: Contexts, undo: Undo, walks: Walks, node: int, k: int, bit: int) -> None:
    """Count a bit at a node that was asked about, the k-th on the way."""
    found, place = c.found[k], walks.place[node]
    if place == 1:
        _open(c, undo, walks.group[node], found)
    else:
        _copy(c.found[k - 1], found)
    for i in range(len(found)):
        slot, history = c.slots[found[i], place], c.seen[k, i]
        count, p = int64(slot >> uint32(8)) & 255, int64(slot >> uint32(16))
        if history == 0:
            count, p = 0, 1 << 15
        p += (bit * 65535 - p) * RATE[count] >> 16
        new = uint32(p << 16 | min(count + 1, 255) << 8 | AFTER[history, bit])
        _set_slot(c.slots, undo, found[i], place, new)


@kernel
@no_type_check
def trust(c: Contexts, walks: Walks, node: int, k: int, bit: int) -> None:
    """Learn from a bit what follows histories, and how likely a character follows again."""
    for i in range(len(c.run)):
        history, last = c.seen[k, i], c.run[i, 1]
        if history:
            entry = c.maps[i, history]
            often, p = int64(entry & uint32(1023)), int64(entry >> uint32(10))
            p += (bit * 0x3FFFFF - p) * RATE[often] >> 16
            c.maps[i, history] = uint32(p << 10 | min(often + 1, 255))
        if leads_through(walks, last, node, k):
            again, p = walks.bits[last, k] == bit, int64(c.sure[i, c.run[i, 2]])
            c.sure[i, c.run[i, 2]] = uint32(p + ((again * 0xFFFFFFFF - p) >> 7))


@kernel
@no_type_check
def _open(c: Contexts, undo: Undo, group: int, found: Array) -> None:
    """Use the rows of all contexts for a group of nodes, new ones where there are none."""
    for i in range(len(found)):
        if found[i] < 0:
            found[i] = _make_room(c.slots, undo, mixed(c.hashes[i], uint64(group)))
        head = c.slots[found[i], 0]
        if head & uint32(0xFFFF) < 0xFFF0:
            _set_slot(c.slots, undo, found[i], 0, head + uint32(1))


@kernel
@no_type_check
def _make_room(slots: Array, undo: Undo, h: int) -> int:
    """Return the row for a new context: of the two that it may have, the one used less."""
    at = int64(h & uint64(len(slots) - 1))
    used, beside = slots[at, 0] & uint32(0xFFFF), slots[at ^ 1, 0] & uint32(0xFFFF)
    if beside < used:
        at, beside = at ^ 1, used
    if beside > 0:  # so that rows that were used long ago make room in the end
        _set_slot(slots, undo, at ^ 1, 0, slots[at ^ 1, 0] - uint32(1))
    for i in range(1, 8):
        _set_slot(slots, undo, at, i, uint32(0))
    _set_slot(slots, undo, at, 0, uint32(_check(h) << uint32(16)))
    return at


@kernel
@no_type_check
def _set_slot(slots: Array, undo: Undo, row: int, place: int, value: int) -> None:
    note(undo, SLOTS, 8 * row + place, int64(slots[row, place]))
    slots[row, place] = value


@kernel
@no_type_check
def count_runs(c: Contexts, undo: Undo, symbol: int) -> None:
    """Keep which character has followed each context now, and how often in a row."""
    for i in range(len(c.run)):
        at = c.run[i, 0]
        often = min(c.run[i, 2] + 1, LONGEST_RUN - 1) if c.run[i, 1] == symbol else 1
        note(undo, RUNS, at, int64(c.runs[at]))
        check = uint32(c.hashes[i] >> uint64(58) << uint64(26))
        c.runs[at] = check | uint32(symbol << 5 | often)


@kernel
@no_type_check
def most_changes(c: Contexts) -> int:
    """Return how many changes to these tables a character can make."""
    depth = len(c.found)
    return len(c.hashes) * (1 + 2 * depth + 9 * (1 + depth // LEVELS))
