"""Context mixing: many contexts predict a bit, and a mixer learns whom to trust.

A character is a walk down a tree (`symbol_tree`), and each step of it is predicted alike:

    1  each context looks up what followed it at this node: a history of bits, and a probability.
       Both become logits; a history through a map that learns what followed such histories. A third
       says how sure it is of the character that followed the context last, if that is below
    2  a match model looks for the longest earlier passage that ends like the text, and predicts what
       came next there
    3  other models may offer their probabilities, as those of the bit
    4  mixers multiply these logits by weights and add up. Each chooses its weights by something that
       is known, such as the last character; a last mixer joins them
    5  the result is refined by what followed such results after the last one or two characters

After a whole character, everything that took part learns from each of its bits. PAQ (Mahoney 2005)
has 1, 2, 4 and 5, over bytes; here all is integers, from `bit_tables`.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from numba import float64, int64, uint32, uint64

from charlm.config.context_mixing import FARTHEST
from charlm.models.bit_tables import (
    AFTER,
    GUESS,
    LEAST,
    LIMIT,
    RATE,
    SQUASH,
    STRETCH,
    TOP,
    UNIT,
    Array,
)
from charlm.models.kernel import lean_kernel
from charlm.models.symbol_tree import LEVELS, Walks
from charlm.models.view import (
    COLUMN,
    FOLLOWED,
    LINES,
    PARAGRAPH,
    READ,
    SIZE,
    WORD,
    mixed,
    part,
    see,
)

MATCHES = np.array([5, 8, 12], np.int64)  # characters that a passage must share to be found
INDEX_BITS = 20  # of the index of passages
RUN = 32  # characters in a row that are told apart
STEP = 3 * UNIT // 4  # between the points of a refinement
POINTS = 2 * TOP // STEP + 1
REFINED = 1 << 16  # contexts in each of two refinements
FOLLOWING = 3  # orders after which what followed is remembered
FOLLOW_BITS = 16
FRESH = 1 << 31
WATCH, REMEMBER, LEARN = range(3)  # how a text is read: see `read`
# What may change for a while only: see `forget`.
SLOTS_CHANGED, RUNS_CHANGED, HISTORY_CHANGED, FOLLOWED_CHANGED = range(4)
PASSAGES_CHANGED = FOLLOWED_CHANGED + FOLLOWING
LEAST_SHARE = 1e-12
OFFERED = 65536 // 8  # the first weight of what another model offers
SPEED, FINAL_SPEED = 20, 20  # of learning weights, in 1/2^26 for each unit of error and input

# What the mixers choose weights by; the first three depend on the node too.
SETS = 11


class Mixer(NamedTuple):
    """What has been learned and read. All are arrays, changed in place.

    Sizes: V characters, N = V - 1 nodes, D nodes on the longest walk, C contexts, M match models, X
    other models, I = 3 C + 2 M + 2 X + 1 inputs, S sets of weights.
    """

    child: Array  # see `Walks`, to `place`
    nodes: Array
    bits: Array
    length: Array
    group: Array
    place: Array
    classes: Array  # (2, V): see `view`
    codes: Array  # parts of all contexts, one context after another
    begins: Array  # where each context's parts begin, and the end, (C + 1,)

    slots: (
        Array  # (2^k, 8) uint32: a check and a use count, then a node's p, count and history each
    )
    runs: Array  # (2^k,) uint32: a check (6 bits), the last character, how often in a row (5 bits)
    sure: Array  # (C, RUN) uint32: p that a character follows again, by how often it did in a row
    maps: Array  # (C, 256) uint32: of each history, p (22 bits) and how often seen (10)
    weights: Array  # (rows, I) int32, 1/65536
    rows_of: Array  # the first row of each set, (S,)
    final: Array  # (N + C + 1, S) int32: by the node, and by how many contexts are known
    refined: Array  # (2, REFINED, POINTS) int32, 1/2^20
    passages: Array  # (M, 2^INDEX_BITS) int32: the place after a passage with this hash
    trust: Array  # (M, 64) uint32: p of a match, by its length and the bit it expects
    history: Array  # (H,) int32, a ring of what was learned
    followed: Array  # (FOLLOWING, 2^FOLLOW_BITS) uint64: the last two characters after a hash
    clock: Array  # (1,) int64: characters learned
    log: Array  # (L, 3) int64: what was changed, where, and what stood there: see `forget`
    changes: Array  # (1,) int64: how many of these there are; -1: they are not logged

    past: Array  # (SIZE,) uint64: see `view`
    match: Array  # (M, 3) int64: where a match continues, how long it is, what it expects or -1

    offered: Array  # (X, N) int64: p of a 1 at each node, 1/4096; -1: no offer
    hashes: Array  # (C,) uint64: contexts of the next character
    run: Array  # (C, 3) int64: its place in `runs`, the last character or -1, how often in a row
    chosen: Array  # (S,) int64: rows of the weights, or of a set's first node
    inputs: Array  # (D, I) int32: logits; this and the rest for each node on the way
    logits: Array  # (D, S) int64
    rows: Array  # (D, S) int64
    found: Array  # (D, C) int64: rows of `slots`, -1: none
    seen: Array  # (D, C) int64: histories
    waiting: Array  # (N + 1, 2) int64: nodes to visit, and how far down they are
    shares: Array  # (N + 1,) float64: probabilities of reaching them
    joined: Array  # (D, 7) int64: rows of `final`, logits, the point, rows of `refined`


def new_mixer(
    walks: Walks, classes: Array, contexts: list[Array], slot_bits: int, experts: int = 0
) -> Mixer:
    """Return a mixer that has learned and read nothing.

    Args:
        walks: The tree of characters.
        classes: See `view.classes_of`.
        contexts: The parts of each context: see `view.codes_of`.
        slot_bits: Logarithm of the number of groups of nodes that it has room for.
        experts: How many other models offer their probabilities (X).
    """
    vocab_size, depth = walks.nodes.shape
    count, nodes, matches = len(contexts), max(1, vocab_size - 1), len(MATCHES)
    inputs = 3 * count + 2 * matches + 2 * experts + 1
    sizes = [count + 1, nodes, 256, vocab_size + 1, 32, vocab_size + 1, 64, 512, 1024, 1024, 128]
    first = np.concatenate([[0], np.cumsum(sizes)])
    curve = np.arange(POINTS) * STEP
    points = SQUASH[np.minimum(curve, 2 * TOP - 1) >> 4] << 4
    hashes = np.zeros(count, np.uint64)
    weights = np.full((first[-1], inputs), 2 * 65536 // (count + 2), np.int32)
    weights[:, -1 - 2 * experts :] = 0  # the bias, and what is offered
    weights[:, inputs - 2 * experts - 1 : -1 : 2] = OFFERED
    return Mixer(
        *walks,
        classes=classes.astype(np.int64),
        codes=np.concatenate([*contexts, np.empty(0, np.int64)]).astype(np.int64),
        begins=np.cumsum([0, *map(len, contexts)]).astype(np.int64),
        slots=np.zeros((1 << slot_bits, 8), np.uint32),
        runs=np.zeros(1 << slot_bits, np.uint32),
        sure=np.full((count, RUN), FRESH, np.uint32),
        maps=np.tile(GUESS.astype(np.uint32) << 16, (count, 1)),
        weights=weights,
        rows_of=first[:-1].astype(np.int64),
        final=np.full((nodes + count + 1, SETS), 65536 // SETS, np.int32),
        refined=np.tile(points.astype(np.int32), (2, REFINED, 1)),
        passages=np.zeros((matches, 1 << INDEX_BITS), np.int32),
        trust=np.full((matches, 64), FRESH, np.uint32),
        history=np.zeros(1 << 22, np.int32),
        followed=np.zeros((FOLLOWING, 1 << FOLLOW_BITS), np.uint64),
        clock=np.zeros(1, np.int64),
        log=np.empty((0, 3), np.int64),
        changes=np.full(1, -1),
        past=np.zeros(SIZE, np.uint64),
        match=np.tile(np.array([0, 0, -1]), (matches, 1)),
        offered=np.full((experts, nodes), -1, np.int64),
        hashes=hashes,
        run=np.zeros((count, 3), np.int64),
        chosen=np.zeros(SETS, np.int64),
        inputs=np.zeros((depth, inputs), np.int32),
        logits=np.zeros((depth, SETS), np.int64),
        rows=np.zeros((depth, SETS), np.int64),
        found=np.zeros((depth, count), np.int64),
        seen=np.zeros((depth, count), np.int64),
        waiting=np.zeros((nodes + 1, 2), np.int64),
        shares=np.zeros(nodes + 1),
        joined=np.zeros((depth, 7), np.int64),
    )


@lean_kernel
@no_type_check
def look(m: Mixer) -> None:
    """Find the contexts of the next character, and what the mixers choose by."""
    past = m.past
    _hash_contexts(past, m.begins, m.codes, m.hashes, m.runs, m.run)
    last, before = int64(part(past, -1)), int64(part(past, -2))
    column, word = min(int64(past[COLUMN]), 31), past[WORD]
    chosen, rows = m.chosen, m.rows_of
    for s in range(3):
        chosen[s] = rows[s]
    chosen[3] = rows[3] + last
    chosen[4] = rows[4] + column
    chosen[5] = rows[5] + before
    chosen[6] = rows[6] + int64(past[PARAGRAPH] & uint64(63))
    chosen[7] = rows[7] + int64(mixed(word, uint64(last)) & uint64(511))
    chosen[8] = rows[8] + int64(mixed(uint64(last), uint64(before)) & uint64(1023))
    chosen[9] = rows[9] + int64(word & uint64(1023))
    chosen[10] = rows[10] + 32 * int64(past[LINES]) + column


@lean_kernel
@no_type_check
def _hash_contexts(
    past: Array, begins: Array, codes: Array, hashes: Array, runs: Array, run: Array
) -> None:
    """Find the contexts, and what followed each of them last."""
    for c in range(len(hashes)):
        h = uint64(c)
        for i in range(begins[c], begins[c + 1]):
            h = mixed(h, part(past, codes[i]))
        hashes[c] = h
        at = int64(h >> uint64(20) & uint64(len(runs) - 1))
        found = runs[at]
        run[c, 0], run[c, 1], run[c, 2] = at, -1, 0
        if found and found >> uint32(26) == h >> uint64(58):
            run[c, 1] = found >> uint32(5) & uint32(0x1FFFFF)
            run[c, 2] = found & uint32(RUN - 1)


@lean_kernel
@no_type_check
def predict(m: Mixer, node: int, k: int) -> int:
    """Return the probability of a 1 at a node, the k-th on the way, in 1/65536.

    `look` comes before the first node of a character, and the nodes above come before each.
    """
    known = _ask(m, node, k)
    match = _follow(
        m.inputs[k], 3 * len(m.hashes), m.match, m.length, m.nodes, m.bits, m.trust, node, k
    )
    _take_offers(m.inputs[k], len(m.inputs[k]) - 1 - 2 * len(m.offered), m.offered, node)
    logits, rows, inputs = m.logits[k], m.rows[k], m.inputs[k]
    for s in range(SETS):
        rows[s] = m.chosen[s]
    rows[0] += known
    rows[1] += node
    rows[2] += 8 * match + min(k, 7)
    _mix(m.weights, rows, inputs, logits)
    joined, logit = m.joined[k], int64(0)
    joined[0], joined[1] = node, len(m.group) + known
    for f in range(2):
        total = int64(0)
        for s in range(SETS):
            total += int64(m.final[joined[f], s]) * logits[s]
        joined[2 + f] = min(max(total >> 16, -LIMIT), LIMIT)
        logit += joined[2 + f]
    return _refine(m.refined, part(m.past, -1), part(m.past, -2), node, joined, logit >> 1)


@lean_kernel
@no_type_check
def _mix(all_weights: Array, rows: Array, inputs: Array, logits: Array) -> None:
    """Write the weighted sum of the inputs for each set of weights."""
    for s in range(len(rows)):
        weights, total = all_weights[rows[s]], int64(0)
        for i in range(len(inputs)):
            total += int64(weights[i]) * int64(inputs[i])
        logits[s] = min(max(total >> 16, -LIMIT), LIMIT)


@lean_kernel
@no_type_check
def _ask(m: Mixer, node: int, k: int) -> int:
    """Ask all contexts about a node; return how many of them know it."""
    found, place = m.found[k], m.place[node]
    if place == 1:
        _find(m.slots, m.hashes, m.group[node], found)
    else:
        _copy(m.found[k - 1], found)
    _ask_runs(m.inputs[k], m.run, m.length, m.nodes, m.bits, m.sure, node, k)
    return _gather(m.slots, found, place, m.seen[k], m.maps, m.inputs[k])


@lean_kernel
@no_type_check
def _copy(old: Array, new: Array) -> None:
    for i in range(len(old)):  # a copy of slices needs memory of Python's
        new[i] = old[i]


@lean_kernel
@no_type_check
def _find(slots: Array, hashes: Array, group: int, found: Array) -> None:
    """Find the slots of all contexts for a group of nodes."""
    for c in range(len(found)):
        h = mixed(hashes[c], uint64(group))
        check, at = _check(h), int64(h & uint64(len(slots) - 1))
        if slots[at, 0] >> uint32(16) == check:
            found[c] = at
        elif slots[at ^ 1, 0] >> uint32(16) == check:
            found[c] = at ^ 1
        else:
            found[c] = -1


@lean_kernel
@no_type_check
def _check(h: int) -> int:
    """Return 16 bits of a hash that tell contexts in one place apart; 0 is for empty slots."""
    return max(uint32(h >> uint64(48)), uint32(1))


@lean_kernel
@no_type_check
def _gather(slots: Array, found: Array, place: int, seen: Array, maps: Array, inputs: Array) -> int:
    """Write what contexts saw at a node; return how many saw it."""
    known = 0
    for c in range(len(found)):
        slot = slots[found[c], place] if found[c] >= 0 else uint32(0)
        history = int64(slot & uint32(255))
        seen[c] = history
        i = 3 * c
        if history:
            known += 1
            inputs[i] = STRETCH[maps[c, history] >> uint32(20)]
            inputs[i + 1] = STRETCH[slot >> uint32(20)]
        else:
            inputs[i] = inputs[i + 1] = 0
    return known


@lean_kernel
@no_type_check
def _ask_runs(
    inputs: Array,
    run: Array,
    length: Array,
    nodes: Array,
    bits: Array,
    sure: Array,
    node: int,
    k: int,
) -> None:
    """Write how sure contexts are of the character that followed them last."""
    for c in range(len(run)):
        expected, i = run[c, 1], 3 * c + 2
        inputs[i] = 0
        if expected >= 0 and k < length[expected] and nodes[expected, k] == node:
            logit = STRETCH[sure[c, run[c, 2]] >> uint32(20)]
            inputs[i] = logit if bits[expected, k] else -logit


@lean_kernel
@no_type_check
def _follow(
    inputs: Array,
    i: int,
    match: Array,
    length: Array,
    nodes: Array,
    bits: Array,
    trust: Array,
    node: int,
    k: int,
) -> int:
    """Write what matches expect, from input i on; return the state of the first, 0 for no match."""
    state = 0
    for j in range(len(match)):
        expected = match[j, 2]
        inputs[i] = inputs[i + 1] = 0
        if expected >= 0 and k < length[expected] and nodes[expected, k] == node:
            long = _length_class(match[j, 1])
            if j == 0:
                state = 1 + long // 2
            p = int64(trust[j, 2 * long + bits[expected, k]] >> uint32(20))
            inputs[i], inputs[i + 1] = STRETCH[p], 4 * (p - 2048)
        i += 2
    return state


@lean_kernel
@no_type_check
def _take_offers(inputs: Array, i: int, offered: Array, node: int) -> None:
    """Write what other models offer, from input i on, and a bias."""
    for e in range(len(offered)):
        p = offered[e, node]
        inputs[i] = inputs[i + 1] = 0
        if p >= 0:
            inputs[i], inputs[i + 1] = STRETCH[p], 6 * (p - 2048)
        i += 2
    inputs[i] = UNIT // 4


@lean_kernel
@no_type_check
def _length_class(length: int) -> int:
    return length if length < 16 else min(16 + (length - 16) // 4, 31)


@lean_kernel
@no_type_check
def _refine(refined: Array, last: int, before: int, node: int, joined: Array, logit: int) -> int:
    """Return the probability for a logit, corrected by what followed in two small contexts."""
    above = logit + TOP
    point, beyond = above // STEP, above % STEP
    joined[4] = point + (2 * beyond > STEP)
    h = mixed(last, uint64(node))
    joined[5] = int64(h & uint64(REFINED - 1))
    joined[6] = int64(mixed(h, before) & uint64(REFINED - 1))
    p = SQUASH[above >> 4]
    for r in range(2):
        row = refined[r, joined[5 + r]]
        low, high = int64(row[point]), int64(row[point + 1])
        p += (1 + r) * ((low * (STEP - beyond) + high * beyond) // (16 * STEP))
    return min(max(p >> 2, LEAST), 65536 - LEAST)


@lean_kernel
@no_type_check
def learn(m: Mixer, symbol: int) -> None:
    """Learn from a character, all of whose nodes have been predicted."""
    for k in range(m.length[symbol]):
        node, bit = m.nodes[symbol, k], m.bits[symbol, k]
        joined, logits, rows, inputs = m.joined[k], m.logits[k], m.rows[k], m.inputs[k]
        for f in range(2):
            error = ((bit << 16) - SQUASH[(joined[2 + f] + TOP) >> 4]) * FINAL_SPEED
            weights = m.final[joined[f]]
            for s in range(SETS):
                weights[s] += (logits[s] * error + (1 << 25)) >> 26
        _correct(m.weights, rows, inputs, logits, bit)
        for r in range(2):
            at = m.refined[r, joined[5 + r]]
            at[joined[4]] += (bit * 65535 * 16 - at[joined[4]]) >> 6
        _learn_text(m, node, k, bit)


@lean_kernel
@no_type_check
def _correct(all_weights: Array, rows: Array, inputs: Array, logits: Array, bit: int) -> None:
    """Move each set's weights against its error, in 32 bits, of which machines add several at once."""
    for s in range(len(rows)):
        error = ((bit << 16) - SQUASH[(logits[s] + TOP) >> 4]) * SPEED
        step, weights = np.int32(error >> 10), all_weights[rows[s]]
        for i in range(len(inputs)):
            weights[i] += (inputs[i] * step + np.int32(1 << 15)) >> np.int32(16)


