"""The loss of Kneser-Ney models of every order at once, from one tree of counts.

The baselines need several orders, and the choice of an order needs all of them. A model of order k
shares its lower levels with all longer ones; only its highest level uses the plain counts. So one
pass over the levels scores every order, and no model is built.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from charlm.errors import check_stop
from charlm.models.counts import Array, Counts, count_ngrams
from charlm.models.smoothing import Table, smooth
from charlm.text.tokens import IdArray

MAX_CHOOSING = 100_000  # characters that the order is chosen on


@dataclass(frozen=True)
class Targets:
    """Characters to score, in the order of the text or of its windows, (N,) int64 each."""

    before: Array  # the character before each
    ids: Array
    context: Array  # how many characters of context each has, at least 1

    @classmethod
    def stream(cls, ids: IdArray) -> "Targets":
        """Return all characters but the first, each with all those before it as context."""
        text = ids.ids.astype(np.int64)
        return cls(text[:-1], text[1:], np.arange(1, len(text)))


def choose_order(
    train: IdArray,
    vocab_size: int,
    max_order: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> int | None:
    """Return the order of the Kneser-Ney model that is best on the end of a training part.

    Models of all orders up to `max_order`, counted on the rest, score the last tenth of the text, at
    most 100,000 characters. None if a tenth is less than 2 characters. Of equal losses, the lowest
    order wins.
    """
    size = min(len(train) // 10, MAX_CHOOSING)
    if size < 2:
        return None
    fit, tune = IdArray(train.ids[:-size]), IdArray(train.ids[-size:])
    counts = count_ngrams(fit, vocab_size, max_order, should_stop=should_stop)
    orders = range(1, max_order + 1)
    losses = dict(kneser_ney(counts, Targets.stream(tune), orders, should_stop))
    return min(losses, key=lambda k: losses[k])


def kneser_ney(
    counts: Counts,
    targets: Targets,
    orders: Collection[int | None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, float]]:
    """Yield each of `orders` except None, with the mean loss of its Kneser-Ney model, in nats.

    The models are those of `NGramModel`. A character whose context has just begun, with fewer
    characters than the order looks at, is predicted by the model of the order that they suffice for.
    """
    context = np.zeros_like(targets.ids)  # the node of each one's context: at first, the root
    lower = np.full(len(context), 1 / counts.vocab_size)
    begun = np.ones(len(context))  # p where the context is too short for the order
    levels = smooth(counts, "kneser-ney", should_stop=should_stop)
    for k in range(1, 1 + max(order or 0 for order in orders)):
        check_stop(should_stop)
        level = next(levels)
        node = _find(level.keys, context, targets.ids, counts.vocab_size)
        p = _interpolated(level, -1, context, node, lower)
        suffices = targets.context == k - 1
        begun[suffices] = p[suffices]
        if k in orders:
            yield k, _mean_nats(np.where(targets.context < k - 1, begun, p))
        lower = _interpolated(level, 0, context, node, lower)
        # The n-gram that ended one position earlier becomes the longer context.
        context = targets.before if k == 1 else np.append(-1, node[:-1])
        context = np.where(targets.context >= k, context, -1)


def add_one(counts: Counts, targets: Targets, order: int) -> float:
    """Return the mean loss of order 1 or 2 with one added to every count, in nats."""
    levels = smooth(replace(counts, levels=counts.levels[:order]), "add-k")
    (table,) = deque(levels, maxlen=1)
    context = targets.before if order == 2 else np.zeros_like(targets.ids)
    node = _find(table.keys, context, targets.ids, counts.vocab_size)
    uniform = np.full(len(node), 1 / counts.vocab_size)
    return _mean_nats(_interpolated(table, -1, context, node, uniform))


def _find(keys: Array, context: Array, targets: Array, vocab_size: int) -> Array:
    """Return the nodes of the targets after their contexts, -1 where there is none, (N,)."""
    wanted = np.where(context >= 0, context * vocab_size + targets, -1)
    place = np.searchsorted(keys, wanted)
    return np.where(np.append(keys, -2)[place] == wanted, place, -1)


def _interpolated(table: Table, row: int, context: Array, node: Array, lower: Array) -> Array:
    """Return p(target | context) at each position, (N,), by a row of shares: see `Table`."""
    left_over, share = np.atleast_2d(table.left_over)[row], np.atleast_2d(table.share)[row]
    # -1 picks the appended value: an unseen context leaves everything to the shorter one.
    left_over, share = np.append(left_over, 1.0), np.append(share, 0.0)
    return lower * left_over[context] + share[node]  # type: ignore[no-any-return]


def _mean_nats(p: Array) -> float:
    return max(0.0, float(-np.log(p).mean()))  # with one symbol, p may round to above 1
