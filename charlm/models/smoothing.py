"""From counts to probabilities: smoothing moves probability from seen to unseen characters.

Every method has the same form. After the context h (the last k - 1 characters),

    p(w | h) = share(h w) + left_over(h) * p(w | h without its oldest character)

where the shares of a context and its left-over sum to 1, and the empty context backs off to 1 / V.
So no character has probability zero. The methods differ in what they count and how much they keep.

Kneser-Ney counts a context in two ways. One that is short because a longer one is unknown asks in
how many places its k-grams occur. One that is short because the text has just begun asks how often
they occur, as in a model whose highest order is k. So orders below the highest have shares of both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise, repeat

import numpy as np

from charlm.errors import check_stop
from charlm.models.counts import STRIDE, Array, Counts, Level

FALLBACK = (0.5, 1.0, 1.5)  # if counts of counts give no valid discount; KenLM's values

# (counts, start of each context, total of each context) -> (shares, left-over of each context)
Smooth = Callable[[Array, Array, Array], tuple[Array, Array]]


@dataclass
class Table:
    """The probabilities of one order.

    Where a context at the beginning of a text is treated unlike one that follows other characters,
    `share` and `left_over` have two rows, (2, N) and (2, M), the second for the beginning.

    Args:
        keys: The k-grams as parent * V + last character, increasing, (N,) int64.
        share: The share of each k-gram in its context's probability, (N,) float32.
        left_over: What each context (a node one level up) leaves to shorter ones, (M,) float32;
            1 for a context that nothing followed.
    """

    keys: Array
    share: Array
    left_over: Array

    @property
    def held_bytes(self) -> int:
        """The memory of its arrays and of the index of its contexts in an `NGramModel`."""
        index = 8 * (self.left_over.shape[-1] + 1)
        return int(self.keys.nbytes + self.share.nbytes + self.left_over.nbytes + index)


def kneser_ney(
    counts: Array, first: Array, total: Array, *, discount: Array
) -> tuple[Array, Array]:
    """Subtract a discount from every count: one for 1, one for 2, one for 3 and more.

    Interpolated modified Kneser-Ney: Chen and Goodman 1998, "An empirical study of smoothing
    techniques for language modeling" (TR-10-98), section 3.
    """
    taken = discount[np.minimum(counts, 3)]
    spread = np.diff(first, append=len(counts))
    return (counts - taken) / np.repeat(total, spread), np.add.reduceat(taken, first) / total


def witten_bell(counts: Array, first: Array, total: Array) -> tuple[Array, Array]:
    """Count each distinct character after a context as one observation of something new.

    Witten and Bell 1991, "The zero-frequency problem", method C; interpolated.
    """
    kinds = np.add.reduceat((counts > 0).astype(np.int64), first)
    spread = np.diff(first, append=len(counts))
    return counts / np.repeat(total + kinds, spread), kinds / (total + kinds)


def add_k(
    counts: Array, first: Array, total: Array, *, k: float, vocab_size: int
) -> tuple[Array, Array]:
    """Add k to every count (Laplace's rule of succession for k = 1).

    The left-over goes to all V characters equally, not to shorter contexts.
    """
    added = k * vocab_size
    spread = np.diff(first, append=len(counts))
    return counts / np.repeat(total + added, spread), added / (total + added)


def discounts(counts: Array) -> Array:
    """Estimate the discounts of counts 0, 1, 2 and 3 or more from counts of counts, (4,).

    With n_i the number of n-grams that occur i times and Y = n_1 / (n_1 + 2 n_2):
    D_i = i - (i + 1) Y n_(i + 1) / n_i (Chen and Goodman 1998, section 3).
    """
    n = np.zeros(5)
    for some in _stretches(counts):
        n += np.bincount(np.minimum(some, 5), minlength=6)[:5]
    estimated = [0.0]
    for i in (1, 2, 3):
        found = 0.0
        if n[1] and n[i]:
            found = i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[i + 1] / n[i]
        estimated.append(found if 0 < found < i else FALLBACK[i - 1])
    return np.array(estimated)


def smooth(
    counts: Counts,
    smoothing: str,
    *,
    k: float = 1.0,
    min_count: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Table]:
    """Yield the table of each order, the lowest first.

    Args:
        counts: Of all orders.
        smoothing: `kneser-ney`, `witten-bell` or `add-k`.
        k: What `add-k` adds.
        min_count: N-grams of two or more characters that occur less often are dropped after the
            discounts are estimated; their share goes to shorter contexts.
        should_stop: Called often; Stopped is raised if it says so.

    Raises OSError if the disk is too small.
    """
    levels, vocab_size = counts.levels, counts.vocab_size

    def method(seen: Array) -> Smooth:
        if smoothing == "kneser-ney":
            return partial(kneser_ney, discount=discounts(seen))
        if smoothing == "add-k":
            return partial(add_k, k=k, vocab_size=vocab_size)
        return witten_bell

    # Kneser and Ney 1995: a shorter context is used where the longer one fails. So its k-grams are
    # counted by the number of distinct characters before them, not by how often they occur.
    places: Iterator[Array | None] = repeat(None)
    if smoothing == "kneser-ney":
        places = chain(_left_neighbours(counts, should_stop), repeat(None))
    number, contexts = np.zeros(1, np.int64), 1  # of the level above; first the empty context
    for level, some in zip(levels, places, strict=False):
        seen = [level.counts] if some is None else [some, level.counts]
        ways = [(each, method(each)) for each in seen]
        least = 0 if level is levels[0] else min_count
        table, number = _table(counts, level, ways, least, number, contexts, should_stop)
        contexts = len(table.keys)
        yield table


def _table(
    counts: Counts,
    level: Level,
    ways: Sequence[tuple[Array, Smooth]],
    least: int,
    number: Array,
    contexts: int,
    should_stop: Callable[[], bool],
) -> tuple[Table, Array]:
    """Return the table of one order, and each node's row in it, -1 if dropped.

    Each of `ways` is a count of each k-gram, and what makes shares of it; k-grams that occur less
    often than `least` are dropped. `number` is the row of each node of the level above in its
    table, which has `contexts` rows.
    """
    size = sum(int(np.count_nonzero(some >= least)) for some in _stretches(level.counts))
    keys, rows = counts.zeros(size, np.int64), len(ways)
    share = counts.zeros(rows * size, np.float32).reshape(rows, size)
    left_over = counts.zeros(rows * contexts, np.float32).reshape(rows, contexts)
    left_over[:] = 1.0
    renumbered = counts.zeros(len(level.keys), np.int64)
    done = 0
    for start, stop in _whole_contexts(level, counts.vocab_size):
        check_stop(should_stop)
        parent, symbol = np.divmod(level.keys[start:stop], counts.vocab_size)
        stays = level.counts[start:stop] >= least
        first = np.flatnonzero(np.diff(parent, prepend=-1))
        after = done + int(np.count_nonzero(stays))
        # A k-gram is never more frequent than its context, so the parent of each kept one is kept.
        keys[done:after] = number[parent[stays]] * counts.vocab_size + symbol[stays]
        context = number[parent[first]]
        for row, (seen, method) in enumerate(ways):
            some = seen[start:stop]
            kept, rest = method(some, first, np.add.reduceat(some, first))
            rest = rest + np.add.reduceat(np.where(stays, 0.0, kept), first)
            share[row, done:after] = kept[stays]
            left_over[row, context[context >= 0]] = rest[context >= 0]
        renumbered[start:stop] = np.where(stays, done + np.cumsum(stays) - 1, -1)
        done = after
    if rows == 1:
        share, left_over = share[0], left_over[0]
    return Table(keys, share, left_over), renumbered


def _whole_contexts(level: Level, vocab_size: int) -> Iterator[tuple[int, int]]:
    """Split a level into stretches of whole contexts."""
    start = 0
    while start < len(level.keys):
        stop = min(start + STRIDE, len(level.keys))
        parent = int(level.keys[stop - 1]) // vocab_size
        stop = int(np.searchsorted(level.keys, (parent + 1) * vocab_size))
        yield start, stop
        start = stop


def _stretches(array: Array) -> Iterator[Array]:
    """Split an array that may be larger than memory."""
    return (array[first : first + STRIDE] for first in range(0, len(array), STRIDE))


def _left_neighbours(counts: Counts, should_stop: Callable[[], bool]) -> Iterator[Array]:
    """Yield, for each order but the highest, how many distinct characters precede each k-gram.

    That is the number of (k + 1)-grams that end with it. The k-gram at the start of the text gets
    one more, as the start counts as a neighbour. One that begins a record has none: it is counted
    each time.
    """
    levels, vocab_size = counts.levels, counts.vocab_size
    suffix = np.zeros(vocab_size, np.int64)  # of each node: the node without its first character
    beginning = counts.boundary  # the boundary is the last symbol, so its nodes are the last
    for depth, (shorter, level) in enumerate(pairwise(levels)):
        seen = counts.zeros(len(shorter.keys), np.int64)
        found = counts.zeros(len(level.keys), np.int64)
        for keys, nodes in zip(_stretches(level.keys), _stretches(found), strict=True):
            check_stop(should_stop)
            parent, symbol = np.divmod(keys, vocab_size)
            nodes[:] = shorter.find(suffix[parent] * vocab_size + symbol)
            np.add.at(seen, nodes, 1)
        if depth < len(counts.opening):
            seen[counts.opening[depth]] += 1
        if beginning is not None and depth:
            seen[beginning:] = shorter.counts[beginning:]
        yield seen
        if beginning is not None:
            beginning = int(np.searchsorted(level.keys, beginning * vocab_size))
        suffix = found