@lean_kernel
@no_type_check
def _learn_text(m: Mixer, node: int, k: int, bit: int) -> None:
    """Learn from one bit all that does not depend on mixing; for a while, only what was seen."""
    found, for_good = m.found[k], m.changes[0] < 0
    if m.place[node] == 1:
        _open(m.slots, m.hashes, m.group[node], found, m.log, m.changes)
    else:
        _copy(m.found[k - 1], found)
    _learn_slots(m.slots, found, m.place[node], m.seen[k], bit, m.log, m.changes)
    if for_good:
        _learn_maps(m.maps, m.seen[k], bit)
        _learn_runs(m.run, m.length, m.nodes, m.bits, m.sure, node, k, bit)
        _learn_matches(m.match, m.length, m.nodes, m.bits, m.trust, node, k, bit)


@lean_kernel
@no_type_check
def _learn_matches(
    match: Array,
    length: Array,
    nodes: Array,
    bits: Array,
    trust: Array,
    node: int,
    k: int,
    bit: int,
) -> None:
    """Learn how far matches can be trusted."""
    for j in range(len(match)):
        expected = match[j, 2]
        if expected >= 0 and k < length[expected] and nodes[expected, k] == node:
            i = 2 * _length_class(match[j, 1]) + bits[expected, k]
            p = int64(trust[j, i])
            trust[j, i] = uint32(p + ((bit * 0xFFFFFFFF - p) >> 7))


