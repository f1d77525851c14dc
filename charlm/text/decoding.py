"""From the bytes of a text to its characters, chunk by chunk; what is no text is named."""

import codecs
import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.errors import DataError, Phrase, Setting
from charlm.text.unpacking import format_of

_NUL_SHARE = 0.01  # a text may have a stray NUL; a file with more is binary

_BYTE_ORDER_MARKS = {  # UTF-32 first: its little-endian mark begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_SIGNATURES = {b"PK\x03\x04": "zip", b"%PDF-": "PDF", b"PAR1": "Parquet"}
_TAR = slice(257, 262)  # where a file of tar says "ustar"

_BYTES, _LATIN_1 = Setting("data.unit", "bytes"), Setting("data.encoding", "latin-1")
_PATTERN = Setting("data.source", "texts/**/*.txt")
_TABLE = Setting("data.records", "lines")
_COLUMN = Phrase("name the column to read by {}, with {}", Setting("data.column"), _TABLE)


class Decoder:
    """Decodes one part after another, chunk by chunk, and reports where decoding fails."""

    def __init__(self, encoding: str, several: bool) -> None:
        self.several = several  # parts, so that one can be left out
        self.encoding = codecs.lookup(encoding).name
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.marked: list[str] = []  # parts that begin with a byte order mark of UTF-8

    def begin(self, part: str, at: int = 0, line: int = 1) -> None:
        """Begin the part of this name, or go on in it at the byte `at` of a line, between characters."""
        self.part = part
        self.decoder.reset()
        self.consumed = at  # bytes
        self.lines = line
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
        if kind := _archive(chunk):
            first = _COLUMN if kind == "Parquet" else "unpack it first"
            raise self._error(f"looks like {kind}", Phrase("{}, or use {}", first, _BYTES))
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


def note_on_marks(marked: list[str]) -> list[str]:
    """Return a remark for the user if byte order marks were dropped from these parts."""
    more = f" (and from {len(marked) - 1:,} more)" if len(marked) > 1 else ""
    return [f"{marked[0]}: a byte order mark was dropped{more}"] if marked else []


def _archive(head: bytes) -> str:
    """Return what kind of archive begins like this; empty: it is none."""
    if packed := format_of(head):
        return packed.name
    kinds = (kind for start, kind in _SIGNATURES.items() if head.startswith(start))
    return next(kinds, "tar" if head[_TAR] == b"ustar" else "")
