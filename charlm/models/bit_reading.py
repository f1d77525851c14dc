"""Reading a text with a mixer: what is predicted, what is learned for good, what for a while."""

from typing import no_type_check

import numpy as np
from numba import float64, int64, uint32, uint64

from charlm.models.bit_mixing import (
    Mixer,
    ask_contexts,
    count,
    learn,
    look,
    most_changes,
    predict,
)
from charlm.models.bit_tables import Array
from charlm.models.context_table import count_runs
from charlm.models.kernel import kernel
from charlm.models.passages import add, find_matches, no_match
from charlm.models.undo import FOLLOWERS, HISTORY, RUNS, SLOTS
from charlm.models.view import BOUNDARY, see

WATCH, REMEMBER, LEARN = range(3)  # how a text is read: see `read`
LEAST_SHARE = 1e-12
NO_OFFERS, NOTHING = np.empty((1, 0, 0), np.float32), np.empty((0, 0))
NO_IDS = np.empty(0, np.int64)


@kernel
@no_type_check
def distribute(m: Mixer, p: Array) -> None:
    """Write the probabilities of all V characters to `p`; `look` comes before."""
    if not len(m.walks.child):  # the only character
        p[0] = 1.0
        return
    waiting, shares, child = m.waiting, m.shares, m.walks.child
    waiting[0, 0] = waiting[0, 1] = 0
    shares[0] = 1.0
    left = 1
    while left:
        left -= 1
        node, k, share = waiting[left, 0], waiting[left, 1], shares[left]
        ones = predict(m, node, k) / 65536
        for bit in range(2):
            to, own = child[node, bit], share * (ones if bit else 1 - ones)
            if to < 0:
                p[-1 - to] = own
            else:
                waiting[left, 0], waiting[left, 1], shares[left] = to, k + 1, own
                left += 1


@kernel
@no_type_check
def foresee(m: Mixer, p: Array) -> None:
    """Write the probabilities of the next character, (V,)."""
    look(m)
    distribute(m, p)


@kernel
@no_type_check
def probability(m: Mixer, symbol: int) -> float:
    """Return the probability of one character; `look` comes before."""
    p, nodes, bits = 1.0, m.walks.nodes, m.walks.bits
    for k in range(m.walks.length[symbol]):
        ones = predict(m, nodes[symbol, k], k) / 65536
        p *= ones if bits[symbol, k] else 1 - ones
    return p


@kernel
@no_type_check
def offer(m: Mixer, log_p: Array) -> None:
    """Take what other models predict of the next character, (X, V); NaN: nothing."""
    sums, child = m.shares, m.walks.child
    for e in range(len(log_p)):
        if np.isnan(log_p[e, 0]):
            for node in range(len(child)):
                m.offered[e, node] = -1
            continue
        for node in range(len(child) - 1, -1, -1):  # those below come first
            zeros = _share(child[node, 0], sums, log_p[e])
            ones = _share(child[node, 1], sums, log_p[e])
            sums[node] = zeros + ones
            m.offered[e, node] = min(int64(4096 * ones / (zeros + ones)), 4095)


@kernel
@no_type_check
def _share(child: int, sums: Array, log_p: Array) -> float:
    """Return the probability of all characters below a node, or of one."""
    return sums[child] if child >= 0 else max(np.exp(float64(log_p[-1 - child])), LEAST_SHARE)


@kernel
@no_type_check
def take(m: Mixer, symbol: int, how: int, predicted: bool) -> None:
    """Read one character: see `read`; `predicted`: it is the one that was predicted last."""
    if how != WATCH and not predicted:
        look(m)
        if how == LEARN:
            probability(m, symbol)
        else:
            ask_contexts(m, symbol)
    if how == LEARN:
        learn(m, symbol)
    elif how == REMEMBER:
        count(m, symbol)
    move_on(m, symbol, how != WATCH)


@kernel
@no_type_check
def move_on(m: Mixer, symbol: int, counted: bool) -> None:
    """Go on to the next character; `counted`: this one is part of what is known of the text."""
    if counted:
        count_runs(m.contexts, m.undo, symbol)
        add(m.passages, m.undo, m.past, symbol)
    see(m.past, symbol, m.classes)
    if m.classes[0, symbol] == BOUNDARY:
        no_match(m.passages)
    find_matches(m.passages, m.undo, m.past, symbol, counted)


@kernel
@no_type_check
def _step(m: Mixer, symbol: int, offers: Array, t: int, how: int, predicted: bool) -> bool:
    """Read one character and take the offers after it; tell whether the log had room for it."""
    logged = m.undo.changes[0]
    if how == REMEMBER and logged >= 0 and logged + most_changes(m) > len(m.undo.log):
        return False
    take(m, symbol, how, predicted)
    if offers.shape[1]:
        offer(m, offers[t])
    return True


@kernel
@no_type_check
def read(m: Mixer, ids: Array, offers: Array, p: Array, how: int) -> int:
    """Read on; return how many of `ids` there was room for.

    Row t is about the character after `ids[t]`: offers (n, X, V) are what others predict of it, and the
    mixture is written to p (n, V), unless that is empty. `how` each of `ids` is read: `WATCH` changes
    nothing but the place, `REMEMBER` counts it until `forget` (for good, if changes are), and `LEARN`
    learns from it.
    """
    for t in range(len(ids)):
        if not _step(m, ids[t], offers, t, how, False):
            return t
        if len(p):
            foresee(m, p[t])
    return len(ids)


@kernel
@no_type_check
def look_up(m: Mixer, ids: Array, targets: Array, offers: Array, p: Array, how: int) -> int:
    """Like `read`, but write to p (n,) only the probability of each target, which follows `ids`."""
    for t in range(len(ids)):
        if not _step(m, ids[t], offers, t, how, t > 0 and ids[t] == targets[t - 1]):
            return t
        look(m)
        p[t] = probability(m, targets[t])
    return len(ids)


@kernel
@no_type_check
def score_and_learn(m: Mixer, ids: Array, offers: Array, p: Array) -> None:
    """Write the probability of each of `ids`, then learn from it and take the next offers."""
    for t in range(len(ids)):
        look(m)
        p[t] = probability(m, ids[t])
        learn(m, ids[t])
        move_on(m, ids[t], True)
        if offers.shape[1]:
            offer(m, offers[t])


@kernel
@no_type_check
def begin_anew(m: Mixer) -> None:
    """Undo what was counted only for a while, and begin a new text."""
    forget(m)
    m.past[:] = 0
    no_match(m.passages)


@kernel
@no_type_check
def forget(m: Mixer) -> None:
    """Undo the changes that were logged, the last first."""
    log, changes, known, texts = m.undo.log, m.undo.changes, m.contexts, m.passages
    for i in range(changes[0] - 1, -1, -1):
        table, place, old = log[i, 0], log[i, 1], log[i, 2]
        if table == SLOTS:
            known.slots[place >> 3, place & 7] = uint32(old)
        elif table == RUNS:
            known.runs[place] = uint32(old)
        elif table == HISTORY:
            texts.history[place] = old
            texts.clock[0] -= 1
        elif table == FOLLOWERS:
            texts.followed[place] = uint64(old)
        else:
            texts.places[place] = old
    changes[0] = min(changes[0], 0)
