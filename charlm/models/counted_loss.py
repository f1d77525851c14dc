"""The loss of counted models of every order at once, from one tree of counts.

The baselines need several orders, and the choice of an order needs all of them. A model of order k
shares its lower levels with all longer ones; only its highest level may have other shares. So one
pass over the levels scores every order, and no model is built.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from charlm.errors import check_stop
from charlm.models.counts import Array, Counts, count_ngrams
from charlm.models.smoothing import Table, smooth
from charlm.text.tokens import IdArray, Split

MAX_CHOOSING = 100_000  # characters that the order is chosen on
DIGITS = 6  # of a loss in nats; shares have the seven of float32


@dataclass(frozen=True)
class Targets:
    """Characters to score, in the order of the text or of its windows, (N,) int64 each."""

    before: Array  # the character before each
    ids: Array
    context: Array  # how many characters of context each has, at least 1

    @classmethod
    def stream(cls, ids: Array, boundary: int | None = None) -> "Targets":
        """Return all characters but the first, each with all those before it as context.

        In records, that is those from the `boundary` on.
        """
        text = ids.astype(np.int64)
        places = np.arange(len(text))
        begins = places == 0 if boundary is None else (places == 0) | (text == boundary)
        since = places - np.maximum.accumulate(np.where(begins, places, 0))
        return cls(text[:-1], text[1:], since[:-1] + 1)


def choosing_chars(chars: int) -> int:
    """Return how many characters at the end of a text of `chars` an order is chosen on."""
    return min(chars // 10, MAX_CHOOSING)


def choose_order(
    train: IdArray | Split,
    vocab_size: int,
    max_order: int,
    smoothing: str = "kneser-ney",
    *,
    k: float = 1.0,
    min_count: int = 1,
    scratch: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> int | None:
    """Return the order that is best on the end of a training part.

    Models of all orders up to `max_order`, counted on the rest, score the last tenth of the text, at
    most 100,000 characters. None if a tenth is less than 2 characters. Of losses that are equal but
    for rounding, the lowest order wins. Other arguments are those of `smooth` and `count_ngrams`,
    with their errors.
    """
    size = choosing_chars(len(train))
    if size < 2:
        return None
    cut = len(train) - size
    counts = count_ngrams(
        train.part(0, cut), vocab_size, max_order, scratch=scratch, should_stop=should_stop
    )
    targets = Targets.stream(train.read(cut, size), train.boundary)
    losses = losses_of_orders(
        counts,
        targets,
        range(1, max_order + 1),
        smoothing,
        k=k,
        min_count=min_count,
        should_stop=should_stop,
    )
    return min((round(loss, DIGITS), order) for order, loss in losses)[1]


def losses_of_orders(
    counts: Counts,
    targets: Targets,
    orders: Collection[int | None],
    smoothing: str = "kneser-ney",
    *,
    k: float = 1.0,
    min_count: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, float]]:
    """Yield each of `orders` except None, with the mean loss of its model, in nats.

    The models are those of `NGramModel`. A character whose context has just begun, with fewer
    characters than the order looks at, is predicted by the model of the order that they suffice for.
    Other arguments are those of `smooth`.
    """
    context = np.zeros_like(targets.ids)  # the node of each one's context: at first, the root
    lower = np.full(len(context), 1 / counts.vocab_size)
    begun = np.ones(len(context))  # p where the context is too short for the order
    levels = smooth(counts, smoothing, k=k, min_count=min_count, should_stop=should_stop)
    for order in range(1, 1 + max(order or 0 for order in orders)):
        check_stop(should_stop)
        level = next(levels)
        node = _find(level.keys, context, targets.ids, counts.vocab_size)
        p = _interpolated(level, -1, context, node, lower)
        suffices = targets.context == order - 1
        begun[suffices] = p[suffices]
        if order in orders:
            yield order, _mean_nats(np.where(targets.context < order - 1, begun, p))
        if smoothing != "add-k":  # which leaves the rest to all characters equally
            lower = _interpolated(level, 0, context, node, lower)
        # The n-gram that ended one position earlier becomes the longer context.
        context = targets.before if order == 1 else np.append(-1, node[:-1])
        context = np.where(targets.context >= order, context, -1)


def _find(keys: Array, context: Array, targets: Array, vocab_size: int) -> Array:
    """Return the nodes of the targets after their contexts, -1 where there is none, (N,)."""
    wanted = np.where(context >= 0, context * vocab_size + targets, -1)
    place = np.searchsorted(keys, wanted)
    return np.where(_at(keys, np.where(place < len(keys), place, -1), -2) == wanted, place, -1)


def _interpolated(table: Table, row: int, context: Array, node: Array, lower: Array) -> Array:
    """Return p(target | context) at each position, (N,), by a row of shares: see `Table`."""
    left_over, share = np.atleast_2d(table.left_over)[row], np.atleast_2d(table.share)[row]
    # An unseen context leaves everything to the shorter one.
    return lower * _at(left_over, context, 1.0) + _at(share, node, 0.0)


def _at(values: Array, places: Array, otherwise: int | float) -> Array:
    """Return the values at these places, (N,), and `otherwise` at -1; without a copy of `values`."""
    found = np.full(len(places), otherwise, np.result_type(values, type(otherwise)))
    there = places >= 0
    found[there] = values[places[there]]
    return found


def _mean_nats(p: Array) -> float:
    return max(0.0, float(-np.log(p).mean()))  # with one symbol, p may round to above 1