@lean_kernel
@no_type_check
def _learn_runs(
    run: Array,
    length: Array,
    nodes: Array,
    bits: Array,
    sure: Array,
    node: int,
    k: int,
    bit: int,
) -> None:
    """Learn how surely the character that followed a context last follows again."""
    for c in range(len(run)):
        expected = run[c, 1]
        if expected >= 0 and k < length[expected] and nodes[expected, k] == node:
            again, p = bits[expected, k] == bit, int64(sure[c, run[c, 2]])
            sure[c, run[c, 2]] = uint32(p + ((again * 0xFFFFFFFF - p) >> 7))


@lean_kernel
@no_type_check
def _open(
    slots: Array, hashes: Array, group: int, found: Array, log: Array, changes: Array
) -> None:
    """Use the slots of a group of nodes in all contexts, new ones where there are none."""
    for c in range(len(found)):
        if found[c] < 0:
            found[c] = _make_room(slots, log, changes, mixed(hashes[c], uint64(group)))
        head = slots[found[c], 0]
        if head & uint32(0xFFFF) < 0xFFF0:
            _set_slot(slots, log, changes, found[c], 0, head + uint32(1))


@lean_kernel
@no_type_check
def _learn_slots(
    slots: Array, found: Array, place: int, seen: Array, bit: int, log: Array, changes: Array
) -> None:
    """Bring the slots of all contexts up to date with one bit."""
    for c in range(len(found)):
        slot, history = slots[found[c], place], seen[c]
        count, p = int64(slot >> uint32(8)) & 255, int64(slot >> uint32(16))
        if history == 0:
            count, p = 0, 1 << 15
        p += (bit * 65535 - p) * RATE[count] >> 16
        new = uint32(p << 16 | min(count + 1, 255) << 8 | AFTER[history, bit])
        _set_slot(slots, log, changes, found[c], place, new)


