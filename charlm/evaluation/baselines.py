"""Baselines: the loss of models that need no training.

Counted models, from guessing to the best n-gram, and common compressors. Like a trained model, each
sees the training part first and is scored on the text after it:

    uniform                all symbols equally likely: ln V
    unigram, bigram        counted, one added to every count (Laplace's rule of succession)
    trigram, 5-gram        counted, modified Kneser-Ney
    Kneser-Ney, order k    of the order that is best on the end of the training part
    gzip, bzip2, xz,       how much the held-out part enlarges the compressed training part; only if
    PPMd, bzip3            it is long enough for whole bytes to be precise

N-grams are scored by the protocol of the model that they are compared with: in its windows, or with
all context (`stream`). Compressors have no windows, and learn from the text that they compress: their
protocol is `adaptive`.

The order is chosen with counts that do not include the end of the training part. Then the whole
training part is counted, and the held-out part is scored once; on it, another order may be better.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from charlm.evaluation.compressors import added_bytes, compressors, utf8
from charlm.evaluation.ladder import Ladder, Rung
from charlm.evaluation.protocols import training_passes
from charlm.evaluation.records import stretches
from charlm.evaluation.score import Score
from charlm.evaluation.scoring import utf8_lengths
from charlm.evaluation.unknown import uniform_nats
from charlm.models.counted_loss import Targets, choose_order, losses_of_orders
from charlm.models.counts import Counts, count_ngrams
from charlm.text.escapes import NONE, count_escapes, escaped, utf8_size
from charlm.text.tokenizer import Tokenizer
from charlm.text.tokens import IdArray, Ids

MAX_ORDER = 10
FIXED_ORDERS = {3: "trigram", 5: "5-gram"}

# These limits bound time (seconds) and memory for a text of any size. If not all of the training part
# is counted or compressed, its end is, because it is closest to the held-out part.
CHOOSING = 1 << 20  # characters, fewer for orders beyond `MAX_ORDER`, that the order is chosen in
MAX_COUNTED = 1 << 24  # characters of the training part: 12 MB of Python take 4 s
MAX_NGRAMS = 1 << 24  # distinct ones of all orders, about 30 bytes each
MAX_SCORED = 500_000  # characters of the held-out part
# xz is the slowest (6 s for Chinese) and looks back 8 MiB, gzip 32 KiB, bzip2 900 kB, the others at all.
MAX_COMPRESSED = 2_000_000  # characters of the training part
MIN_COMPRESSED = 1_000  # characters of the held-out part: xz rounds to 4 bytes


def climb(
    train: Ids,
    held_out: Ids,
    tokenizer: Tokenizer,
    *,
    block_size: int | None = None,
    max_chars: int | None = None,
    max_counted: int = MAX_COUNTED,
    max_order: int = MAX_ORDER,
    should_stop: Callable[[], bool] = lambda: False,
) -> Ladder:
    """Score the held-out part of a text by every baseline, in one thread and without randomness.

    Args:
        train: The training part, at least 1 character.
        held_out: The text right after it, at least 2 characters.
        tokenizer: Of both.
        block_size: Score n-grams in windows of this length, as `score_windows` does; None: `stream`.
        max_chars: Score n-grams on about this many characters; None: as many as the limits allow.
        max_counted: Count n-grams in at most this many characters of the training part.
        max_order: The longest n-gram to try.
        should_stop: Called often; `Stopped` is raised if it says so.
    """
    vocab_size = tokenizer.vocab_size
    targets = _targets(held_out, block_size, min(max_chars or MAX_SCORED, MAX_SCORED))
    escapes = count_escapes(targets.ids, held_out.escape)
    size = int(utf8_lengths(tokenizer)[targets.ids].sum())
    size += escapes and round(_mean_size(held_out) * escapes)
    # Of each: what tells which characters the escapes are.
    cost = uniform_nats(vocab_size, escapes, len(targets.ids)) - math.log(vocab_size)

    def rung(name: str, loss_nats: float, seconds: float) -> Rung:
        return Rung(name, Score(len(targets.ids), loss_nats + cost, size), seconds)

    began = time.perf_counter()
    end = _last(train, CHOOSING * MAX_ORDER // max(max_order, MAX_ORDER))
    order = choose_order(end, vocab_size, max_order, should_stop=should_stop)
    since = time.perf_counter()
    choosing = since - began
    longest = max(*FIXED_ORDERS, order or 0)
    counts, counted = _count(train, end, vocab_size, longest, max_counted, should_stop)
    rungs = [rung("uniform", math.log(vocab_size), 0.0)]
    for name, loss_nats in _losses(counts, targets, order, should_stop):
        since, before = time.perf_counter(), since
        rungs.append(rung(name, loss_nats, since - before))
    if order:
        rungs[-1] = replace(rungs[-1], seconds=rungs[-1].seconds + choosing)

    del counts  # xz needs memory of its own
    scored = min(len(held_out), MAX_SCORED + 1)
    compressed = min(len(train), MAX_COMPRESSED if scored >= MIN_COMPRESSED else 0)
    if compressed:
        end_bytes = _utf8(train, len(train) - compressed, compressed, tokenizer)
        rungs += _compressed(end_bytes, _utf8(held_out, 0, scored, tokenizer), scored, should_stop)
    return Ladder(
        tuple(rungs),
        vocab_size,
        block_size,
        len(train),
        counted,
        len(targets.ids),
        compressed,
        order,
    )


def _losses(
    counts: Counts, targets: Targets, order: int | None, should_stop: Callable[[], bool]
) -> Iterator[tuple[str, float]]:
    """Yield the counted baselines and their losses in nats, the one of the chosen order last."""
    for k, loss in losses_of_orders(counts, targets, (1, 2), "add-k", should_stop=should_stop):
        yield {1: "unigram", 2: "bigram"}[k], loss
    orders = {*FIXED_ORDERS, order}
    for k, loss in losses_of_orders(counts, targets, orders, should_stop=should_stop):
        if k in FIXED_ORDERS:
            yield FIXED_ORDERS[k], loss
        if k == order:
            chosen = loss
    if order:
        yield f"Kneser-Ney, order {order}", chosen


def _utf8(text: Ids, first: int, count: int, tokenizer: Tokenizer) -> bytes:
    """Return `count` characters from position `first` of a text in UTF-8, rare ones too."""
    rare = np.concatenate([NONE, *escaped(text, first, count)])
    return utf8(text.read(first, count), tokenizer, rare)


def _mean_size(text: Ids) -> float:
    """Return the mean length in UTF-8 of the characters that the escapes of a text stand for."""
    codes = np.concatenate([*escaped(text)])
    return utf8_size(codes) / len(codes)


def _compressed(
    before: bytes, after: bytes, chars: int, should_stop: Callable[[], bool]
) -> Iterator[Rung]:
    """Yield the baselines that are compressors, for a text of `chars` after the text `before` it."""
    for name, new in compressors().items():
        since = time.perf_counter()
        added = added_bytes(new, before, after, should_stop)
        score = Score(chars, 8 * added / chars * math.log(2), len(after))
        yield Rung(name, score, time.perf_counter() - since, adaptive=True)


def _targets(text: Ids, block_size: int | None, most: int) -> Targets:
    """Return the characters to score n-grams on, cut by the protocol."""
    if text.boundary is not None:
        return _targets_in_records(text, block_size, most)
    if block_size is None:
        return Targets.stream(text.read(0, min(len(text), most + 1)))
    rows = [
        Targets.stream(text.read(int(start), one.length + 1))
        for one in training_passes(len(text) - 1, block_size, most, rows=1 << 10)
        for start in one.starts
    ]
    columns = ([getattr(row, name) for row in rows] for name in ("before", "ids", "context"))
    return Targets(*map(np.concatenate, columns))


def _targets_in_records(text: Ids, block_size: int | None, most: int) -> Targets:
    """Return the characters of records, each with the context that it has in its record or window."""
    parts, follow = [], []
    for one in stretches(text, most):
        parts.append(Targets.stream(one.ids, text.boundary))
        follow.append(np.ones(len(one.ids) - 1, bool))
        apart = (
            one.starts[1:] > one.stops[:-1]
        )  # nothing predicts the boundary before such a record
        follow[-1][one.starts[1:][apart] - 1] = False
    columns = ([getattr(part, name) for part in parts] for name in ("before", "ids", "context"))
    found, real = Targets(*map(np.concatenate, columns)), np.concatenate(follow)
    context = found.context[real]
    if block_size is not None:
        context = (context - 1) % block_size + 1
    return Targets(found.before[real], found.ids[real], context)


def _count(
    train: Ids,
    end: IdArray,
    vocab_size: int,
    order: int,
    max_counted: int,
    should_stop: Callable[[], bool],
) -> tuple[Counts, int]:
    """Count n-grams in as much of a training part as the limits allow, at least its `end`.

    Returns:
        Counts, and the number of characters in which they were counted.
    """
    counts = count_ngrams(end, vocab_size, order, should_stop=should_stop)
    ngrams = sum(len(level.keys) for level in counts.levels)
    # In a longer text, a character brings as many new n-grams at most.
    wanted = min(len(train), max_counted, len(end) * MAX_NGRAMS // ngrams)
    if wanted > len(end):
        del counts
        end = _last(train, wanted)
        counts = count_ngrams(end, vocab_size, order, should_stop=should_stop)
    return counts, len(end)


def _last(ids: Ids, count: int) -> IdArray:
    """Read the last `count` ids, or all."""
    count = min(count, len(ids))
    return IdArray(ids.read(len(ids) - count, count), ids.boundary, ids.escape)
