"""From a text to a corpus: scan its alphabet, encode it to a token file, split it.

A text is split by position, and a list of records by records, in an order of their own (see
`records`). The alphabet comes from the whole text; otherwise the validation part could have a character without
an id. So a text is read twice, in chunks, and memory does not grow with the text.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from charlm.config import DataConfig
from charlm.errors import CheckpointError, DataError, Phrase, Setting, number_of
from charlm.storage import new_folder, read_manifest, verify_folder
from charlm.storage.json_file import Count, reason
from charlm.text.escapes import IdWriter
from charlm.text.parts import record_bounds, refuse_empty, split_bounds
from charlm.text.reading import Symbols, empty_text, gathered, read_symbols, table_note
from charlm.text.records import Cutter, Records, Tally, keys_of
from charlm.text.shuffling import BORDERS, PartWriter, Sorter, cuts_between_repeats, write_parts
from charlm.text.sources import Source, changed_meanwhile
from charlm.text.survey import Survey
from charlm.text.tokenizer import (
    BOUNDARY,
    ESCAPE,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    not_in_alphabet,
)
from charlm.text.tokens import ESCAPES, RESTORE, Escapes, Split, TokenFile, id_dtype

IDS, INDEX, RARE = "ids.bin", "borders.bin", "escapes.bin"
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
    survey: Survey | None = None  # of its records or lines, if it was asked for

    def tokenizer(self, data: DataConfig) -> Tokenizer:
        """Return a tokenizer for all characters that are not rare.

        Raises DataError if there are too many, or none.
        """
        if data.unit == "bytes":
            return ByteTokenizer()
        codes = np.flatnonzero(self.counts >= data.min_count)
        if not len(codes) or (self.records and codes[0] == ord(BOUNDARY)):
            what = f"no character of {data.source} occurs {number_of(data.min_count, 'time')}"
            raise DataError(Setting("data.min_count", data.min_count), what, "lower it")
        if len(codes) > data.max_vocab:
            rare = codes[np.argsort(self.counts[codes], kind="stable")][:3]
            shown = ", ".join(f"{chr(c)!r} ({self.counts[c]}x)" for c in rare)
            raise DataError(
                data.source,
                f"{len(codes):,} distinct characters (rarest: {shown}), more than the limit of "
                f"{data.max_vocab:,}",
                Phrase(
                    "set {}, {} or {}",
                    Setting("data.max_vocab", len(codes)),
                    Setting("data.min_count", max(2, data.min_count + 1)),
                    _BYTES,
                ),
            )
        return CharTokenizer(map(chr, codes), self.records is not None, data.min_count > 1)

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
    source: Source,
    data: DataConfig,
    progress: Progress = lambda what, read: None,
    survey: Survey | None = None,
) -> Scan:
    """Read a text once for its length, alphabet and checksum; show its records to a survey.

    Raises:
        DataError: The text is empty, not decodable, compressed or binary; names part, byte and line.
        MachineError: It cannot be read.
    """
    size, digest = 0, hashlib.sha256()
    notes = [*source.notes]
    if survey and (note := table_note(source, data)):
        notes.append(note)
        survey.is_table = True
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
    for symbols in _shown(survey, pieces(), cutter):
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
    if data.min_count > 1 and counts[ord(ESCAPE)]:
        mend = Phrase("remove it, or use {}", Setting("data.min_count", 1))
        raise DataError(source.name, "holds U+10FFFE, which stands for rare characters", mend)
    if counts[ord("\r")] and data.unit == "chars":
        kept = "the text has carriage returns (\\r; Windows ends lines with \\r\\n), which are learned too"
        notes.append(f"{kept}; data.newlines=lf makes each line end a \\n")
    if np.count_nonzero(counts) == 1:
        notes.append("only one distinct symbol: there is nothing to learn")
    return Scan(size, digest.hexdigest(), counts, notes, held, tally, survey and survey.close())


def _shown(
    survey: Survey | None, pieces: Iterator[Symbols], cutter: Cutter | None
) -> Iterator[Symbols]:
    """Yield the symbols of a text, those of its records if it is cut, and show them to a survey."""
    if not cutter:
        for piece in pieces:
            if survey and survey.data.unit == "chars":
                survey.push(piece)
            yield piece
        return
    for records in cutter.cut(pieces):
        if survey and not survey.ended:
            survey.add(records)
            survey.empty = cutter.tally.empty
        yield records.symbols


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
    if (strange := scan.strange_to(tokenizer)) and tokenizer.escape is None:
        raise DataError(source.name, not_in_alphabet(strange, tokenizer))
    held, scan.held = scan.held, None
    read = read_symbols(source, data, digest.update, [], partial(progress, "encoding"))
    pieces = gathered(read) if held is None else iter(held)
    with new_folder(folder, facts) as temporary, ExitStack() as files:
        names = (IDS, INDEX, RARE)
        wanted = (True, data.records != "none", tokenizer.escape is not None)
        ids, index, rare = (
            files.enter_context((temporary / name).open("wb")) if one else None
            for name, one in zip(names, wanted, strict=True)
        )
        assert ids
        writer = IdWriter(ids, tokenizer, strange, rare)
        if index:
            parts = PartWriter(writer, index, tokenizer.vocab_size - 1)
            cut = Cutter.of(data, source.name).cut(pieces)
            facts |= _write_records(cut, data, scan, temporary, parts)
        else:
            table = writer.table()
            for symbols in pieces:
                writer.write(table.take(symbols))
        if rare:
            facts |= {"escape": tokenizer.escape, "escapes": writer.escaped}
            facts["distinct"] = tokenizer.vocab_size - 1 + len(strange)
        if held is None and digest.hexdigest() != scan.sha256:
            raise changed_meanwhile(source.name)
    return _corpus(folder, read_manifest(folder))


def _write_records(
    cut: Iterator[Records],
    data: DataConfig,
    scan: Scan,
    scratch: Path,
    writer: PartWriter,
) -> dict[str, Any]:
    """Write records in their own order, part by part; return the facts about them."""
    total = scan.records.records if scan.records else 0
    sorter, seen = Sorter(scratch, writer.ids.wide, scan.size, total), 0
    table = writer.ids.table()
    for records in cut:
        if data.shuffle:
            keys = keys_of(records, data.shuffle_seed)
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
        "size": writer.ids.size,
        "splits": {name: list(pair) for name, pair in splits.items()},
        "records": data.records,
        "shuffled": data.shuffle_seed if data.shuffle else None,
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
                what = f"holds id {ids.max()}, its alphabet has {number_of(vocab_size, 'symbol')}"
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
    escape: Count | None = None  # the id of rare characters
    escapes: Count = 0  # how many there are
    distinct: Count | None = None  # symbols of the text, rare ones too


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
        if (known.escape or 0) >= known.vocab_size:
            raise ValueError("escape")
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
    if known.escape is not None:
        found = Split(TokenFile(folder / RARE, ESCAPES, known.escapes), 0, known.escapes)
        escapes = Escapes(known.escape, found)
        splits = {name: replace(split, escapes=escapes) for name, split in splits.items()}
    return Corpus(splits, facts)
