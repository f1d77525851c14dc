"""Records as the rows of a batch: one record, or a piece of a long one, in each row.

A row begins with the boundary before its record, so no row sees another record, whatever the model.
Rows of one array are as long as the longest; models look only back, so what fills a shorter row
after its end changes nothing. Filling costs time, so rows of like lengths go together.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

IGNORED = -100  # the target of a place that is not predicted: `F.cross_entropy` leaves it out
# An array more takes about as long as this many places more (docs/experiments.md).
GROUP_COST = 2048

Numbers = npt.NDArray[np.int64]


class Pieces(NamedTuple):
    """Pieces of a text that are read apart from each other, (R,) each."""

    starts: Numbers  # where its first symbol is, which is read, not predicted
    lengths: Numbers  # how many symbols follow, each predicted
    skips: Numbers  # how many of those are only context: another piece predicts them


class Rows(NamedTuple):
    """Rows of one array, (R, T)."""

    x: Numbers  # what is read
    y: Numbers  # what is predicted; IGNORED after the end of a row
    at: Numbers  # where in the text each row begins, (R,)


def pieces_of(starts: Numbers, stops: Numbers, length: int, stride: int) -> Pieces:
    """Cut records into pieces of at most `length` predictions, moved by `stride`; most are one piece.

    starts, stops (R,): the places of the boundaries before and after each record.
    """
    chars = stops - starts
    many = 1 + np.maximum(0, -(-(chars - length) // stride))
    first = np.cumsum(many) - many
    place = np.arange(int(many.sum())) - np.repeat(first, many)  # of the piece in its record
    begins = np.repeat(starts, many) + place * stride
    lengths = np.minimum(length, np.repeat(stops, many) - begins)
    return Pieces(begins, lengths, np.where(place > 0, length - stride, 0))


def groups(lengths: Numbers, cost: int = GROUP_COST) -> Iterator[Numbers]:
    """Split rows into groups of like lengths, the longest first; yield the rows of each.

    A group more is worth `cost` places that need not be filled; 0: all rows of a group are equally
    long.
    """
    waiting = [np.argsort(-lengths, kind="stable")]
    while waiting:
        order = waiting.pop()
        # Places that are saved if the rows from each on are in a group that is no longer than it.
        saved = (lengths[order[0]] - lengths[order]) * (len(order) - np.arange(len(order)))
        cut = int(saved.argmax())
        if saved[cut] > cost:
            waiting += [order[cut:], order[:cut]]
        else:
            yield order


def rows_of(
    ids: npt.NDArray[np.integer[Any]], pieces: Pieces, fill: int, cost: int = GROUP_COST
) -> Iterator[Rows]:
    """Yield pieces of `ids` as rows; `fill` is read after the end of a row. For `cost` see `groups`."""
    for group in groups(pieces.lengths, cost):
        lengths = pieces.lengths[group, None]
        at = np.arange(int(lengths.max()) + 1)
        text = ids[np.minimum(pieces.starts[group, None] + at, len(ids) - 1)].astype(np.int64)
        inside = at[1:] <= lengths
        predicted = inside & (at[1:] > pieces.skips[group, None])
        x = np.where(at[:-1] < lengths, text[:, :-1], fill)
        yield Rows(x, np.where(predicted, text[:, 1:], IGNORED), pieces.starts[group])
