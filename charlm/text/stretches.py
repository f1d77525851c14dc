"""A large text in stretches, each of which can be read without what comes before it.

A stretch is pieces of files, cut between characters, about 64 MiB together. So several processes can
count the characters of a text and encode it, and what was finished before a kill can be kept. Where
the cuts are depends on the files alone, not on who reads them.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from charlm.config import DataConfig
from charlm.storage import machine_errors
from charlm.text import reading
from charlm.text.decoding import Decoder, note_on_marks
from charlm.text.reading import Symbols, notes_on_parts, unpacks
from charlm.text.sources import Part, Source, changed_meanwhile
from charlm.text.unpacking import format_of

LARGE = 1 << 28  # bytes of a text for which it pays to start processes
STRETCH = 1 << 26  # bytes
_HEAD = 1 << 13  # bytes of a file, of which the first say whether it is compressed
_INSIDE = bytes(range(0x80, 0xC0))  # bytes of a character in UTF-8 after its first
_ONE_BYTE = ("ascii", "iso8859-", "cp125")  # how the names of such encodings begin


class Span(NamedTuple):
    """A piece of a file: bytes [start, stop), with `data.joiner` before it if `joined`."""

    path: str
    start: int
    stop: int
    joined: bool = False


Stretch = Sequence[Span]


class Plan(NamedTuple):
    """A text in stretches."""

    stretches: list[Stretch]
    key: str  # hash of its files as they are now (names, sizes, times) and of how they are read
    notes: list[str]  # remarks for the user
    several: bool  # whether it has several files


def in_stretches(source: Source, data: DataConfig) -> Plan | None:
    """Return a text in stretches; None if it is small, or must be read from its start.

    None for lists of records, compressed files and pipes; with `data.newlines` or `data.skip_lines`;
    and for encodings in which a byte does not tell whether a character begins there.
    """
    encoding = codecs.lookup(data.encoding).name if data.unit == "chars" else ""
    from_start = data.records != "none" or data.newlines != "keep" or data.skip_lines
    if from_start or not (encoding in ("", "utf-8") or encoding.startswith(_ONE_BYTE)):
        return None
    try:
        paths = [part.path or "" for part in source.parts]
        if not all(paths) or sum(os.path.getsize(path) for path in paths) < LARGE:
            return None
        return _Planner(source, data, encoding).plan()
    except (OSError, _NotDivisible):  # if it is an error, whoever reads all of it will say so
        return None


class _NotDivisible(Exception):
    """A file of a text has to be read from its start."""


class _Planner:
    """Cuts one part after another."""

    def __init__(self, source: Source, data: DataConfig, encoding: str) -> None:
        self.source, self.data, self.utf8 = source, data, encoding == "utf-8"
        self.joiner: bytes | None = data.joiner.encode("utf-8", "surrogateescape")
        if encoding and not self.utf8:
            try:
                self.joiner = data.joiner.encode(encoding)
            except UnicodeEncodeError:
                self.joiner = None  # no file can end with it
        self.several = len(source.parts) > 1
        self.end = b""  # of the text so far: as long as the joiner, or a byte
        self.stretches: list[list[Span]] = []
        self.left = 0  # bytes for which the last stretch has room
        self.joined = self.empty = 0
        self.marked: list[str] = []

    def plan(self) -> Plan:
        """Return the text in stretches; raise _NotDivisible or OSError if that cannot be done."""
        read_as = [self.data.unit, self.data.encoding, self.data.joiner, STRETCH]
        key = hashlib.sha256(json.dumps(read_as).encode())
        for part in self.source.parts:
            key.update(json.dumps([part.label, *self._add(part)]).encode())
        notes = note_on_marks(self.marked)
        notes += notes_on_parts(self.source, self.data, self.joined, self.empty)
        return Plan(list(self.stretches), key.hexdigest(), notes, self.several)

    def _add(self, part: Part) -> tuple[int, int]:
        """Add a part; return its size and when it was changed."""
        assert part.path
        with open(part.path, "rb") as file:
            state = os.fstat(file.fileno())
            size, head = state.st_size, file.read(_HEAD)
            packed = unpacks(self.data) and format_of(head)
            if packed or (head and not size):  # files of the kernel say that they are empty
                raise _NotDivisible
            mark = codecs.BOM_UTF8 if self.utf8 and head.startswith(codecs.BOM_UTF8) else b""
            if mark:
                self.marked.append(part.label)
            is_empty = size <= len(mark)
            self.empty += is_empty
            follows = self.several and not is_empty and bool(self.data.joiner and self.end)
            joined = follows and self.end != self.joiner
            self.joined += joined
            self._divide(file, part.path, size, joined)
            if self.data.joiner:
                length = len(self.joiner or b"?")
                file.seek(max(len(mark), size - length))
                self.end = (self.end + file.read(length))[-length:]
        return size, state.st_mtime_ns

    def _divide(self, file: reading.File, path: str, size: int, joined: bool) -> None:
        """Add the pieces of a file, whose start is not cut: it says what kind of file this is."""
        if size > self.left:
            self._begin()
        start = 0
        while start < size:
            if not self.left:
                self._begin()
            stop = self._cut(file, min(size, start + self.left), size)
            self.stretches[-1].append(Span(path, start, stop, joined and not start))
            self.left = max(0, self.left - (stop - start))
            start = stop

    def _begin(self) -> None:
        self.stretches.append([])
        self.left = STRETCH

    def _cut(self, file: reading.File, at: int, size: int) -> int:
        """Return the first place from `at` on that is not inside a character."""
        if not self.utf8 or at == size:
            return at
        file.seek(at)
        following = file.read(3)  # if more bytes cannot begin a character, they are an error anyway
        return at + len(following) - len(following.lstrip(_INSIDE))


def read_stretch(
    stretch: Stretch,
    data: DataConfig,
    several: bool,
    update: Callable[[bytes], None],
    *,
    count_lines: bool = False,
) -> Iterator[Symbols]:
    """Yield the code points (or bytes) of a stretch in chunks, and pass its content to `update`.

    Both are those of `read_symbols`, for this stretch.

    Args:
        stretch: What to read.
        data: How.
        several: Whether the text has several files, for errors.
        update: Takes the content.
        count_lines: Let an error name the right line, which takes reading what comes before.

    Raises:
        DataError: It is not decodable, or a file ends before the stretch.
        MachineError: It cannot be read.
    """
    decoder = Decoder(data.encoding, several) if data.unit == "chars" else None
    between = data.joiner.encode("utf-8", "surrogateescape")
    for path, start, stop, joined in stretch:
        if joined:
            update(between)
            as_chars = np.array([ord(c) for c in data.joiner], np.uint32)
            yield as_chars if decoder else np.frombuffer(between, np.uint8)
        with machine_errors(path), open(path, "rb", buffering=0) as file:
            if decoder:
                decoder.begin(path, start, 1 + _newlines(file, start) if count_lines else 1)
            for chunk in _chunks(file, path, start, stop):
                update(chunk)
                yield decoder.decode(chunk) if decoder else np.frombuffer(chunk, np.uint8)
            if decoder and decoder.unfinished:
                yield decoder.decode(b"", final=True)


def _chunks(file: reading.File, path: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield bytes [start, stop) of a file in chunks, or raise DataError if it ends before."""
    file.seek(start)
    while start < stop:
        chunk = file.read(min(reading.CHUNK_BYTES, stop - start))
        if not chunk:
            raise changed_meanwhile(path)
        start += len(chunk)
        yield chunk


def _newlines(file: reading.File, stop: int) -> int:
    """Return how many newlines the first bytes of a file have."""
    return sum(chunk.count(b"\n") for chunk in _chunks(file, "", 0, stop))