@lean_kernel
@no_type_check
def _learn_maps(maps: Array, seen: Array, bit: int) -> None:
    """Learn what follows the histories that the contexts saw."""
    for c in range(len(seen)):
        if seen[c]:
            entry = maps[c, seen[c]]
            often, p = int64(entry & uint32(1023)), int64(entry >> uint32(10))
            p += (bit * 0x3FFFFF - p) * RATE[often] >> 16
            maps[c, seen[c]] = uint32(p << 10 | min(often + 1, 255))


@lean_kernel
@no_type_check
def _set_slot(slots: Array, log: Array, changes: Array, row: int, place: int, value: int) -> None:
    _log(log, changes, SLOTS_CHANGED, 8 * row + place, int64(slots[row, place]))
    slots[row, place] = value


@lean_kernel
@no_type_check
def _log(log: Array, changes: Array, kind: int, place: int, old: int) -> None:
    """Keep in mind what stood in a place, if changes are to be undone."""
    done = changes[0]
    if done >= 0:
        log[done, 0], log[done, 1], log[done, 2] = kind, place, old
        changes[0] = done + 1


@lean_kernel
@no_type_check
def forget(m: Mixer) -> None:
    """Undo the changes that were logged, the last first."""
    for i in range(m.changes[0] - 1, -1, -1):
        kind, place, old = m.log[i, 0], m.log[i, 1], m.log[i, 2]
        if kind == SLOTS_CHANGED:
            m.slots[place >> 3, place & 7] = uint32(old)
        elif kind == RUNS_CHANGED:
            m.runs[place] = uint32(old)
        elif kind == HISTORY_CHANGED:
            m.history[place] = old
            m.clock[0] -= 1
        elif kind < PASSAGES_CHANGED:
            m.followed[kind - FOLLOWED_CHANGED, place] = uint64(old)
        else:
            m.passages[kind - PASSAGES_CHANGED, place] = old
    m.changes[0] = min(m.changes[0], 0)


