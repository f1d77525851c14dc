"""Baselines: the loss of models that need no training.

Counted models, from guessing to the best n-gram, and common compressors. Like a trained model, each
sees the training part first and is scored on the text after it:

    uniform                all symbols equally likely: ln V
    unigram, bigram        counted, one added to every count (Laplace's rule of succession)
    trigram, 5-gram        counted, modified Kneser-Ney
    best Kneser-Ney        of the best order for this text
    gzip, bzip2, xz        how much the held-out part enlarges the compressed training part; only if
                           it is long enough for whole bytes to be precise

The best order is chosen on the end of the training part, with counts that do not include it. Then
the whole training part is counted, and the held-out part is scored once.
"""

import bz2
import lzma
import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charlm.errors import check_stop
from charlm.evaluation.score import Score
from charlm.models.counts import Counts, count_ngrams
from charlm.models.smoothing import Table, smooth
from charlm.text.tokenizer import CharTokenizer, Tokenizer
from charlm.text.tokens import IdArray, Ids

_Array = npt.NDArray[Any]

MAX_ORDER = 10
FIXED_ORDERS = {3: "trigram", 5: "5-gram"}

# These limits bound time (seconds) and memory for a text of any size: 50 MiB for 12 MB of Python,
# 270 MiB for random bytes, where almost every n-gram is new. Only the end of the training part is
# counted or compressed, because it is closest to the held-out part.
MAX_COUNTED = 1 << 20  # characters of the training part, fewer for orders beyond `MAX_ORDER`
MAX_SCORED = 500_000  # characters of the held-out part
MAX_CHOOSING = 100_000  # characters that the order is chosen on
# xz is the slowest and looks back 8 MiB, gzip 32 KiB, bzip2 900 kB.
MAX_COMPRESSED = 2_000_000  # characters of the training part
MIN_COMPRESSED = 1_000  # characters of the held-out part: xz rounds to 4 bytes
PIECE = 1 << 18  # bytes compressed between two calls of `should_stop`


@dataclass(frozen=True)
class Rung:
    """One baseline: its score on the held-out part, and its wall time in seconds.

    Work shared by several baselines counts for the first of them.
    """

    name: str
    score: Score
    seconds: float


@dataclass(frozen=True)
class Ladder:
    """The baselines of one text, as listed at the top of this file."""

    rungs: tuple[Rung, ...]
    counted: int  # characters of the training part in which n-grams were counted
    scored: int  # characters of the held-out part except the first, which only compressors code
    compressed: int  # characters of the training part compressed; 0 below `MIN_COMPRESSED`
    order: int | None  # the best n-gram order; None if the training part is too short to choose

    def loss_nats(self, name: str) -> float:
        """Return the loss of the rung called `name`."""
        return next(rung.score.loss_nats for rung in self.rungs if rung.name == name)

    def place(self, loss_nats: float) -> tuple[Rung | None, Rung | None]:
        """Return the best baseline that a loss beats and the worst that it does not, or None.

        Losses are compared as printed.
        """
        descending = sorted(self.rungs, key=lambda rung: -as_printed(rung.score.loss_nats))
        worse = (as_printed(loss_nats) < as_printed(rung.score.loss_nats) for rung in self.rungs)
        passed, around = sum(worse), [None, *descending, None]
        return around[passed], around[passed + 1]


def as_printed(loss_nats: float) -> float:
    """Round a loss to the digits that tables show."""
    return round(loss_nats, 4)


