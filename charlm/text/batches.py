"""The windows of a training batch: a pure function of (seed, step, sample).

Batch k does not depend on batch k-1. So there is no position to save, a resumed run draws the same
batches as an uninterrupted one, and processes or micro-batches can each compute their own slice.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.errors import DataError
from charlm.text.borders import Borders
from charlm.text.rows import GROUP_COST, Pieces, rows_of
from charlm.text.tokens import Ids

# Independent streams of random words of one seed: the second word of the Philox key.
DATA_STREAM, DROPOUT_STREAM, INIT_STREAM, SAMPLE_STREAM = 0, 1, 2, 3

HELD = 8 << 20  # bytes of ids to keep in memory, which is faster than many small reads

_WORDS_A_BLOCK = 4  # Philox4x64 makes four 64-bit words for each value of its counter


def random_words(seed: int, stream: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Return words `first` to `first + count` of a stream of random 64-bit words.

    Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") computes a
    word from its position. These are raw words because NumPy keeps only the bit stream the same
    between versions, not its distributions.
    """
    skipped = first % _WORDS_A_BLOCK
    generator = np.random.Philox(key=[seed, stream], counter=first // _WORDS_A_BLOCK)
    return generator.random_raw(skipped + count)[skipped:]


def window_starts(
    seed: int, step: int, batch_size: int, windows: int, first: int = 0, count: int | None = None
) -> npt.NDArray[np.int64]:
    """Return where the windows of a batch, or of a slice of it, start: (count,).

    Starts are uniform over [0, windows). Taking the remainder of 64 random bits favours small ones
    by less than windows / 2^64.

    Args:
        seed: Of the run.
        step: Optimizer updates done so far.
        batch_size: Windows in the whole batch.
        windows: Number of positions where a window can start.
        first: First window of the slice.
        count: Windows in the slice; None: the rest of the batch.
    """
    count = batch_size - first if count is None else count
    words = random_words(seed, DATA_STREAM, step * batch_size + first, count)
    return (words % np.uint64(windows)).astype(np.int64)


class Batches:
    """The training batches of one part of a corpus.

    Args:
        split: Where the windows are cut from.
        block_size: Characters in a window (T).
        batch_size: Windows in a batch.
        seed: Of the run.

    Raises:
        DataError: The part is too short for one window and the character after it.
    """

    def __init__(self, split: Ids, block_size: int, batch_size: int, seed: int) -> None:
        self.split, self.seed, self.escape = split, seed, split.escape
        self.block_size, self.batch_size = block_size, batch_size
        self.windows = len(split) - block_size  # the last target follows the last window
        if self.windows < 1:
            needed = f"a window of {block_size} needs a text of {block_size + 1}"
            what = f"{needed} and this one has {len(split)}"
            raise DataError("model.block_size", what, "lower it or use a longer text")
        small = len(split) * split.read(0, 1).itemsize <= HELD
        self.held = split.read(0, len(split)) if small else None

    def get(
        self, step: int, first: int = 0, count: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return inputs and targets of a batch, or of a slice of it: see `window_starts`.

        Each is (count, T); y[b, t] is the character that follows x[b, t].
        """
        ids = self.read(self.starts(step, first, count))
        return ids[:, :-1], ids[:, 1:]

    def read(self, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the ids of windows and of the character after each: (count, T + 1).

        After the end of the text, the last id is repeated.
        """
        length, size = self.block_size + 1, len(self.split)
        if self.held is not None:
            places = np.minimum(starts[:, None] + np.arange(length), size - 1)
            return np.asarray(self.held[places], np.int64)
        ids = np.empty((len(starts), length), np.int64)
        for row, start in zip(ids, starts.tolist(), strict=True):
            found = self.split.read(start, min(length, size - start))
            row[: len(found)], row[len(found) :] = found, found[-1]
        return ids

    def starts(self, step: int, first: int, count: int | None) -> npt.NDArray[np.int64]:
        """Return where the windows of a batch, or of a slice of it, start: see `window_starts`."""
        return window_starts(self.seed, step, self.batch_size, self.windows, first, count)

    def chars(self, step: int) -> int:
        """Return how many characters a batch predicts."""
        return self.batch_size * self.block_size

    def groups(
        self, step: int, first: int = 0, count: int | None = None, filled: bool = True
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Yield inputs and targets in arrays of rows that are about as long; without `filled`, just so."""
        yield self.get(step, first, count)


class ConsecutiveBatches(Batches):
    """Batches whose windows follow those of the step before, so that a state can be carried on.

    The text is cut into `batch_size` stretches, which are read side by side. At their end, they are
    read again, from starts that the seed moves by less than a window.

    Raises DataError as `Batches` does, also if a stretch is shorter than a window.
    """

    def __init__(self, split: Ids, block_size: int, batch_size: int, seed: int) -> None:
        super().__init__(split, block_size, batch_size, seed)
        self.stretch = (len(split) - 1) // batch_size
        self.steps = self.stretch // block_size  # through the text
        if not self.steps:
            each = f"each of {batch_size} stretches of this text has {self.stretch} characters"
            what = f"{each}, fewer than a window of {block_size}"
            raise DataError("train.carry_state", what, "lower train.batch_size or model.block_size")

    def begins(self, step: int) -> bool:
        """Tell whether the windows of a step begin the text again."""
        return step % self.steps == 0

    def starts(self, step: int, first: int, count: int | None) -> npt.NDArray[np.int64]:
        """Return where the windows of a batch, or of a slice of it, start: (count,)."""
        lap, turn = divmod(step, self.steps)
        room = self.stretch - self.steps * self.block_size
        word = random_words(self.seed, DATA_STREAM, lap, 1)[0]
        moved = int(word % np.uint64(room + 1)) + turn * self.block_size
        last = self.batch_size if count is None else first + count
        return np.arange(first, last) * self.stretch + moved


class RecordBatches(Batches):
    """The training batches of records: each window holds as many whole records as fit into it.

    A window begins where a record does, or a piece of one that is longer than a window. It is chosen
    by a place in the text, so that each character is in a batch equally often: one in a long record
    is more likely to be met first, and less likely to fit at the end of a window.
    """

    def __init__(self, split: Ids, block_size: int, batch_size: int, seed: int) -> None:
        super().__init__(split, min(block_size, len(split) - 1), batch_size, seed)
        self.block_size = block_size
        self.windows = len(split) - 1
        # `chars` asks for the whole batch again while its micro-batches are drawn.
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)
        self.borders = Borders(split, held=self.held is not None)

    def get(
        self, step: int, first: int = 0, count: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return inputs and targets in one array, (R, T), with one record in a row: see `groups`."""
        (found,) = rows_of(*self._windows(step, first, count), self.boundary, cost=sys.maxsize)
        return found.x, found.y

    def groups(
        self, step: int, first: int = 0, count: int | None = None, filled: bool = True
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Yield inputs and targets of a batch, or of a slice of it, one record in a row: (R, T) each.

        Where rows are `filled`, a target after the end of a record is `IGNORED`.
        """
        cost = GROUP_COST if filled else 0
        for rows in rows_of(*self._windows(step, first, count), self.boundary, cost):
            yield rows.x, rows.y

    def chars(self, step: int) -> int:
        """Return how many characters a batch predicts."""
        return int(self._windows(step, 0, None)[1].lengths.sum())

    @property
    def boundary(self) -> int:
        """The id between records."""
        assert self.split.boundary is not None
        return self.split.boundary

    def _windows(
        self, step: int, first: int, count: int | None
    ) -> tuple[npt.NDArray[np.int64], Pieces]:
        """Return the ids of windows, one after another, and the pieces in them."""
        return self._drawn(step, first, self.batch_size - first if count is None else count)

    def _draw(self, step: int, first: int, count: int) -> tuple[npt.NDArray[np.int64], Pieces]:
        places = window_starts(self.seed, step, self.batch_size, self.windows, first, count)
        length = self.block_size + 1
        before = self.borders.before(places)
        starts = before + (places - before) // self.block_size * self.block_size
        whole = self.read(starts)  # a part ends with a boundary, which fills the last windows
        inside = starts[:, None] + np.arange(length) < len(self.split)
        border = (whole == self.boundary) & inside
        border[:, 0] = False
        # The last whole record ends at the last boundary; a piece of a longer one, with the window.
        last = np.where(border.any(axis=1), length - 1 - border[:, ::-1].argmax(axis=1), length - 1)
        begins = border & (np.arange(length) < last[:, None])
        begins[:, 0] = True
        window, place = np.nonzero(begins)
        following = np.append(window[1:] == window[:-1], False)
        ends = np.where(following, np.append(place[1:], 0), last[window])
        return whole.ravel(), Pieces(
            window * length + place, ends - place, np.zeros(len(place), np.int64)
        )


def batches_of(
    split: Ids, block_size: int, batch_size: int, seed: int, carry_state: bool = False
) -> Batches:
    """Return the training batches of one part of a corpus: of a text, or of records.

    `carry_state`: the windows of a text follow those of the step before.
    """
    kind = ConsecutiveBatches if carry_state else Batches
    kind = kind if split.boundary is None else RecordBatches
    return kind(split, block_size, batch_size, seed)
