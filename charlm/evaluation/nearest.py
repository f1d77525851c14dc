"""How far a text is from the nearest record of a part: the edit distance of Levenshtein (1966).

It is the least number of characters to insert, remove or replace. The work is bounded: each text is
compared with all records if they are few, otherwise with some that are spread evenly over the part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from charlm.evaluation.known import Progress, as_texts, records_of
from charlm.text.borders import Borders
from charlm.text.tokenizer import Tokenizer
from charlm.text.tokens import Ids

# 64 characters of a text are compared with one of a record at once, in about two nanoseconds.
MOST_WORK = 4_000_000_000
MOST_CHARS = 1 << 24  # of records, which are held in memory
PAIRS = 1 << 20  # compared at a time: 4 bytes each
FIRST_BOUND = 3  # distances up to it are found fastest
_WORD = 64


@dataclass(frozen=True)
class Candidates:
    """Records that texts are compared with, each once, and of how many they were chosen."""

    texts: Sequence[str]
    compared: int
    of: int


@dataclass(frozen=True)
class Nearest:
    """The nearest candidate of each text: its distance and its place, (N,)."""

    distances: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


def choose_candidates(part: Ids, tokenizer: Tokenizer, texts: Sequence[str]) -> Candidates:
    """Return the records of a part to compare texts with, as many as the bound on work allows."""
    words = sum(1 + len(text) // _WORD for text in texts)
    most = min(MOST_CHARS, MOST_WORK // max(1, words))
    found = [text for some in records_of(part, tokenizer, most) for text in as_texts(some)]
    # Those of like lengths together: most of a block is then out of reach of a text at once.
    return Candidates(
        sorted(set(found), key=lambda text: (len(text), text)), len(found), len(Borders(part)) - 1
    )


def nearest(
    texts: Sequence[str],
    candidates: Candidates,
    progress: Progress = lambda step, done, total: None,
) -> Nearest:
    """Return the nearest candidate of each text, the first of equally near ones."""
    kinds, own = np.unique(np.array(texts, object), return_inverse=True)
    distances = np.full(len(kinds), np.iinfo(np.int64).max)
    places = np.zeros(len(kinds), np.int64)
    left, bound = np.arange(len(kinds)), FIRST_BOUND
    while len(left):
        for rows, first, found in _blocks(kinds[left].tolist(), candidates.texts, bound):
            at = left[rows]
            best = found.argmin(axis=1)
            least = found[np.arange(len(best)), best].astype(np.int64)
            nearer = least < distances[at]
            distances[at[nearer]], places[at[nearer]] = least[nearer], first + best[nearer]
            progress("comparing", 0, len(kinds))
        done = distances[left] <= bound
        progress("comparing", int(done.sum()), len(kinds))
        distances[left[~done]] = np.iinfo(np.int64).max  # what is beyond the bound is not known
        left, bound = left[~done], 4 * bound
    return Nearest(distances[own], places[own])


def _blocks(
    texts: Sequence[str], candidates: Sequence[str], bound: int
) -> Iterator[tuple[slice, int, npt.NDArray[np.int32]]]:
    """Yield distances, (N, M), with the rows of their texts and the place of their candidates.

    Distances beyond the bound are only known to be beyond it.
    """
    across = min(len(candidates), PAIRS)
    down = max(1, PAIRS // across)
    workers = torch.get_num_threads()
    for row in range(0, len(texts), down):
        for first in range(0, len(candidates), across):
            some, others = texts[row : row + down], candidates[first : first + across]
            scorer = Levenshtein.distance
            yield (
                slice(row, row + down),
                first,
                process.cdist(
                    some, others, scorer=scorer, score_cutoff=bound, dtype=np.int32, workers=workers
                ),
            )
