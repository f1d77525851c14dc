"""What counting alone reaches on a text: the bar that a trained model must clear."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.evaluation.score import Score
from charlm.text.tokens import Ids

_Array = npt.NDArray[Any]

CHUNK = 1 << 20
MAX_CHARS = 50_000_000  # counted or scored at most: more no longer moves these figures
MAX_VOCAB = 4096  # of the bigram's V x V table: 128 MiB of counts


def counted_bigram(train: Ids, held_out: Ids, vocab_size: int) -> Score | None:
    """Score held-out text by how often each pair of characters occurs in the training text.

    One is added to every count, so no pair is impossible (Laplace's rule of succession). This is
    the closed form of what gradient descent on the bigram table approaches.

    Returns:
        None if the V x V table would be too large to be worth its memory.
    """
    if vocab_size > MAX_VOCAB:
        return None
    counts = np.ones(vocab_size * vocab_size)
    for ids in _chunks(train):
        pairs = ids[:-1].astype(np.int64) * vocab_size + ids[1:]
        counts += np.bincount(pairs, minlength=len(counts))
    table = counts.reshape(vocab_size, vocab_size)
    log_p = np.log(table) - np.log(table.sum(axis=1, keepdims=True))
    return _score(held_out, lambda ids: log_p[ids[:-1], ids[1:]])


def _chunks(ids: Ids) -> Iterator[_Array]:
    """Yield pieces that overlap by one character, so that every pair is met once."""
    end = min(len(ids), MAX_CHARS)
    for first in range(0, end - 1, CHUNK):
        yield ids.read(first, min(CHUNK, end - 1 - first) + 1)


def _score(held_out: Ids, log_p: Callable[[_Array], _Array]) -> Score:
    values = [(float(log_p(ids).sum()), len(ids) - 1) for ids in _chunks(held_out)]
    chars = sum(count for _, count in values)
    return Score(chars, -sum(total for total, _ in values) / chars)