def climb(
    train: Ids,
    held_out: Ids,
    tokenizer: Tokenizer,
    *,
    max_order: int = MAX_ORDER,
    should_stop: Callable[[], bool] = lambda: False,
) -> Ladder:
    """Score the held-out part of a text by every baseline, in one thread and without randomness.

    Args:
        train: The training part, at least 1 character.
        held_out: The text right after it, at least 2 characters.
        tokenizer: Of both.
        max_order: The longest n-gram to try.
        should_stop: Called often; `Stopped` is raised if it says so.
    """
    vocab_size = tokenizer.vocab_size
    counted = _last(train, MAX_COUNTED * MAX_ORDER // max(max_order, MAX_ORDER))
    scored = IdArray(held_out.read(0, min(len(held_out), MAX_SCORED + 1)))
    rungs, predictions = [], len(scored) - 1
    since = began = time.perf_counter()

    def add(name: str, loss_nats: float, chars: int = predictions, earlier: float = 0.0) -> None:
        nonlocal since
        spent, since = time.perf_counter() - since, time.perf_counter()
        rungs.append(Rung(name, Score(chars, loss_nats), spent + earlier))

    add("uniform", math.log(vocab_size))
    order = choose_order(counted, vocab_size, max_order, should_stop)
    choosing, since = time.perf_counter() - began, time.perf_counter()
    longest = max(*FIXED_ORDERS, order or 0)
    counts = count_ngrams(counted, vocab_size, longest, should_stop=should_stop)
    add("unigram", add_one(counts, scored, 1))
    add("bigram", add_one(counts, scored, 2))
    losses = {}
    for k, loss in kneser_ney(counts, scored, {*FIXED_ORDERS, order}, should_stop):
        losses[k] = loss
        if k in FIXED_ORDERS:
            add(FIXED_ORDERS[k], loss)
    if order:
        add(f"best Kneser-Ney, order {order}", losses[order], earlier=choosing)

    del counts  # xz needs memory of its own
    before = _last(train, MAX_COMPRESSED if len(scored) >= MIN_COMPRESSED else 0)
    if len(before):
        texts = utf8(before.ids, tokenizer), utf8(scored.ids, tokenizer)
        for name, new in COMPRESSORS.items():
            added = added_bytes(new, *texts, should_stop)
            add(name, 8 * added / len(scored) * math.log(2), len(scored))
    return Ladder(tuple(rungs), len(counted), predictions, len(before), order)


def choose_order(
    train: IdArray,
    vocab_size: int,
    max_order: int = MAX_ORDER,
    should_stop: Callable[[], bool] = lambda: False,
) -> int | None:
    """Return the order of the Kneser-Ney model that is best on the end of the training part.

    It is the first order that the next one does not improve on, up to `max_order`. Models counted on
    the rest score the last tenth of the text, at most 100,000 characters; None if a tenth is less
    than 2 characters.
    """
    size = min(len(train) // 10, MAX_CHOOSING)
    if size < 2:
        return None
    fit, tune = IdArray(train.ids[:-size]), IdArray(train.ids[-size:])
    counts = count_ngrams(fit, vocab_size, max_order, should_stop=should_stop)
    best, least = 0, math.inf
    for k, loss in kneser_ney(counts, tune, range(1, max_order + 1), should_stop):
        if loss >= least:
            break
        best, least = k, loss
    return best


def kneser_ney(
    counts: Counts,
    ids: IdArray,
    orders: Collection[int | None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, float]]:
    """Yield each of `orders` except None, with the mean loss of its Kneser-Ney model, in nats.

    The models are those of `NGramModel`, computed in one pass: the model of order k shares its
    lower levels with all longer ones; only its highest level uses the plain counts. All `ids` but
    the first are scored, by the protocol `stream`. The first positions, with less context than
    a model could use, are predicted by the models of lower orders.
    """
    first, targets = ids.ids[:1].astype(np.int64), ids.ids[1:].astype(np.int64)
    context = np.zeros_like(targets)  # the node of the context at each position: at first, the root
    lower = np.full(len(targets), 1 / counts.vocab_size)
    levels = smooth(counts, "kneser-ney", should_stop=should_stop)
    begun = np.empty(0)  # the predictions of positions where order k has all the context there is
    for k in range(1, 1 + max(order or 0 for order in orders)):
        check_stop(should_stop)
        level = next(levels)
        node = _find(level.keys, context, targets, counts.vocab_size)
        p = _interpolated(level, -1, context, node, lower)
        begun = np.append(begun, p[k - 2 : k - 1] if k > 1 else [])
        p[: len(begun)] = begun
        if k in orders:
            yield k, _mean_nats(p)
        lower = _interpolated(level, 0, context, node, lower)
        # The n-gram that ended one position earlier becomes the longer context.
        context = np.concatenate([first, node[:-1]])
        first = np.array([-1])  # no context of two or more characters ends at the first position


def add_one(counts: Counts, ids: IdArray, order: int) -> float:
    """Return the mean loss of order 1 or 2 with one added to every count, in nats."""
    text, table = ids.ids.astype(np.int64), _highest(counts, order, "add-k")
    context = text[:-1] if order == 2 else np.zeros_like(text[1:])
    node = _find(table.keys, context, text[1:], counts.vocab_size)
    uniform = np.full(len(node), 1 / counts.vocab_size)
    return _mean_nats(_interpolated(table, -1, context, node, uniform))


def _highest(counts: Counts, order: int, smoothing: str) -> Table:
    """Return the table of the highest level of the model of one order."""
    levels = smooth(replace(counts, levels=counts.levels[:order]), smoothing)
    (table,) = deque(levels, maxlen=1)  # one table in memory at a time
    return table


def _find(keys: _Array, context: _Array, targets: _Array, vocab_size: int) -> _Array:
    """Return the nodes of the targets after their contexts, -1 where there is none, (N,)."""
    wanted = np.where(context >= 0, context * vocab_size + targets, -1)
    place = np.searchsorted(keys, wanted)
    return np.where(np.append(keys, -2)[place] == wanted, place, -1)


def _interpolated(table: Table, row: int, context: _Array, node: _Array, lower: _Array) -> _Array:
    """Return p(target | context) at each position, (N,), by a row of shares: see `Table`."""
    left_over, share = np.atleast_2d(table.left_over)[row], np.atleast_2d(table.share)[row]
    # -1 picks the appended value: an unseen context leaves everything to the shorter one.
    left_over, share = np.append(left_over, 1.0), np.append(share, 0.0)
    return lower * left_over[context] + share[node]  # type: ignore[no-any-return]


def _mean_nats(p: _Array) -> float:
    return max(0.0, float(-np.log(p).mean()))  # with one symbol, p may round to above 1


class Compressor(Protocol):
    """The interface that `bz2`, `lzma` and `zlib` share; both methods return compressed bytes."""

    def compress(self, data: bytes, /) -> bytes: ...  # noqa: D102
    def flush(self) -> bytes: ...  # noqa: D102


COMPRESSORS: dict[str, Callable[[], Compressor]] = {  # with the settings of the commands:
    "gzip": lambda: zlib.compressobj(9),  # gzip -9
    "bzip2": bz2.BZ2Compressor,  # bzip2, which is bzip2 -9
    "xz": lzma.LZMACompressor,  # xz, which is xz -6
}


def added_bytes(
    new: Callable[[], Compressor],
    before: bytes,
    after: bytes,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Return how many bytes `after` adds to the compressed `before`, perhaps none."""

    def size(data: bytes) -> int:
        compressor, total = new(), 0
        for first in range(0, len(data), PIECE):
            check_stop(should_stop)
            total += len(compressor.compress(data[first : first + PIECE]))
        return total + len(compressor.flush())

    return max(0, size(before + after) - size(before))  # bzip2 may compress a longer text better


def utf8(ids: npt.NDArray[np.integer[Any]], tokenizer: Tokenizer) -> bytes:
    """Return the text of ids in UTF-8; in byte mode, the bytes themselves."""
    if not isinstance(tokenizer, CharTokenizer):
        return ids.astype(np.uint8).tobytes()
    # Half a surrogate pair, which only utf-7 allows in a text, takes 3 bytes.
    codes = np.frombuffer(tokenizer.alphabet.encode("utf-32-le", "surrogatepass"), "<u4")
    text: str = codes[ids].tobytes().decode("utf-32-le", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def _last(ids: Ids, count: int) -> IdArray:
    """Read the last `count` ids, or all."""
    count = min(count, len(ids))
    return IdArray(ids.read(len(ids) - count, count))
