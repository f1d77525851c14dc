"""Records on disk, in the order of their keys, split into parts.

Records are put into files by the first bits of their keys, and each file is sorted in memory. A file
that is too large for that is divided by the next bits, until it is not, or its keys are all equal:
then there is nothing to sort. So memory does not grow with the list, however often a record repeats.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from charlm.text.escapes import IdWriter
from charlm.text.records import Lengths, Records, taken

BUCKET_BYTES = 1 << 25  # of ids, keys and lengths in a file, at most, if few records repeat
MOST_BYTES = 1 << 26  # of a file that is sorted in memory, which takes about three times as much
SPLIT_BITS = 4  # of the keys, by which a larger file is divided
PIECE = 1 << 18  # ids in memory as Python's larger numbers, unless one record has more
FACTS = 1 << 14  # keys and lengths that are read at a time
BORDERS = np.dtype("<u8")  # a place in the file of ids

Keys = npt.NDArray[np.uint64]


class Group(NamedTuple):
    """Keys in order, each once, and how many records have each, (K,)."""

    keys: Keys
    counts: Lengths


class _Bucket:
    """Records whose keys begin with the same bits, on disk in the order in which they were added."""

    def __init__(self, path: Path, dtype: np.dtype[Any], bits: int) -> None:
        self.path, self.dtype, self.bits = path, dtype, bits
        self.records = self.bytes = 0
        self.low, self.high = 2**64, -1  # keys

    @property
    def alike(self) -> bool:
        """Whether all keys are equal."""
        return self.low >= self.high

    def add(self, records: Records, keys: Keys) -> None:
        """Add records."""
        ids = records.symbols.astype(self.dtype)
        facts = np.stack([keys, records.lengths.astype(np.uint64)], 1)
        for name, array in (("ids", ids), ("keys", facts)):
            with self._named(name).open("ab") as file:
                file.write(np.ascontiguousarray(array).data)
            self.bytes += array.nbytes
        self.records += len(keys)
        self.low = min(self.low, int(keys.min()))
        self.high = max(self.high, int(keys.max()))

    def keys(self) -> Keys:
        """Return the keys."""
        return np.fromfile(self._named("keys"), np.uint64)[::2]

    def read(self) -> tuple[Keys, Records]:
        """Return all keys and records, and remove the files."""
        facts = np.fromfile(self._named("keys"), np.uint64).reshape(-1, 2)
        ids = np.fromfile(self._named("ids"), self.dtype)
        self._remove()
        return facts[:, 0], Records(ids, facts[:, 1].astype(np.int64))

    def pieces(self) -> Iterator[tuple[Keys, Records]]:
        """Yield the keys and records, some at a time, and remove the files."""
        if not self.records:
            return
        with self._named("ids").open("rb") as ids, self._named("keys").open("rb") as facts:
            self._remove()  # they are gone when they are closed
            while len(some := np.fromfile(facts, np.uint64, 2 * FACTS).reshape(-1, 2)):
                keys, lengths = some[:, 0], some[:, 1].astype(np.int64)
                for one in _runs(lengths):
                    symbols = np.fromfile(ids, self.dtype, int(lengths[one].sum()))
                    yield keys[one], Records(symbols, lengths[one])

    def _remove(self) -> None:
        for name in ("ids", "keys"):
            self._named(name).unlink()

    def _named(self, name: str) -> Path:
        return self.path.with_name(f"{name}-{self.path.name}")


class Sorter:
    """Puts records into the order of their keys.

    Args:
        folder: Where the files are.
        dtype: Of an id.
        symbols, records: How many there will be, about.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], symbols: int, records: int) -> None:
        size = symbols * dtype.itemsize + records * 16
        bits = max(0, -(-size // BUCKET_BYTES) - 1).bit_length()
        self._buckets = _divided_files(folder / "all", dtype, 0, bits)

    def add(self, records: Records, keys: Keys) -> None:
        """Add records, whose symbols are ids."""
        _distribute(records, keys, self._buckets)

    def groups(self) -> Iterator[Group]:
        """Yield the keys in order, some at a time, with the number of records that have each."""
        for bucket in self._small():
            if bucket.alike:
                one = [(bucket.low, bucket.records)] if bucket.records else []
                keys, counts = np.array(one, np.uint64).reshape(-1, 2).T
                yield Group(keys, counts.astype(np.int64))
            else:
                yield Group(*np.unique(bucket.keys(), return_counts=True))

    def count(self, unique: bool) -> int:
        """Return the number of records, without repeats if `unique`."""
        return sum(len(keys) if unique else int(counts.sum()) for keys, counts in self.groups())

    def sorted(self, unique: bool) -> Iterator[Records]:
        """Yield the records in order, some at a time, and remove the files; `unique` drops repeats."""
        for bucket in self._small():
            if bucket.alike:
                for _, records in islice(bucket.pieces(), 1 if unique else None):
                    yield taken(records, np.zeros(1, np.int64)) if unique else records
                continue
            keys, records = bucket.read()
            order = np.argsort(keys, kind="stable")
            if unique:
                order = order[np.append(True, np.diff(keys[order]) != 0)]
            for one in _runs(records.lengths[order]):
                yield taken(records, order[one])

    def _small(self) -> Iterator[_Bucket]:
        """Yield the files in order, after the large ones have been divided."""
        waiting = self._buckets[::-1]
        self._buckets = []
        while waiting:
            bucket = waiting.pop()
            if bucket.bytes > MOST_BYTES and not bucket.alike:
                waiting += _divided_further(bucket)[::-1]
            else:
                self._buckets.append(bucket)
                yield bucket


def _divided_files(path: Path, dtype: np.dtype[Any], bits: int, more: int) -> list[_Bucket]:
    """Return a file for each value of the next `more` bits after the first `bits` of a key."""
    names = (path.with_name(f"{path.name}-{i}") for i in range(1 << more))
    return [_Bucket(name, dtype, bits + more) for name in names]


def _divided_further(bucket: _Bucket) -> list[_Bucket]:
    """Divide the records of a file by the next bits of their keys, and remove it."""
    more = min(SPLIT_BITS, 64 - bucket.bits)
    parts = _divided_files(bucket.path, bucket.dtype, bucket.bits, more)
    for keys, records in bucket.pieces():
        _distribute(records, keys, parts)
    return parts


def _distribute(records: Records, keys: Keys, buckets: list[_Bucket]) -> None:
    """Add records to buckets by the last of the bits that divide them."""
    if not len(keys):
        return
    last = np.uint64(len(buckets) - 1)
    shift = 64 - buckets[0].bits
    place = (keys >> np.uint64(shift)) & last if shift < 64 else np.zeros(len(keys), np.uint64)
    order = np.argsort(place, kind="stable")
    records, keys, place = taken(records, order), keys[order], place[order]
    ends = np.cumsum(records.lengths)
    for k in np.unique(place).tolist():
        first, stop = np.searchsorted(place, np.array([k, k + 1], np.uint64)).tolist()
        begin = int(ends[first - 1]) if first else 0
        some = Records(records.symbols[begin : int(ends[stop - 1])], records.lengths[first:stop])
        buckets[k].add(some, keys[first:stop])


def _runs(lengths: Lengths) -> Iterator[slice]:
    """Yield slices of records of at most `PIECE` symbols together, or of one record."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(ends):
        most = PIECE + (int(ends[first - 1]) if first else 0)
        stop = max(first + 1, int(np.searchsorted(ends, most, side="right")))
        yield slice(first, stop)
        first = stop


def cuts_between_repeats(
    sorter: Sorter, bounds: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Move the bounds of parts, counted in records, so that equal records are in one part.

    A bound moves to the end of equal records; to their start if nothing would follow.
    """
    total = max(last for _, last in bounds.values())
    moved = {0: 0, total: total}
    seen = 0
    for _, counts in sorter.groups():
        ends = seen + np.cumsum(counts)
        for cut in {edge for pair in bounds.values() for edge in pair} - moved.keys():
            if len(ends) and cut < ends[-1]:
                group = int(np.searchsorted(ends, cut, side="right"))
                before, after = int(ends[group] - counts[group]), int(ends[group])
                moved[cut] = before if cut == before or after == total else after
        seen += int(counts.sum())
    return {name: (moved[first], moved[last]) for name, (first, last) in bounds.items()}


class PartWriter:
    """Writes the ids of records, with a boundary before the first and after each, and its places."""

    def __init__(self, ids: IdWriter, borders: BinaryIO, boundary: int) -> None:
        self.ids, self.borders, self.boundary = ids, borders, boundary
        self.count = 0  # borders so far

    def begin(self) -> None:
        """Begin a part."""
        self._write(np.array([self.boundary]), np.array([self.ids.size]))

    def add(self, records: Records) -> None:
        """Add records."""
        ends = np.cumsum(records.lengths + 1) - 1  # of each record, where its boundary goes
        ids = np.full(len(records.symbols) + len(ends), self.boundary)
        inside = np.ones(len(ids), bool)
        inside[ends] = False
        ids[inside] = records.symbols
        self._write(ids, ends + self.ids.size)

    def _write(self, ids: npt.NDArray[Any], borders: npt.NDArray[Any]) -> None:
        self.ids.write(ids)
        self.borders.write(borders.astype(BORDERS).data)
        self.count += len(borders)


def write_parts(
    records: Iterator[Records], bounds: Mapping[str, tuple[int, int]], writer: PartWriter
) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """Write the parts, whose bounds are counted in records.

    Returns:
        The range of ids of each part, and the range of its borders.
    """
    splits, borders = {}, {}
    rest = Records(np.empty(0, np.int64), np.empty(0, np.int64))
    for name, (first, last) in bounds.items():
        start, border = writer.ids.size, writer.count
        left = last - first
        if left:
            writer.begin()
        while left:
            now, rest = _divided(rest, left) if len(rest.lengths) else _divided(next(records), left)
            writer.add(now)
            left -= len(now.lengths)
        splits[name], borders[name] = (start, writer.ids.size), (border, writer.count)
    return splits, borders


def _divided(records: Records, count: int) -> tuple[Records, Records]:
    """Return the first `count` records, or all, and the rest."""
    symbols, lengths = records
    at = int(lengths[:count].sum())
    return Records(symbols[:at], lengths[:count]), Records(symbols[at:], lengths[count:])
