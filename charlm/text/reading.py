"""From the parts of a text to its symbols: unpack, decode, join, and notice what changes meanwhile."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from charlm.config import DataConfig
from charlm.errors import DataError, Phrase, Setting, number_of
from charlm.storage import machine_errors
from charlm.text.columns import SUFFIXES, Column, Value, listed, names_of, table_kind
from charlm.text.decoding import Decoder, note_on_marks
from charlm.text.lines import Lines
from charlm.text.parquet import parquet_names, parquet_values
from charlm.text.records import END_OF_PART
from charlm.text.sources import STANDARD_INPUT, Part, Source, changed_meanwhile, state_of
from charlm.text.tokenizer import code_points, of_code_points
from charlm.text.unpacking import format_of, unpacked

CHUNK_BYTES = 1 << 18  # small enough for the CPU's cache
ROWS = 4096  # of a table, at most, in one piece

Symbols = npt.NDArray[Any]
File = BinaryIO | io.IOBase


class Piece(NamedTuple):
    """Some of the symbols of a part."""

    taken: int  # bytes read from the disk for it
    content: bytes  # what the checksum of the text covers
    symbols: Symbols


def read_symbols(
    source: Source,
    data: DataConfig,
    update: Callable[[bytes], None],
    notes: list[str],
    progress: Callable[[int], None],
) -> Iterator[Symbols]:
    """Yield the text's code points (or bytes) in chunks, and pass its content to `update`.

    The content is the bytes of the files, unpacked; where lines are left out or changed, the rest in
    UTF-8; of a column, the code points of its values. `progress` gets the bytes read from the disk.

    `data.joiner` comes between two parts unless the text before it ends with it; with records,
    `END_OF_PART` does.

    Raises:
        DataError: A part is not decodable, damaged or binary, or changes while it is read, or has no
            column `data.column`.
        MachineError: It cannot be read, or the package that reads it is missing.
    """
    reader = _Reader(data, several=len(source.parts) > 1)
    between = data.joiner.encode("utf-8", "surrogateescape")
    joiner = np.frombuffer(between, np.uint8)
    if data.unit == "chars":
        joiner = np.array([ord(c) for c in data.joiner], np.uint32)
    apart = data.records != "none"  # whether the end of a part is to be seen
    if apart:
        joiner, between = np.array([END_OF_PART], np.uint32), b"\0"
    expected = joiner.tolist() if len(source.parts) > 1 and not apart else []
    last: list[int] = []  # the end of the text so far
    begun = False
    joined = empty = 0
    for part in source.parts:
        is_empty = True
        for taken, content, symbols in reader.read(part):
            if is_empty and len(symbols):
                is_empty = False
                if begun if apart else (last and last != expected):
                    update(between)
                    yield joiner
                    joined += not apart
                begun = True
            if expected:
                last = (last + symbols[-len(expected) :].tolist())[-len(expected) :]
            update(content)
            progress(taken)
            yield symbols
        empty += is_empty
    notes += reader.notes()
    notes += notes_on_parts(source, data, joined, empty)


def notes_on_parts(source: Source, data: DataConfig, joined: int, empty: int) -> list[str]:
    """Return remarks for the user: after how many parts the joiner was put, and how many are empty."""
    found = []
    count = f"of {len(source.parts):,}"
    if joined:
        put = f"data.joiner ({data.joiner!r}) was put after {joined:,} {count} files"
        found.append(f"{put}, which did not end with it")
    if 0 < empty < len(source.parts):
        found.append(f"{empty:,} {count} files {'is' if empty == 1 else 'are'} empty")
    return found


def gathered(symbols: Iterator[Symbols]) -> Iterator[Symbols]:
    """Yield the same symbols in fewer pieces: work on each of many small files would be slow."""
    pieces: list[Symbols] = []
    length = 0
    for piece in symbols:
        pieces.append(piece)
        length += len(piece)
        if length >= CHUNK_BYTES // 4:
            yield np.concatenate(pieces) if len(pieces) > 1 else piece
            pieces, length = [], 0
    if length:
        yield np.concatenate(pieces)


def table_note(source: Source, data: DataConfig) -> str | None:
    """Say that a text looks like a table, and name its columns, if nobody chose one; None: it does not."""
    if data.column is not None or data.unit == "bytes":
        return None
    tables = ((part, kind) for part in source.parts if (kind := table_kind(part.label)))
    part, kind = next(tables, (None, None))
    if part is None or kind is None or kind == "parquet":  # that one is refused
        return None
    piece = next(_Reader(data, several=False).read(part), None)
    names = names_of([of_code_points(piece.symbols)], kind, part.label) if piece else []
    if not names:
        return None
    column = Setting("data.column", "NAME")
    return (
        f"{part.label} looks like a table with the columns {listed(names)}, but is read as one text; "
        f"{column} data.records=lines reads one column, each value as a text of its own"
    )


def empty_text(source: Source, data: DataConfig, nothing: bool) -> DataError:
    """Return the error for a text without symbols; `nothing`: not even lines that were left out."""
    if data.column is not None:
        return DataError(source.name, f"column {data.column!r} holds no text", "name another")
    if data.skip_lines:
        mend = Phrase("lower {}, or name another text", Setting("data.skip_lines"))
        lines = number_of(data.skip_lines, "line")
        return DataError(source.name, f"nothing follows its first {lines}", mend)
    no_records = data.records != "none" and not nothing
    what = "no records in it" if no_records else "empty (0 bytes)"
    return DataError(source.name, what, "name another text")


class _Tap:
    """A file, as pyarrow reads it as well, that counts the bytes read from it."""

    closed = False

    def __init__(self, file: File) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell
        self._taken = 0

    def read(self, size: int = -1) -> bytes:
        """Read bytes, and count them."""
        found = self.file.read(size)
        self._taken += len(found)
        return found

    def close(self) -> None:
        """Do nothing: who opened the file closes it."""

    def taken(self) -> int:
        """Return how many bytes were read since the last call."""
        found, self._taken = self._taken, 0
        return found


def unpacks(data: DataConfig) -> bool:
    """Tell whether compressed files are unpacked."""
    return data.unit == "chars" if data.unpack == "auto" else data.unpack


class _Reader:
    """Reads one part after another, and remembers what there is to say about them."""

    def __init__(self, data: DataConfig, several: bool) -> None:
        self.data = data
        self.unpack = unpacks(data)
        self.decoder = Decoder(data.encoding, several) if data.unit == "chars" else None
        skip = 0 if data.column is not None else data.skip_lines  # rows of a table are no lines
        self.lines = Lines(data.newlines, skip)
        self.empty = self.missing = 0  # values of a column
        self.first: str | None = None  # of them, where it may be the name of the column

    def read(self, part: Part) -> Iterator[Piece]:
        """Yield a part in pieces."""
        with machine_errors(part.label), part.open() as file, _unchanged(file, part.label):
            tap = _Tap(file)
            self.lines.begin()
            read = self._text if self.data.column is None else self._column
            yield from read(part.label, tap)

    def _text(self, name: str, tap: _Tap) -> Iterator[Piece]:
        for content, symbols in _with_columns(self._decoded(name, tap), name, tap):
            if self.lines.idle:
                yield Piece(tap.taken(), content, symbols)
            else:
                left = self.lines.push(symbols)
                yield Piece(tap.taken(), _as_bytes(left), left)

    def _decoded(self, name: str, tap: _Tap) -> Iterator[tuple[bytes, Symbols]]:
        """Yield the bytes of a part, unpacked, and the symbols that each chunk completes."""
        decoder = self.decoder
        if decoder:
            decoder.begin(name)
        for chunk in self._unpacked(name, tap):
            yield chunk, decoder.decode(chunk) if decoder else np.frombuffer(chunk, np.uint8)
        if decoder and decoder.unfinished:
            yield b"", decoder.decode(b"", final=True)

    def _unpacked(self, name: str, tap: _Tap) -> Iterator[bytes]:
        state = state_of(tap.file)
        chunk = tap.read(CHUNK_BYTES)
        if self.unpack and (packed := format_of(chunk)):
            more = partial(tap.read, CHUNK_BYTES)
            yield from unpacked(packed, chunk, more, name, CHUNK_BYTES)
            return
        # The size tells where a file ends, which saves a read; those of the kernel say 0, as in /proc.
        left = state[0] or -1 if state else -1
        while chunk:
            yield chunk
            left -= len(chunk)
            chunk = tap.read(CHUNK_BYTES) if left else b""

    def _column(self, name: str, tap: _Tap) -> Iterator[Piece]:
        for values in _some(self._values(name, tap)):
            if self.first is None and table_kind(name) in ("csv", "tsv"):
                self.first = next((value for value in values if value), None)
            self.missing += values.count(None)
            self.empty += values.count("")
            symbols = self.lines.push(_apart([value for value in values if value]))
            yield Piece(tap.taken(), symbols.astype("<u4").tobytes(), symbols)

    def _values(self, name: str, tap: _Tap) -> Iterator[Value]:
        assert self.data.column is not None
        skip_missing = self.data.missing == "skip"
        column, kind = Column(self.data.column, name, skip_missing), table_kind(name)
        if kind is None:
            what = f"no table: its name ends in none of {', '.join(SUFFIXES)}"
            mend = "rename it"
            if name == STANDARD_INPUT or (os.path.exists(name) and not os.path.isfile(name)):
                what = "the kind of a table is known by the name of its file, and a pipe has none"
                mend = "write it to a file such as table.csv"
            raise column.error(what, Phrase("{}, or leave out {}", mend, _COLUMN))
        if kind == "parquet":
            return parquet_values(column, tap)
        texts = (of_code_points(symbols) for _, symbols in self._decoded(name, tap))
        return column.values(texts, kind, self.data.skip_lines)

    def notes(self) -> list[str]:
        """Return remarks for the user."""
        found = self.lines.notes()
        if self.decoder:
            found = note_on_marks(self.decoder.marked) + found
        missing = "missing" if self.data.missing == "skip" else "missing (null)"
        for count, what in ((self.empty, "empty"), (self.missing, missing)):
            if count:
                values = number_of(count, "value is", "values are")
                found.append(f"{values} {what} and left out")
        if isinstance(self.data.column, int) and not self.data.skip_lines and self.first:
            header = "if that is the name of the column, set data.skip_lines=1"
            found.append(f"the first record is {self.first[:60]!r}; {header}")
        return found


_COLUMN = Setting("data.column")


def _with_columns(
    pieces: Iterator[tuple[bytes, Symbols]], name: str, tap: _Tap
) -> Iterator[tuple[bytes, Symbols]]:
    """Yield the same; where a Parquet file is refused, name its columns."""
    try:
        yield from pieces
    except DataError as error:
        if table_kind(name) != "parquet" or not (names := parquet_names(tap)):
            raise
        raise error.replace(what=f"{error.what} with the columns {listed(names)}") from None


@contextlib.contextmanager
def _unchanged(file: File, name: str) -> Iterator[None]:
    """Raise DataError if a file changes meanwhile: if it became shorter, it would be read as it is."""
    before = state_of(file)
    try:
        yield
    except DataError:
        if before == state_of(file):
            raise
    if before != state_of(file):
        raise changed_meanwhile(name)


def _as_bytes(symbols: Symbols) -> bytes:
    """Return symbols as bytes, in UTF-8 if they are code points."""
    if symbols.dtype == np.uint8:  # bytes, or ASCII
        return symbols.tobytes()
    return of_code_points(symbols).encode("utf-8", "surrogatepass")


def _some(values: Iterator[Value]) -> Iterator[list[Value]]:
    """Yield values some at a time."""
    found: list[Value] = []
    length = 0
    for value in values:
        found.append(value)
        length += len(value or "")
        if length >= CHUNK_BYTES // 4 or len(found) >= ROWS:
            yield found
            found, length = [], 0
    yield found


def _apart(values: list[str]) -> Symbols:
    """Return the code points of values, one after another, with `END_OF_PART` after each."""
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    return np.insert(code_points("".join(values)), ends, END_OF_PART)
