"""Context mixing: many contexts predict a bit, and a mixer learns which of them to trust.

A character is a walk down a tree (`symbol_tree`), and each step of it is predicted alike:

    1  each context looks up what followed it at this node: a history of bits, and a probability.
       Both become logits (a history by way of a map that learns what followed such histories). A
       third says how certain it is that the character that followed the context last follows again,
       if that character is below this node
    2  a match model looks for the longest earlier passage that ends like the text, and predicts what
       came next there
    3  other models may add their probability of the bit
    4  mixers: weighted sums of these logits. Each mixer selects its weights by something known, such
       as the last character; a last mixer combines them
    5  the result is refined by what followed such results after the last one or two characters

After a whole character, everything that took part learns from each of its bits. PAQ (Mahoney 2005)
does 1, 2, 4 and 5 over bytes; here everything is an integer, from `bit_tables`.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from numba import int64, uint64

from charlm.models import context_table, passages
from charlm.models.bit_tables import LEAST, LIMIT, SQUASH, STRETCH, TOP, UNIT, Array
from charlm.models.context_table import Contexts, ask, count_bit, new_contexts, trust
from charlm.models.kernel import kernel
from charlm.models.passages import Passages, follow, no_passages, trust_matches
from charlm.models.symbol_tree import Walks
from charlm.models.undo import Undo
from charlm.models.view import COLUMN, LINES, PARAGRAPH, SIZE, WORD, mixed, part

STEP = 3 * UNIT // 4  # between the points of a refinement
POINTS = 2 * TOP // STEP + 1
REFINED = 1 << 16  # contexts in each of two refinements
OFFERED = 65536 // 8  # initial weight of another model's prediction
SPEED, FINAL_SPEED = 20, 20  # of learning weights, in 1/2^26 for each unit of error and input
SETS = 11  # of weights; the first three depend on the node too


class Mixer(NamedTuple):
    """What has been learned and read. Arrays are changed in place.

    Sizes: V characters, N = V - 1 nodes, D nodes on the longest walk, C contexts, M ways to match, X
    other models, I = 3 C + 2 M + 2 X + 1 inputs, S sets of weights.
    """

    walks: Walks
    classes: Array  # (2, V): see `view`
    past: Array  # (SIZE,) uint64: see `view`
    contexts: Contexts
    passages: Passages
    undo: Undo

    weights: Array  # (rows, I) int32, 1/65536
    rows_of: Array  # the first row of each set, (S,)
    final: Array  # (N + C + 1, S) int32: by the node, and by how many contexts are known
    refined: Array  # (2, REFINED, POINTS) int32, 1/2^20

    offered: Array  # (X, N) int64: p of a 1 at each node, 1/4096; -1: no offer
    chosen: Array  # (S,) int64: rows of the weights, or of a set's first node
    inputs: Array  # (D, I) int32: logits; this and the rest for each node on the way
    logits: Array  # (D, S) int64
    rows: Array  # (D, S) int64
    joined: Array  # (D, 7) int64: rows of `final`, logits, the point, rows of `refined`
    waiting: Array  # (N + 1, 2) int64: nodes to visit, and how far down they are
    shares: Array  # (N + 1,) float64: probabilities of reaching them


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
    count, nodes, texts = len(contexts), max(1, vocab_size - 1), no_passages()
    inputs = 3 * count + 2 * len(texts.match) + 2 * experts + 1
    sizes = [count + 1, nodes, 256, vocab_size + 1, 32, vocab_size + 1, 64, 512, 1024, 1024, 128]
    first = np.concatenate([[0], np.cumsum(sizes)])
    curve = np.arange(POINTS) * STEP
    points = SQUASH[np.minimum(curve, 2 * TOP - 1) >> 4] << 4
    weights = np.full((first[-1], inputs), 2 * 65536 // (count + 2), np.int32)
    weights[:, -1 - 2 * experts :] = 0  # the bias, and what is offered
    weights[:, inputs - 2 * experts - 1 : -1 : 2] = OFFERED
    return Mixer(
        walks=walks,
        classes=classes.astype(np.int64),
        past=np.zeros(SIZE, np.uint64),
        contexts=new_contexts(contexts, slot_bits, depth),
        passages=texts,
        undo=Undo(np.empty((0, 3), np.int64), np.full(1, -1)),
        weights=weights,
        rows_of=first[:-1].astype(np.int64),
        final=np.full((nodes + count + 1, SETS), 65536 // SETS, np.int32),
        refined=np.tile(points.astype(np.int32), (2, REFINED, 1)),
        offered=np.full((experts, nodes), -1, np.int64),
        chosen=np.zeros(SETS, np.int64),
        inputs=np.zeros((depth, inputs), np.int32),
        logits=np.zeros((depth, SETS), np.int64),
        rows=np.zeros((depth, SETS), np.int64),
        joined=np.zeros((depth, 7), np.int64),
        waiting=np.zeros((nodes + 1, 2), np.int64),
        shares=np.zeros(nodes + 1),
    )


@kernel
@no_type_check
def look(m: Mixer) -> None:
    """Find the contexts of the next character, and what the mixers select weights by."""
    view = m.past
    context_table.look_up(m.contexts, view)
    last, before = int64(part(view, -1)), int64(part(view, -2))
    column, word = min(int64(view[COLUMN]), 31), view[WORD]
    chosen, rows = m.chosen, m.rows_of
    for s in range(3):
        chosen[s] = rows[s]
    chosen[3] = rows[3] + last
    chosen[4] = rows[4] + column
    chosen[5] = rows[5] + before
    chosen[6] = rows[6] + int64(view[PARAGRAPH] & uint64(63))
    chosen[7] = rows[7] + int64(mixed(word, uint64(last)) & uint64(511))
    chosen[8] = rows[8] + int64(mixed(uint64(last), uint64(before)) & uint64(1023))
    chosen[9] = rows[9] + int64(word & uint64(1023))
    chosen[10] = rows[10] + 32 * int64(view[LINES]) + column


@kernel
@no_type_check
def predict(m: Mixer, node: int, k: int) -> int:
    """Return the probability of a 1 at a node, the k-th on the way, in 1/65536.

    `look` comes before the first node of a character, and the nodes above come before each.
    """
    logits, rows, inputs = m.logits[k], m.rows[k], m.inputs[k]
    known = ask(m.contexts, m.walks, node, k, inputs)
    match = follow(m.passages, m.walks, node, k, inputs, 3 * len(m.contexts.hashes))
    _take_offers(m.offered, node, inputs)
    for s in range(SETS):
        rows[s] = m.chosen[s]
    rows[0] += known
    rows[1] += node
    rows[2] += 8 * match + min(k, 7)
    _mix(m.weights, rows, inputs, logits)
    joined, logit = m.joined[k], int64(0)
    joined[0], joined[1] = node, len(m.walks.group) + known
    for f in range(2):
        total = int64(0)
        for s in range(SETS):
            total += int64(m.final[joined[f], s]) * logits[s]
        joined[2 + f] = min(max(total >> 16, -LIMIT), LIMIT)
        logit += joined[2 + f]
    return _refine(m.refined, part(m.past, -1), part(m.past, -2), node, joined, logit >> 1)


@kernel
@no_type_check
def _take_offers(offered: Array, node: int, inputs: Array) -> None:
    """Write what other models offer, as the last inputs but one, and a bias as the last."""
    i = len(inputs) - 1 - 2 * len(offered)
    for e in range(len(offered)):
        p = offered[e, node]
        inputs[i] = inputs[i + 1] = 0
        if p >= 0:
            inputs[i], inputs[i + 1] = STRETCH[p], 6 * (p - 2048)
        i += 2
    inputs[i] = UNIT // 4


@kernel
@no_type_check
def _mix(all_weights: Array, rows: Array, inputs: Array, logits: Array) -> None:
    """Write the weighted sum of the inputs for each set of weights."""
    for s in range(len(rows)):
        weights, total = all_weights[rows[s]], int64(0)
        for i in range(len(inputs)):
            total += int64(weights[i]) * int64(inputs[i])
        logits[s] = min(max(total >> 16, -LIMIT), LIMIT)


@kernel
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


@kernel
@no_type_check
def learn(m: Mixer, symbol: int) -> None:
    """Learn from a character, all of whose nodes have been predicted."""
    for k in range(m.walks.length[symbol]):
        node, bit = m.walks.nodes[symbol, k], m.walks.bits[symbol, k]
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
        _count(m, node, k, bit)


@kernel
@no_type_check
def _correct(all_weights: Array, rows: Array, inputs: Array, logits: Array, bit: int) -> None:
    """Update each set's weights by its error, in 32 bits, so that machines add several at once."""
    for s in range(len(rows)):
        error = ((bit << 16) - SQUASH[(logits[s] + TOP) >> 4]) * SPEED
        step, weights = np.int32(error >> 10), all_weights[rows[s]]
        for i in range(len(inputs)):
            weights[i] += (inputs[i] * step + np.int32(1 << 15)) >> np.int32(16)


