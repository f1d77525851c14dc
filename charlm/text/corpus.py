"""From a text to a corpus: scan its alphabet, encode it to a token file, split it by position.

Both passes read in chunks, so memory does not grow with the text. The alphabet comes from the whole
text; otherwise the validation part could have a character without an id.
"""

import codecs
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from charlm.config import DataConfig
from charlm.errors import CheckpointError, DataError, Phrase, Setting
from charlm.storage import machine_errors, new_folder, read_manifest, verify_folder
from charlm.storage.json_file import Count, reason
from charlm.text.sources import Part, Source
from charlm.text.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from charlm.text.tokens import RESTORE, Split, TokenFile

IDS = "ids.bin"
CHUNK_BYTES = 1 << 18  # small enough for the CPU's cache
_CODE_POINTS = 0x110000
_CHECKED = 1 << 20  # ids at a time
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

Progress = Callable[[str, int], None]  # "reading" or "encoding", and the bytes since the last call


@dataclass
class Scan:
    """The result of one pass over a text."""

    size: int  # in symbols: characters, or bytes in byte mode
    sha256: str  # of its bytes
    counts: npt.NDArray[np.int64]  # of each code point (or byte)
    notes: list[str] = field(default_factory=list)  # remarks for the user

    def tokenizer(self, data: DataConfig) -> Tokenizer:
        """Return a tokenizer for all characters, or raise DataError if there are too many."""
        if data.unit == "bytes":
            return ByteTokenizer()
        codes = np.flatnonzero(self.counts)
        if len(codes) > data.max_vocab:
            rare = codes[np.argsort(self.counts[codes], kind="stable")][:3]
            shown = ", ".join(f"{chr(c)!r} ({self.counts[c]}x)" for c in rare)
            raise DataError(
                data.source,
                f"{len(codes):,} distinct characters (rarest: {shown}), more than the limit of "
                f"{data.max_vocab:,}",
                Phrase("set {} or {}", Setting("data.max_vocab", len(codes)), _BYTES),
            )
        return CharTokenizer(map(chr, codes))

    def strange_to(self, tokenizer: Tokenizer) -> list[str]:
        """Return the characters of the text that a tokenizer lacks, in Unicode order."""
        if not isinstance(tokenizer, CharTokenizer):
            return []
        return sorted(set(map(chr, np.flatnonzero(self.counts))) - set(tokenizer.alphabet))


@dataclass(frozen=True)
class Corpus:
    """A text as ids on disk, split into parts, with the facts of its manifest (see `_Facts`)."""

    splits: Mapping[str, Split]  # `train`, `val` and `test`; a part may be empty
    facts: Mapping[str, Any]


def scan_text(
    source: Source, data: DataConfig, progress: Progress = lambda what, read: None
) -> Scan:
    """Read a text once for its length, alphabet and checksum.

    Raises:
        DataError: The text is empty, not decodable, compressed or binary; names part, byte and line.
        MachineError: It cannot be read.
    """
    size, digest = 0, hashlib.sha256()
    notes: list[str] = []
    counts = np.zeros(256 if data.unit == "bytes" else _CODE_POINTS, np.int64)
    for symbols in _symbols(source, data, digest.update, notes, partial(progress, "reading")):
        size += len(symbols)
        found = np.bincount(symbols)  # as long as the largest code: short for most texts
        counts[: len(found)] += found
    if not size:
        raise DataError(source.name, "empty (0 bytes)", "name another text")
    if counts[ord("\r")] and data.unit == "chars":
        notes.append("carriage returns (\\r) are kept as they are")
    if np.count_nonzero(counts) == 1:
        notes.append("only one distinct symbol: there is nothing to learn")
    return Scan(size, digest.hexdigest(), counts, notes)


def split_bounds(size: int, data: DataConfig) -> dict[str, tuple[int, int]]:
    """Split [0, size) by position into train, then val, then test."""
    # Exact fractions: in floats 1 - 0.9 is less than 0.1.
    val_share, test_share = Fraction(str(data.val_fraction)), Fraction(str(data.test_fraction))
    train, val = int(size * (1 - val_share - test_share)), size - int(size * test_share)
    if not val_share:
        train = val
    return {"train": (0, train), "val": (train, val), "test": (val, size)}