@lean_kernel
@no_type_check
def _make_room(slots: Array, log: Array, changes: Array, h: int) -> int:
    """Return the row for a new context: of the two that it may have, the one used less."""
    at = int64(h & uint64(len(slots) - 1))
    used, beside = slots[at, 0] & uint32(0xFFFF), slots[at ^ 1, 0] & uint32(0xFFFF)
    if beside < used:
        at, beside = at ^ 1, used
    if beside > 0:  # so that rows that were used long ago make room in the end
        _set_slot(slots, log, changes, at ^ 1, 0, slots[at ^ 1, 0] - uint32(1))
    for i in range(1, 8):
        _set_slot(slots, log, changes, at, i, uint32(0))
    _set_slot(slots, log, changes, at, 0, uint32(_check(h) << uint32(16)))
    return at


@lean_kernel
@no_type_check
def move_on(m: Mixer, symbol: int, learned: bool) -> None:
    """Go on to the next character; `learned`: what was learned includes this one."""
    time, ring = m.clock[0], len(m.history) - 1
    if learned:
        _note_runs(m.runs, m.run, m.hashes, symbol, m.log, m.changes)
        for n in range(FOLLOWING):
            at = _after_last(m.past, n + 1)
            old = m.followed[n, at]
            _log(m.log, m.changes, FOLLOWED_CHANGED + n, at, int64(old))
            m.followed[n, at] = (old << uint64(20) | uint64(symbol + 1)) & uint64((1 << 40) - 1)
        _log(m.log, m.changes, HISTORY_CHANGED, time & ring, int64(m.history[time & ring]))
        m.history[time & ring] = symbol
        time += 1
        m.clock[0] = time
    see(m.past, symbol, m.classes)
    for n in range(FOLLOWING):
        m.past[FOLLOWED + n] = m.followed[n, _after_last(m.past, n + 1)]
    read = int64(m.past[READ])
    for j in range(len(m.match)):
        match = m.match[j]
        if match[2] == symbol:
            match[0], match[1] = match[0] + 1, match[1] + 1
        else:
            match[1] = 0
        if read >= MATCHES[j]:
            h = uint64(j)
            for i in range(MATCHES[j]):
                h = mixed(h, part(m.past, -1 - i))
            at = int64(h >> uint64(64 - INDEX_BITS))
            if match[1] == 0:
                match[0], match[1] = int64(m.passages[j, at]), 0
                match[1] = _common(m.history, m.past, match[0])
                if match[1] < MATCHES[j]:
                    match[1] = 0
            if learned:
                _log(m.log, m.changes, PASSAGES_CHANGED + j, at, int64(m.passages[j, at]))
                m.passages[j, at] = time
        inside = time - ring <= match[0] < time
        match[2] = m.history[match[0] & ring] if match[1] > 0 and inside else -1


