"""What a list is like: how long its records are, how many are repeats, and whether they are in order.

A list that is in order must not be split by position: the part at its end holds other records than
the part at its beginning. And a list that is read as one text loses the borders of its records. So
lines are looked at even if nobody said that they are records.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.config import DataConfig
from charlm.errors import DataError
from charlm.text.records import Cutter, Lengths, Records, Symbols, keys_of

LOOKED_AT = 1 << 21  # symbols at the start of a text that is about to be trained on
STRETCH = 20  # records in order, each after another one, that are no accident: 1 of 20! times
COMPARED = 64  # symbols of two records
MOST_KEYS = 1 << 20  # hashes of records in memory
LONGEST_LINE = 1 << 16  # symbols; a text with a longer one is no list
WIDEST = 1 << 10  # symbols; the widths of lines are counted up to here

LEAST_LINES = 200  # of a list
MOST_BLANK = 0.02  # share of empty lines in a list
MOST_BREAKS = 1.0  # spaces in a line of a list: names, words, molecules and paths have few
MEAN_LENGTH = 100  # symbols in a line of a list, at most
IN_ORDER = 0.1  # share of records in stretches that is worth a note
FIXED, NARROWEST = 0.6, 50  # share of lines of one width; a list may hold dates or numbers
WORDY = 4.0  # spaces in a line of prose, at least
LEAST_PROSE = 20  # lines
WRAPPED, MARGIN = 0.6, 12  # share of lines that end within so many symbols of the widest

_BREAKS = np.array([ord(c) for c in " \t，。、；：？！"], np.uint32)  # between words


@dataclass
class Order:
    """How many records stand in stretches that are in order."""

    records: int = 0  # in stretches
    longest: int = 0  # records in one
    _length: int = 1  # of the stretch that has not ended
    _steps: int = 0  # of it: how often a record differs from the one before

    def add(self, kept: npt.NDArray[np.bool_], steps: npt.NDArray[np.bool_]) -> None:
        """Tell of the next pairs of neighbours whether they keep the order, and whether they differ."""
        ends = np.flatnonzero(~kept)
        if not len(ends):
            self._length += len(kept)
            self._steps += int(steps.sum())
            return
        edges = np.concatenate([[-1], ends])
        total = np.concatenate([[0], np.cumsum(steps)])
        lengths = np.diff(edges)
        strict = total[ends] - total[edges[:-1] + 1]
        lengths[0] += self._length - 1
        strict[0] += self._steps
        self._end(lengths, strict)
        self._length = len(kept) - int(ends[-1])
        self._steps = int(total[-1] - total[ends[-1] + 1])

    def close(self) -> None:
        """End the last stretch."""
        self._end(np.array([self._length]), np.array([self._steps]))
        self._length, self._steps = 1, 0

    def _end(self, lengths: Lengths, steps: Lengths) -> None:
        found = lengths[steps >= STRETCH - 1]
        self.records += int(found.sum())
        self.longest = max(self.longest, int(found.max(initial=0)))


@dataclass
class Survey:
    """Looks at the records of a text, or at the lines of one that is not said to be a list.

    Args:
        data: How the text is read.
        most: Symbols to look at; None: all.
    """

    data: DataConfig
    most: int | None = None
    records: int = 0
    symbols: int = 0  # in records
    longest: int = 0
    empty: int = 0  # lines
    breaks: int = 0  # between words
    widths: Lengths = field(default_factory=lambda: np.zeros(WIDEST + 1, np.int64))
    ascending: Order = field(default_factory=Order)
    descending: Order = field(default_factory=Order)
    is_text: bool = False  # whether some line is far too long for a list
    is_table: bool = False  # whether these are rows, not values of a column
    _keys: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    _below: int = 1 << 64  # hashes that are kept
    _last: Records | None = None  # the record before

    def __post_init__(self) -> None:
        self._lines = Cutter("lines", self.data.source)

    @property
    def ended(self) -> bool:
        """Whether it has seen enough."""
        return self.is_text or (self.most is not None and self.symbols >= self.most)

    def push(self, piece: Symbols) -> None:
        """Look at the next code points of a text, cut into lines."""
        if self.ended:
            return
        try:
            self.add(self._lines.push(piece))
        except DataError:  # it holds the boundary, and is no list
            self.is_text = True
        self.empty = self._lines.tally.empty
        self.is_text |= self._lines.waiting > LONGEST_LINE

    def add(self, records: Records) -> None:
        """Look at the next records."""
        symbols, lengths = records
        if self.ended or not len(lengths):
            return
        self.records += len(lengths)
        self.symbols += len(symbols)
        self.longest = max(self.longest, int(lengths.max()))
        self.breaks += int(np.isin(symbols, _BREAKS).sum())
        self.widths += np.bincount(lengths.clip(max=WIDEST), minlength=WIDEST + 1)
        self._keep(keys_of(records, 0))
        before = self._last or Records(symbols[:0], lengths[:0])
        joined = Records(*(np.concatenate(pair) for pair in zip(before, records, strict=True)))
        order = _order(joined)
        self.ascending.add(order >= 0, order > 0)
        self.descending.add(order <= 0, order < 0)
        self._last = Records(symbols[len(symbols) - lengths[-1] :], lengths[-1:])

    def close(self) -> "Survey":
        """End the last stretches; return this."""
        self.ascending.close()
        self.descending.close()
        return self

    @property
    def repeats(self) -> float:
        """The share of records that repeat another; of a sample of their hashes, if there are many."""
        keys = np.concatenate([np.empty(0, np.uint64), *self._keys])
        return 1 - len(np.unique(keys)) / max(1, len(keys))

    @property
    def may_repeat(self) -> bool:
        """Whether some records repeat another, or some have not been compared."""
        return self.repeats > 0 or self._below < 1 << 64

    @property
    def in_order(self) -> float:
        """The share of records that stand in stretches in alphabetical order, or in its reverse."""
        return max(self.ascending.records, self.descending.records) / max(1, self.records)

    @property
    def width(self) -> int | None:
        """The width of most lines; None if they differ."""
        widest = int(self.widths.argmax())
        most = self.widths[widest] >= FIXED * max(LEAST_LINES // 10, self.records)
        return widest if most and NARROWEST <= widest < WIDEST else None

    @property
    def is_list(self) -> bool:
        """Whether the lines look like records: short, none empty, and hardly more than a word each."""
        lines = self.records + self.empty
        return (
            not self.is_text
            and self.records >= LEAST_LINES
            and self.empty <= MOST_BLANK * lines
            and self.breaks <= MOST_BREAKS * lines
            and self.symbols <= MEAN_LENGTH * lines
        )

    @property
    def is_prose(self) -> bool:
        """Whether lines that are read as records look like running text.

        They have many words, and a program has broken them, or they stand in paragraphs.
        """
        if self.records < LEAST_PROSE or self.breaks < WORDY * self.records:
            return False
        blank = self.empty / (self.records + self.empty)
        in_paragraphs = (
            MOST_BLANK < blank < 0.4
        )  # half: a list with an empty line after each record
        return in_paragraphs or self._wrapped

    @property
    def _wrapped(self) -> bool:
        """Whether most lines are nearly as wide as the widest."""
        inside = np.cumsum(self.widths) / max(1, self.records)
        widest = int(np.searchsorted(inside, 0.98))  # a few may have a long word
        near = 1 - inside[max(0, widest - MARGIN - 1)]
        return NARROWEST <= widest < WIDEST and bool(near >= WRAPPED)

    def notes(self, important: bool = False) -> list[str]:
        """Return remarks for the user; only those without which a run may be in vain, if `important`."""
        data, found = self.data, []
        if data.records != "none":
            if data.records == "lines" and data.column is None and self.is_prose:
                end = "data.records=none reads all as one text, paragraphs reads each paragraph as one"
                found.append(f"these lines look like running text, not like a list; {end}")
            if self.in_order >= IN_ORDER and not (important and data.shuffle):
                if data.shuffle:
                    end = "keep data.shuffle=true, which mixes them before the end becomes the validation part"
                else:
                    end = "data.shuffle=false makes the end of that order the validation part; use true"
                found.append(f"{self._ordered()}; {end}")
            return found
        if self.is_table:
            return found
        if self.width:
            if not important and data.newlines != "none":
                lines = f"most lines have exactly {self.width} characters"
                found.append(f"{lines}; if one text was cut into them, data.newlines=none joins it")
        elif self.is_list:
            ordered = f", and {self._ordered('lines')}" if self.in_order >= IN_ORDER else ""
            end = (
                "data.records=lines makes each line a text of its own, with a beginning and an end"
            )
            found.append(f"this looks like a list, an entry in each line{ordered}; {end}")
        return found

    def _ordered(self, name: str = "records") -> str:
        share, longest = self.in_order, max(self.ascending.longest, self.descending.longest)
        if longest == self.records:
            return f"the {name} are in alphabetical order"
        return (
            f"{100 * share:.0f} % of the {name} are in alphabetical order, in one stretch or more"
        )

    def _keep(self, keys: npt.NDArray[np.uint64]) -> None:
        self._keys.append(keys if self._below == 1 << 64 else keys[keys < np.uint64(self._below)])
        while sum(map(len, self._keys)) > MOST_KEYS:
            self._below >>= 1
            kept = np.concatenate(self._keys)
            self._keys = [kept[kept < np.uint64(self._below)]]


def _order(records: Records) -> npt.NDArray[Any]:
    """Compare neighbours, (R - 1,): 1 if the second comes later, 0 if equal, -1 if it comes before.

    Capital letters of ASCII are small ones. Those that differ only after `COMPARED` symbols are equal.
    """
    symbols, lengths = records
    folded = symbols.astype(np.int64) + 32 * ((symbols >= ord("A")) & (symbols <= ord("Z")))
    starts = np.cumsum(lengths) - lengths
    order = np.zeros(max(0, len(lengths) - 1), np.int64)
    same = np.arange(len(order))  # pairs that are equal so far
    for place in range(COMPARED):
        codes = [
            np.where(
                place < lengths[same + side],
                folded[(starts[same + side] + place).clip(max=len(folded) - 1)],
                -1,
            )
            for side in (0, 1)
        ]
        order[same] = np.sign(codes[1] - codes[0])
        same = same[(codes[0] == codes[1]) & (codes[0] >= 0)]
        if not len(same):
            break
    return order
