"""From the parts of a text to its symbols: decode, join, and notice what changes meanwhile."""

import codecs
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.config import DataConfig
from charlm.errors import DataError, Phrase, Setting
from charlm.storage import machine_errors
from charlm.text.records import END_OF_PART
from charlm.text.sources import Part, Source, changed_meanwhile, state_of

CHUNK_BYTES = 1 << 18  # small enough for the CPU's cache
_NUL_SHARE = 0.01  # a text may have a stray NUL; a file with more is binary

_BYTE_ORDER_MARKS = {  # UTF-32 first: its little-endian mark begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"%PDF-": "PDF",
}

_BYTES, _LATIN_1 = Setting("data.unit", "bytes"), Setting("data.encoding", "latin-1")
_PATTERN = Setting("data.source", "texts/**/*.txt")

Symbols = npt.NDArray[Any]


def read_symbols(
    source: Source,
    data: DataConfig,
    update: Callable[[bytes], None],
    notes: list[str],
    progress: Callable[[int], None],
) -> Iterator[Symbols]:
    """Yield the text's code points (or bytes) in chunks, and pass its bytes to `update`.

    `data.joiner` comes between two parts unless the text before it ends with it; with records,
    `END_OF_PART` does.

    Raises:
        DataError: A part is not decodable, compressed or binary, or changes while it is read.
        MachineError: It cannot be read.
    """
    decoder = _Decoder(data.encoding, len(source.parts) > 1) if data.unit == "chars" else None
    between = data.joiner.encode("utf-8", "surrogateescape")
    joiner = np.frombuffer(between, np.uint8)
    if decoder:
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
        for chunk, symbols in _read_part(part, decoder):
            if is_empty and len(symbols):
                is_empty = False
                if begun if apart else (last and last != expected):
                    update(between)
                    yield joiner
                    joined += not apart
                begun = True
            if expected:
                last = (last + symbols[-len(expected) :].tolist())[-len(expected) :]
            update(chunk)
            progress(len(chunk))
            yield symbols
        empty += is_empty
    if decoder and (marked := decoder.marked):
        more = f" (and from {len(marked) - 1:,} more)" if len(marked) > 1 else ""
        notes.append(f"{marked[0]}: a byte order mark was dropped{more}")
    count = f"of {len(source.parts):,}"
    if joined:
        put = f"data.joiner ({data.joiner!r}) was put after {joined:,} {count} files"
        notes.append(f"{put}, which did not end with it")
    if 0 < empty < len(source.parts):
        notes.append(f"{empty:,} {count} files {'is' if empty == 1 else 'are'} empty")


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


def _read_part(part: Part, decoder: "_Decoder | None") -> Iterator[tuple[bytes, Symbols]]:
    """Yield the chunks of a part and the symbols that each completes."""
    with machine_errors(part.label), part.open() as file:
        before = state_of(file)
        left = before[0] or -1 if before else -1
        if decoder:
            decoder.begin(part.label)
        # The size tells where a file ends, which saves a read; those of the kernel say 0, as in /proc.
        while left and (chunk := file.read(CHUNK_BYTES)):
            left -= len(chunk)
            yield chunk, decoder.decode(chunk) if decoder else np.frombuffer(chunk, np.uint8)
        # A text that became shorter ends too early, and would be accepted as it is now.
        if before != state_of(file):
            raise changed_meanwhile(part.label)
        if decoder and decoder.unfinished:
            yield b"", decoder.decode(b"", final=True)


class _Decoder:
    """Decodes one part after another, chunk by chunk, and reports where decoding fails."""

    def __init__(self, encoding: str, several: bool) -> None:
        self.several = several  # parts, so that one can be left out
        self.encoding = codecs.lookup(encoding).name
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.marked: list[str] = []  # parts that begin with a byte order mark of UTF-8

    def begin(self, part: str) -> None:
        """Begin the part of this name."""
        self.part = part
        self.decoder.reset()
        self.consumed = 0  # bytes
        self.lines = 1
        self.unfinished = False  # whether it may hold the beginning of a character

    def decode(self, chunk: bytes, final: bool = False) -> npt.NDArray[Any]:
        """Return the code points that `chunk` completes; `final` ends the part."""
        if self.consumed == 0:
            chunk = self._begin(chunk)
        if self.encoding == "utf-8" and not self.unfinished and chunk.isascii():
            self.consumed += len(chunk)
            self.lines += chunk.count(b"\n")
            return np.frombuffer(chunk, np.uint8)  # ASCII needs no decoding
        before = self.decoder.getstate()
        try:
            text = self.decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            # The decoder may hold bytes of an earlier chunk, so count from the end.
            good = len(chunk) - len(error.object) + error.start
            self.decoder.setstate(before)
            with contextlib.suppress(UnicodeError):  # the bytes before may fail as well
                self.lines += self.decoder.decode(chunk[: max(good, 0)]).count("\n")
            byte = f"byte {self.consumed + good} (0x{error.object[error.start]:02x})"
            what = f"not {self.encoding.upper()} at {byte}, line {self.lines}"
            mend = Phrase("use {} (or its real encoding), or {}", _LATIN_1, _BYTES)
            raise self._error(what, mend) from None
        except UnicodeError as error:  # utf-16 and utf-32 without a byte order mark
            endings = (Setting("data.encoding", f"{self.encoding}-{end}") for end in ("le", "be"))
            mend = Phrase("use {} or {}, or its real encoding", *endings)
            what = f"not {self.encoding.upper()} ({error})"
            raise DataError(self.part, what, mend) from None
        self.consumed += len(chunk)
        self.lines += text.count("\n")
        self.unfinished = self.encoding != "utf-8" or bool(self.decoder.getstate()[0])
        # Only utf-7 and the escape codecs decode lone surrogates; they are symbols like others.
        return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")

    def _begin(self, chunk: bytes) -> bytes:
        """Check by the first bytes that this is text in the expected encoding."""
        if chunk.startswith(tuple(_SIGNATURES)):
            kind = next(kind for start, kind in _SIGNATURES.items() if chunk.startswith(start))
            mend = Phrase("unpack it first, or use {}", _BYTES)
            raise self._error(f"looks like {kind}", mend)
        if self.encoding == "utf-8" and not chunk.isascii():
            for mark, encoding in _BYTE_ORDER_MARKS.items():
                if chunk.startswith(mark):
                    mend = Phrase("use {}", Setting("data.encoding", encoding))
                    raise DataError(self.part, f"starts like {encoding.upper()}", mend)
            if chunk.startswith(codecs.BOM_UTF8):
                self.marked.append(self.part)
                self.consumed = len(codecs.BOM_UTF8)
                chunk = chunk[len(codecs.BOM_UTF8) :]
        head = chunk[: 1 << 13]
        nuls = 0 if self.encoding.startswith(("utf-16", "utf-32")) else head.count(0)
        if nuls > _NUL_SHARE * len(head):
            what = f"looks binary ({nuls} NULs in its first {len(head)} bytes)"
            raise self._error(what, Phrase("use {}", _BYTES))
        return chunk

    def _error(self, what: str, mend: Phrase) -> DataError:
        """Return the error for a part that is no text."""
        if self.several:
            mend = Phrase("{}, or name only texts, for example {}", mend, _PATTERN)
        return DataError(self.part, what, mend)
