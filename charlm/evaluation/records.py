"""Scoring records: each by itself, from its first character to its end.

The protocols cut each record as they cut a text, and none lets a model look into another record. So
under `windows` a record that fits into a window is predicted with all of it as context.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from charlm.evaluation.protocols import Cut, spread_windows, windows
from charlm.text.borders import Borders
from charlm.text.rows import Pieces, Rows, pieces_of, rows_of
from charlm.text.tokens import Ids

RECORDS = 4096  # read at a time
SYMBOLS = 1 << 20  # read at a time, about


class Stretch(NamedTuple):
    """Consecutive records in memory: their ids, and where each begins and ends, (R,)."""

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]


def stretches(ids: Ids, most: int | None = None, records: int = RECORDS) -> Iterator[Stretch]:
    """Yield `records` at a time; about `most` characters, of records spread over the text.

    Of a record that is longer than `most`, these are its first.
    """
    borders = Borders(ids)
    count = len(borders) - 1
    records = max(1, min(records, SYMBOLS * count // len(ids)))
    if most is not None and most < len(ids) - 1:
        chosen = np.arange(max(1, count * most // (len(ids) - 1)))
        chosen = chosen * count // len(chosen)
        for first in range(0, len(chosen), records):
            yield _apart(ids, borders, chosen[first : first + records], most)
        return
    for first in range(0, count, records):
        places = borders.read(first, min(records, count - first) + 1)
        text = ids.read(int(places[0]), int(places[-1] - places[0]) + 1).astype(np.int64)
        places = places - places[0]
        yield Stretch(text, places[:-1], places[1:])


def _apart(ids: Ids, borders: Borders, chosen: npt.NDArray[np.int64], most: int) -> Stretch:
    """Return records that are not neighbours, each with at most `most` characters to predict."""
    ends = [borders.read(int(k), 2) for k in chosen]
    texts = [ids.read(int(a), min(int(b - a), most) + 1).astype(np.int64) for a, b in ends]
    lengths = np.array([len(text) for text in texts])
    starts = np.cumsum(lengths) - lengths
    return Stretch(np.concatenate(texts), starts, starts + lengths - 1)


def rows_to_score(stretch: Stretch, cut: Cut, fill: int, most: int) -> Iterator[Rows]:
    """Yield the rows of some records, at most `most` places at a time."""
    pieces = pieces_of(stretch.starts, stretch.stops, cut.length, cut.stride)
    for begin in range(0, len(pieces.starts), RECORDS):  # one record may have more pieces than fit
        some = Pieces(*(column[begin : begin + RECORDS] for column in pieces))
        for rows in rows_of(stretch.ids, some, fill):
            at_once = max(1, most // rows.x.shape[1])
            for first in range(0, len(rows.x), at_once):
                part = slice(first, first + at_once)
                yield Rows(rows.x[part], rows.y[part], rows.at[part])


def places_in_windows(
    targets: npt.NDArray[np.int64], boundary: int, length: int
) -> npt.NDArray[np.int64]:
    """Return the place in its window of each prediction of whole records, from 0, (N,)."""
    begins = np.append(True, targets[:-1] == boundary)
    places = np.arange(len(targets))
    return (places - np.maximum.accumulate(np.where(begins, places, 0))) % length


def batches_to_score(
    ids: Ids, length: int, chars: int, most: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield about `chars` characters of a part, spread evenly: what is read and predicted, (R, T) each.

    They are in windows of `length`, at most `most` places at a time. A target that is negative is no
    prediction.
    """
    if ids.boundary is not None:
        for stretch in stretches(ids, chars):
            for rows in rows_to_score(stretch, windows(length), ids.boundary, most):
                yield rows.x, rows.y
        return
    for one in spread_windows(len(ids) - 1, length, chars, max(1, most // length)):
        text = np.stack([ids.read(int(at), length + 1) for at in one.starts]).astype(np.int64)
        yield text[:, :-1], text[:, 1:]
