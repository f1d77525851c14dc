"""Records on disk, in the order of their keys, split into parts.

Records are sorted in files that each fit into memory, so memory does not grow with the list. Equal
records are in one file: if one record makes up much of a list, its repeats must fit into memory.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from charlm.text.escapes import IdWriter
from charlm.text.records import Lengths, Records, taken

BUCKET_BYTES = 1 << 23  # of ids that are sorted at once, which takes 30 times as much memory
BORDERS = np.dtype("<u8")  # a place in the file of ids


def is_new(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Tell for each of sorted keys whether it differs from the one before."""
    return np.append(True, keys[1:] != keys[:-1]) if len(keys) else np.empty(0, bool)


class Sorter:
    """Puts records into the order of their keys, in files that each fit into memory.

    Args:
        folder: Where the files are.
        dtype: Of an id.
        total: Ids of all records, about.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], total: int) -> None:
        self.folder, self.dtype = folder, dtype
        wanted = -(-total * dtype.itemsize // BUCKET_BYTES)
        self.bits = max(0, wanted - 1).bit_length()

    def add(self, records: Records, keys: npt.NDArray[np.uint64]) -> None:
        """Add records, whose symbols are ids."""
        bucket = (keys >> np.uint64(64 - self.bits)) if self.bits else np.zeros(len(keys), np.int64)
        order = np.argsort(bucket, kind="stable")
        records, keys = taken(records, order), keys[order]
        ends = np.cumsum(records.lengths)
        for k in np.unique(bucket).tolist():
            first, stop = np.searchsorted(bucket[order], [k, k + 1])
            begin = int(ends[first - 1]) if first else 0
            ids = records.symbols[begin : int(ends[stop - 1])].astype(self.dtype)
            facts = np.stack([keys[first:stop], records.lengths[first:stop].astype(np.uint64)], 1)
            for name, array in (("ids", ids), ("keys", facts)):
                with self._path(k, name).open("ab") as file:
                    file.write(np.ascontiguousarray(array).data)

    def sorted_keys(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield the keys of each file in order."""
        for k in range(1 << self.bits):
            keys, _ = self._facts(k)
            yield np.sort(keys)

    def count(self, unique: bool) -> int:
        """Return the number of records, without repeats if `unique`."""
        return sum(int(is_new(keys).sum()) if unique else len(keys) for keys in self.sorted_keys())

    def sorted(self, unique: bool) -> Iterator[Records]:
        """Yield the records of each file in order, and remove the file; `unique` drops repeats."""
        for k in range(1 << self.bits):
            keys, lengths = self._facts(k)
            path = self._path(k, "ids")
            ids = np.fromfile(path, self.dtype) if path.exists() else np.empty(0, self.dtype)
            order = np.argsort(keys, kind="stable")
            if unique:
                order = order[is_new(keys[order])]
            for name in ("ids", "keys"):
                self._path(k, name).unlink(missing_ok=True)
            yield taken(Records(ids, lengths), order)

    def _facts(self, k: int) -> tuple[npt.NDArray[np.uint64], Lengths]:
        path = self._path(k, "keys")
        found = np.fromfile(path, np.uint64) if path.exists() else np.empty(0, np.uint64)
        keys, lengths = found.reshape(-1, 2).T
        return keys, lengths.astype(np.int64)

    def _path(self, k: int, name: str) -> Path:
        return self.folder / f"{name}-{k}"


def cuts_between_repeats(
    sorter: Sorter, bounds: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Move the bounds of parts, counted in records, so that equal records are in one part.

    A bound moves to the end of equal records; to their start if nothing would follow.
    """
    total = max(last for _, last in bounds.values())
    moved = {0: 0, total: total}
    seen = 0
    for keys in sorter.sorted_keys():
        new = is_new(keys)
        for cut in {edge for pair in bounds.values() for edge in pair} - moved.keys():
            if cut < seen + len(keys):
                first = cut - seen
                after = cut + int(np.argmax(np.append(new[first:], True)))
                before = seen + int(np.flatnonzero(new[: first + 1])[-1])
                moved[cut] = after if after < total else before
        seen += len(keys)
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