@lean_kernel
@no_type_check
def _note_runs(
    runs: Array, run: Array, hashes: Array, symbol: int, log: Array, changes: Array
) -> None:
    """Keep what has followed each context now, and how often in a row."""
    for c in range(len(run)):
        at = run[c, 0]
        often = min(run[c, 2] + 1, RUN - 1) if run[c, 1] == symbol else 1
        _log(log, changes, RUNS_CHANGED, at, int64(runs[at]))
        check = uint32(hashes[c] >> uint64(58) << uint64(26))
        runs[at] = check | uint32(symbol << 5 | often)


@lean_kernel
@no_type_check
def _after_last(past: Array, n: int) -> int:
    """Return a hash of the last n characters, FOLLOW_BITS wide."""
    h = uint64(n)
    for i in range(n):
        h = mixed(h, part(past, -1 - i))
    return int64(h >> uint64(64 - FOLLOW_BITS))


@lean_kernel
@no_type_check
def _common(history: Array, past: Array, at: int) -> int:
    """Return how many characters before a place in the history equal the last ones, up to 32."""
    ring, most, length = len(history) - 1, min(FARTHEST, at), 0
    while length < most:
        if history[(at - 1 - length) & ring] + 1 != int64(part(past, -1 - length)):
            break
        length += 1
    return length