@kernel
@no_type_check
def _count(m: Mixer, node: int, k: int, bit: int) -> None:
    """Learn from a bit all that does not depend on mixing; only counts, if they are to be undone."""
    count_bit(m.contexts, m.undo, m.walks, node, k, bit)
    if m.undo.changes[0] < 0:
        trust(m.contexts, m.walks, node, k, bit)
        trust_matches(m.passages, m.walks, node, k, bit)


@kernel
@no_type_check
def ask_contexts(m: Mixer, symbol: int) -> None:
    """Ask the contexts about the nodes of a character, without mixing; `look` comes before."""
    nodes, inputs = m.walks.nodes, m.inputs
    for k in range(m.walks.length[symbol]):
        ask(m.contexts, m.walks, nodes[symbol, k], k, inputs[k])


@kernel
@no_type_check
def count(m: Mixer, symbol: int) -> None:
    """Learn all that depends on the text alone: everything but `weights`, `final` and `refined`.

    The contexts have been asked about all nodes of the character.
    """
    nodes, bits = m.walks.nodes, m.walks.bits
    for k in range(m.walks.length[symbol]):
        _count(m, nodes[symbol, k], k, bits[symbol, k])


@kernel
@no_type_check
def most_changes(m: Mixer) -> int:
    """Return how many changes a character can make."""
    return context_table.most_changes(m.contexts) + passages.OTHER_CHANGES
