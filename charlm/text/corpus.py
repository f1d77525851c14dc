"""From a text to a corpus: scan its alphabet, encode it to a token file, split it.

A text is split by position, and a list of records by records, in an order of their own (see
`records`). The alphabet comes from the whole text; otherwise the validation part could have a character without
an id. So a text is read twice, in chunks, and memory does not grow with the text.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from charlm.config import DataConfig
from charlm.errors import CheckpointError, DataError, Phrase, Setting
from charlm.storage import new_folder, read_manifest, verify_folder
from charlm.storage.json_file import Count, reason
from charlm.text.reading import Symbols, empty_text, gathered, read_symbols
from charlm.text.records import Cutter, Records, Tally, keys_of
from charlm.text.shuffling import BORDERS, PartWriter, Sorter, cuts_between_repeats, write_parts
from charlm.text.sources import Source, changed_meanwhile
from charlm.text.tokenizer import BOUNDARY, ByteTokenizer, CharTokenizer, Tokenizer
from charlm.text.tokens import RESTORE, Split, TokenFile

IDS, INDEX = "ids.bin", "borders.bin"
HELD_BYTES = 1 << 26  # of a text of many files, which take long to open, between the two passes
_CODE_POINTS = 0x110000
_NO_BYTES = hashlib.sha256().digest()
_CHECKED = 1 << 20  # ids at a time
_BYTES = Setting("data.unit", "bytes")

Progress = Callable[[str, int], None]  # "reading" or "encoding", and the bytes since the last call


@dataclass
class Scan:
    """The result of one pass over a text."""

    size: int  # in symbols: characters, or bytes in byte mode
    sha256: str  # of its content (see `read_symbols`)
    counts: npt.NDArray[np.int64]  # of each code point (or byte)
    notes: list[str] = field(default_factory=list)  # remarks for the user
    held: list[Symbols] | None = None  # the text, if it need not be read again
    records: Tally | None = None  # None: it is one text

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
        return CharTokenizer(map(chr, codes), boundary=self.records is not None)

    def bounds(self, data: DataConfig) -> dict[str, tuple[int, int]]:
        """Return where the parts begin and end, in symbols; about, if these are records."""
        return split_bounds(self.size, data)

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
    notes = [*source.notes]
    counts = np.zeros(256 if data.unit == "bytes" else _CODE_POINTS, np.int64)
    held: list[Symbols] | None = [] if len(source.parts) > 1 else None
    room = HELD_BYTES

    def pieces() -> Iterator[Symbols]:
        """Yield the text in pieces, and hold it if it is short."""
        nonlocal held, room
        for piece in gathered(
            read_symbols(source, data, digest.update, notes, partial(progress, "reading"))
        ):
            if held is not None:
                held.append(piece.astype(np.min_scalar_type(int(piece.max(initial=0)))))
                room -= held[-1].nbytes
                held = held if room >= 0 else None
            yield piece

    cutter = Cutter.of(data, source.name) if data.records != "none" else None
    read = (records.symbols for records in cutter.cut(pieces())) if cutter else pieces()
    for symbols in read:
        size += len(symbols)
        found = np.bincount(symbols)  # as long as the largest code: short for most texts
        counts[: len(found)] += found
    tally = cutter.tally if cutter else None
    if tally and data.records != "none":
        counts[ord(BOUNDARY)] = tally.records
        size += tally.records
        notes += tally.notes(data.records)
    if not size:
        raise empty_text(source, data, digest.digest() == _NO_BYTES)
    if counts[ord("\r")] and data.unit == "chars":
        kept = "carriage returns (\\r) are kept as they are"
        notes.append(f"{kept}; data.newlines=lf makes newlines of them")
    if np.count_nonzero(counts) == 1:
        notes.append("only one distinct symbol: there is nothing to learn")
    return Scan(size, digest.hexdigest(), counts, notes, held, tally)


def split_bounds(size: int, data: DataConfig) -> dict[str, tuple[int, int]]:
    """Split [0, size) by position into train, then val, then test."""
    # Exact fractions: in floats 1 - 0.9 is less than 0.1.
    val_share, test_share = Fraction(str(data.val_fraction)), Fraction(str(data.test_fraction))
    train, val = int(size * (1 - val_share - test_share)), size - int(size * test_share)
    if not val_share:
        train = val
    return {"train": (0, train), "val": (train, val), "test": (val, size)}


def record_bounds(count: int, data: DataConfig) -> dict[str, tuple[int, int]]:
    """Split `count` records into train, then val, then test; no part that is wanted stays empty.

    Raises DataError if there are too few.
    """
    val, test = (float(share > 0) for share in (data.val_fraction, data.test_fraction))
    needed = 1 + int(val) + int(test)
    if count < needed:
        what = f"{count} record{'s' if count != 1 else ''}, and its parts need {needed}"
        raise DataError(data.source, what, "use a longer list, or set data.val_fraction=0")
    tests = max(int(test), int(count * Fraction(str(data.test_fraction))))
    vals = max(int(val), int(count * Fraction(str(data.val_fraction))))
    train = max(1, count - vals - tests)
    tests = min(tests, count - train - int(val))
    return {"train": (0, train), "val": (train, count - tests), "test": (count - tests, count)}


def refuse_empty(bounds: Mapping[str, tuple[int, int]], data: DataConfig, count: int) -> None:
    """Raise DataError if a part that is wanted has no records, since equal ones are in one part."""
    for name, (first, last) in bounds.items():
        if first == last and (name == "train" or getattr(data, f"{name}_fraction")):
            what = (
                f"so many of its {count:,} records are equal that none is left for the {name} part"
            )
            raise DataError(data.source, what, "use data.unique=true, or another list")


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
    """Write the ids of a text to a new `folder`, which appears only if that succeeds.

    A text that the scan does not hold is read again.

    Raises:
        DataError: The text changed since it was scanned, or has a character without an id.
        MachineError: The disk or its permissions refuse.
    """
    dtype, digest = id_dtype(tokenizer.vocab_size), hashlib.sha256()
    facts: dict[str, Any] = {
        "kind": "tokens",
        "source": source.name,
        "source_sha256": scan.sha256,
        "joiner": data.joiner,
        "source_files": source.files,
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
    held, scan.held = scan.held, None
    read = read_symbols(source, data, digest.update, [], partial(progress, "encoding"))
    pieces = gathered(read) if held is None else iter(held)
    with new_folder(folder, facts) as temporary, (temporary / IDS).open("wb") as file:
        if data.records == "none":
            for symbols in pieces:
                file.write(table.take(symbols).data)
        else:
            with (temporary / INDEX).open("wb") as index:
                writer = PartWriter(file, index, dtype, tokenizer.vocab_size - 1)
                cut = Cutter.of(data, source.name).cut(pieces)
                facts |= _write_records(cut, data, scan, table, temporary, writer)
        if held is None and digest.hexdigest() != scan.sha256:
            raise changed_meanwhile(source.name)
    return _corpus(folder, read_manifest(folder))


def _write_records(
    cut: Iterator[Records],
    data: DataConfig,
    scan: Scan,
    table: Symbols,
    scratch: Path,
    writer: PartWriter,
) -> dict[str, Any]:
    """Write records in their own order, part by part; return the facts about them."""
    sorter, seen = Sorter(scratch, writer.dtype, scan.size), 0
    total = scan.records.records if scan.records else 0
    for records in cut:
        if data.shuffle:
            keys = keys_of(records, data.seed)
        else:  # the order of the text
            steps = np.arange(seen, seen + len(records.lengths), dtype=np.uint64)
            keys = steps * np.uint64(2**64 // (total + 1))
        sorter.add(Records(table.take(records.symbols), records.lengths), keys)
        seen += len(records.lengths)
    count = sorter.count(data.unique)
    bounds = record_bounds(count, data)
    if not data.unique:
        bounds = cuts_between_repeats(sorter, bounds)
        refuse_empty(bounds, data, count)
    splits, borders = write_parts(sorter.sorted(data.unique), bounds, writer)
    facts = {
        "size": writer.size,
        "splits": {name: list(pair) for name, pair in splits.items()},
        "records": data.records,
        "borders": {name: list(pair) for name, pair in borders.items()},
    }
    return facts | {"repeats": total - count} if data.unique else facts


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
    source_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    joiner: str | None = None  # None: files were joined with nothing, in the order p1, p10, p2
    source_files: Count | None = None  # of a folder or pattern
    unit: str
    size: Count
    vocab_size: Count
    dtype: str
    splits: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]]
    records: str | None = None  # what one is; None: this is one text
    borders: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]] | None = None


def _corpus(folder: Path, facts: Mapping[str, Any]) -> Corpus:
    try:
        known = _Facts.model_validate(facts)
        dtype = id_dtype(known.vocab_size)
        bounds = {name: known.splits[name] for name in ("train", "val", "test")}
        ends = [end for pair in bounds.values() for end in pair]
        if known.dtype != dtype.str or ends != sorted([0, *ends[1:-1], known.size]):
            raise ValueError("dtype, size or splits")
        if known.borders is not None:
            ends = [end for name in bounds for end in known.borders[name]]
            if ends != sorted([0, *ends[1:]]) or len(known.borders) != len(bounds):
                raise ValueError("borders")
    except (KeyError, ValueError) as error:
        what = f"its manifest is incomplete ({reason(error)})"
        raise CheckpointError(folder, what, RESTORE) from None
    tokens = TokenFile(folder / IDS, dtype, known.size)
    splits = {name: Split(tokens, first, stop) for name, (first, stop) in bounds.items()}
    if known.borders is not None:
        index = TokenFile(folder / INDEX, BORDERS, max(stop for _, stop in known.borders.values()))
        for name, (first, stop) in known.borders.items():
            borders = Split(index, first, stop)
            boundary = known.vocab_size - 1
            splits[name] = replace(splits[name], borders=borders, boundary=boundary)
    return Corpus(splits, facts)


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest little-endian unsigned type that holds every id."""
    return np.dtype("u1" if vocab_size <= 1 << 8 else "<u2" if vocab_size <= 1 << 16 else "<u4")


def not_in_alphabet(strange: Sequence[str], tokenizer: Tokenizer) -> str:
    """Name characters of a text that a run's tokenizer lacks."""
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in strange[:4])
    more = f" and {len(strange) - 4} more" if len(strange) > 4 else ""
    size = tokenizer.vocab_size
    verb = "is" if len(strange) == 1 else "are"
    return f"{shown}{more} {verb} not in the alphabet of this run, which has {size} symbols"