@lean_kernel
@no_type_check
def distribute(m: Mixer, p: Array) -> None:
    """Write the probabilities of all V characters to `p`; `look` comes before."""
    waiting, shares = m.waiting, m.shares
    waiting[0, 0] = waiting[0, 1] = 0
    shares[0] = 1.0
    left = 1
    while left:
        left -= 1
        node, k, share = waiting[left, 0], waiting[left, 1], shares[left]
        ones = predict(m, node, k) / 65536
        for bit in range(2):
            to, own = m.child[node, bit], share * (ones if bit else 1 - ones)
            if to < 0:
                p[-1 - to] = own
            else:
                waiting[left, 0], waiting[left, 1], shares[left] = to, k + 1, own
                left += 1


@lean_kernel
@no_type_check
def probability(m: Mixer, symbol: int) -> float:
    """Return the probability of one character; `look` comes before."""
    p = 1.0
    for k in range(m.length[symbol]):
        ones = predict(m, m.nodes[symbol, k], k) / 65536
        p *= ones if m.bits[symbol, k] else 1 - ones
    return p


@lean_kernel
@no_type_check
def offer(m: Mixer, log_p: Array) -> None:
    """Take what other models predict of the next character, (X, V); NaN: nothing."""
    sums = m.shares
    for e in range(len(log_p)):
        if np.isnan(log_p[e, 0]):
            for node in range(len(m.group)):
                m.offered[e, node] = -1
            continue
        for node in range(len(m.group) - 1, -1, -1):  # those below come first
            zeros = _share(m.child[node, 0], sums, log_p[e])
            ones = _share(m.child[node, 1], sums, log_p[e])
            sums[node] = zeros + ones
            m.offered[e, node] = min(int64(4096 * ones / (zeros + ones)), 4095)