def check_lengths(size: int, data: DataConfig, block_size: int) -> None:
    """Raise DataError for a text with a part too short for one window and the next character."""
    for name, (start, stop) in split_bounds(size, data).items():
        wanted, length = name == "train" or getattr(data, f"{name}_fraction") > 0, stop - start
        if wanted and length <= block_size:
            other = f"raise data.{name}_fraction" if name != "train" else "use a longer text"
            raise DataError(
                data.source,
                f"the {name} part has {length} characters and needs {block_size + 1}",
                f"lower model.block_size below {max(length, 1)} or {other}",
            )


def encode_corpus(
    source: Source,
    data: DataConfig,
    scan: Scan,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress = lambda what, read: None,
) -> Corpus:
    """Read a text again and write its ids to a new `folder`, which appears only if that succeeds.

    Raises:
        DataError: The text changed since it was scanned, or has a character without an id.
        MachineError: The disk or its permissions refuse.
    """
    dtype, digest = id_dtype(tokenizer.vocab_size), hashlib.sha256()
    facts: dict[str, Any] = {
        "kind": "tokens",
        "source": source.name,
        "source_sha256": scan.sha256,
        "unit": data.unit,
        "size": scan.size,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.str,
        "splits": {name: list(bounds) for name, bounds in split_bounds(scan.size, data).items()},
    }
    if isinstance(tokenizer, CharTokenizer):
        if strange := scan.strange_to(tokenizer):
            raise DataError(source.name, not_in_alphabet(strange, tokenizer))
        table = tokenizer.table(dtype)
    else:
        table = np.arange(256, dtype=dtype)
    with new_folder(folder, facts) as temporary, (temporary / IDS).open("wb") as file:
        for symbols in _symbols(source, data, digest.update, [], partial(progress, "encoding")):
            file.write(table.take(symbols).data)
        if digest.hexdigest() != scan.sha256:
            raise DataError(source.name, "changed while it was being read", "try again")
    return _corpus(folder, read_manifest(folder))


def open_corpus(folder: Path) -> Corpus:
    """Open a corpus that `encode_corpus` wrote.

    Raises DataError if its file of ids is truncated, and CheckpointError if the folder is missing,
    otherwise damaged, or has invalid ids.
    """
    path = folder / IDS
    expected = read_manifest(folder, RESTORE)["files"].get(IDS, {}).get("size")
    if isinstance(expected, int) and path.is_file() and (found := path.stat().st_size) < expected:
        raise DataError(path, f"truncated, {found:,} of {expected:,} bytes", RESTORE)
    corpus = _corpus(folder, verify_folder(folder, RESTORE))
    tokens, vocab_size = corpus.splits["train"].tokens, corpus.facts["vocab_size"]
    if vocab_size <= np.iinfo(tokens.dtype).max:  # a larger id would be an index error in the model
        for start in range(0, tokens.size, _CHECKED):
            ids = tokens.read(start, min(_CHECKED, tokens.size - start))
            if ids.max() >= vocab_size:
                what = f"holds id {ids.max()}, its alphabet has {vocab_size} symbols"
                raise CheckpointError(path, what, RESTORE)
    return corpus


class _Facts(BaseModel, strict=True):
    """The facts that the manifest of a corpus must state."""

    source: str
    source_sha256: str
    unit: str
    size: Count
    vocab_size: Count
    dtype: str
    splits: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]]


def _corpus(folder: Path, facts: Mapping[str, Any]) -> Corpus:
    try:
        known = _Facts.model_validate(facts)
        dtype = id_dtype(known.vocab_size)
        bounds = {name: known.splits[name] for name in ("train", "val", "test")}
        ends = [end for pair in bounds.values() for end in pair]
        if known.dtype != dtype.str or ends != sorted([0, *ends[1:-1], known.size]):
            raise ValueError("dtype, size or splits")
    except (KeyError, ValueError) as error:
        what = f"its manifest is incomplete ({reason(error)})"
        raise CheckpointError(folder, what, RESTORE) from None
    tokens = TokenFile(folder / IDS, dtype, known.size)
    return Corpus({name: Split(tokens, *pair) for name, pair in bounds.items()}, facts)


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest little-endian unsigned type that holds every id."""
    return np.dtype("u1" if vocab_size <= 1 << 8 else "<u2" if vocab_size <= 1 << 16 else "<u4")


def not_in_alphabet(strange: Sequence[str], tokenizer: Tokenizer) -> str:
    """Name characters of a text that a run's tokenizer lacks."""
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in strange[:4])
    more = f" and {len(strange) - 4} more" if len(strange) > 4 else ""
    size = tokenizer.vocab_size
    return f"{shown}{more} not in the alphabet of this run, which has {size} symbols"


def _symbols(
    source: Source,
    data: DataConfig,
    update: Callable[[bytes], None],
    notes: list[str],
    progress: Callable[[int], None],
) -> Iterator[npt.NDArray[Any]]:
    """Yield the text's code points (or bytes) in chunks, and pass the raw bytes to `update`."""
    for part in source.parts:
        with machine_errors(Path(part.label)), part.open() as file:
            decoder = None if data.unit == "bytes" else _Decoder(part, data.encoding, notes)
            while chunk := file.read(CHUNK_BYTES):
                update(chunk)
                progress(len(chunk))
                yield decoder.decode(chunk) if decoder else np.frombuffer(chunk, np.uint8)
            if decoder:
                yield decoder.decode(b"", final=True)


class _Decoder:
    """Decodes one part chunk by chunk and reports where decoding fails."""

    def __init__(self, part: Part, encoding: str, notes: list[str]) -> None:
        self.part = part
        self.encoding = codecs.lookup(encoding).name
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.notes = notes
        self.consumed = 0  # bytes
        self.lines = 1

    def decode(self, chunk: bytes, final: bool = False) -> npt.NDArray[Any]:
        """Return the code points that `chunk` completes; `final` ends the part."""
        if self.consumed == 0:
            chunk = self._begin(chunk)
        before = self.decoder.getstate()
        if self.encoding == "utf-8" and not before[0] and chunk.isascii():
            self.consumed += len(chunk)
            self.lines += chunk.count(b"\n")
            return np.frombuffer(chunk, np.uint8)  # ASCII needs no decoding
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
            raise DataError(self.part.label, what, mend) from None
        except UnicodeError as error:  # utf-16 and utf-32 without a byte order mark
            endings = (Setting("data.encoding", f"{self.encoding}-{end}") for end in ("le", "be"))
            mend = Phrase("use {} or {}, or its real encoding", *endings)
            what = f"not {self.encoding.upper()} ({error})"
            raise DataError(self.part.label, what, mend) from None
        self.consumed += len(chunk)
        self.lines += text.count("\n")
        # Only utf-7 and the escape codecs decode lone surrogates; they are symbols like others.
        return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")

    def _begin(self, chunk: bytes) -> bytes:
        """Check by the first bytes that this is text in the expected encoding."""
        for signature, kind in _SIGNATURES.items():
            if chunk.startswith(signature):
                mend = Phrase("unpack it first, or use {}", _BYTES)
                raise DataError(self.part.label, f"looks like {kind}", mend)
        if self.encoding == "utf-8":
            for mark, encoding in _BYTE_ORDER_MARKS.items():
                if chunk.startswith(mark):
                    mend = Phrase("use {}", Setting("data.encoding", encoding))
                    raise DataError(self.part.label, f"starts like {encoding.upper()}", mend)
            if chunk.startswith(codecs.BOM_UTF8):
                self.notes.append(f"{self.part.label}: a byte order mark was dropped")
                self.consumed = len(codecs.BOM_UTF8)
                chunk = chunk[len(codecs.BOM_UTF8) :]
        head = chunk[: 1 << 13]
        nuls = 0 if self.encoding.startswith(("utf-16", "utf-32")) else head.count(0)
        if nuls > _NUL_SHARE * len(head):
            what = f"looks binary ({nuls} NULs in its first {len(head)} bytes)"
            raise DataError(self.part.label, what, Phrase("use {}", _BYTES))
        return chunk