@lean_kernel
@no_type_check
def _share(child: int, sums: Array, log_p: Array) -> float:
    """Return the probability of all characters below a node, or of one."""
    return sums[child] if child >= 0 else max(np.exp(float64(log_p[-1 - child])), LEAST_SHARE)


@lean_kernel
@no_type_check
def read(m: Mixer, ids: Array, offers: Array, p: Array, how: int) -> int:
    """Read on; return how many of `ids` there was room for.

    Row t is about the character after `ids[t]`: offers (n, X, V) are what others predict of it, and the
    mixture is written to p (n, V), unless that is empty. `how` each of `ids` is read: `WATCH` changes
    nothing but the place, `REMEMBER` counts it until `forget`, and `LEARN` learns from it.
    """
    for t in range(len(ids)):
        if how == REMEMBER and m.changes[0] + most_changes(m) > len(m.log):
            return t
        take(m, ids[t], how)
        if offers.shape[1]:
            offer(m, offers[t])
        if len(p):
            look(m)
            distribute(m, p[t])
    return len(ids)


@lean_kernel
@no_type_check
def take(m: Mixer, symbol: int, how: int) -> None:
    """Read one character: see `read`."""
    if how != WATCH:
        look(m)
    if how == LEARN:
        probability(m, symbol)
        learn(m, symbol)
    elif how == REMEMBER:
        remember(m, symbol)
    move_on(m, symbol, how != WATCH)


@lean_kernel
@no_type_check
def most_changes(m: Mixer) -> int:
    """Return how many changes a character can make."""
    depth = len(m.found)
    return len(m.hashes) * (1 + 2 * depth + 9 * (1 + depth // LEVELS)) + 16


@lean_kernel
@no_type_check
def remember(m: Mixer, symbol: int) -> None:
    """Learn all that depends on the text alone: everything but `weights`, `final` and `refined`."""
    for k in range(m.length[symbol]):
        _ask(m, m.nodes[symbol, k], k)
    for k in range(m.length[symbol]):
        _learn_text(m, m.nodes[symbol, k], k, m.bits[symbol, k])


@lean_kernel
@no_type_check
def recount(m: Mixer, ids: Array) -> None:
    """Learn what depends on a text alone, and for good: nothing is to be forgotten (`changes` < 0)."""
    for t in range(len(ids)):
        take(m, ids[t], REMEMBER)
