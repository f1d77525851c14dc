"""The first pass over a text: its length, its alphabet, its checksum, and what it is like."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from charlm.config import DataConfig
from charlm.errors import DataError, Phrase, Setting, number_of
from charlm.storage.atomic import shared_place
from charlm.text.large import Counted, count_symbols, first_symbols
from charlm.text.parts import split_bounds
from charlm.text.reading import Symbols, empty_text, gathered, read_symbols, table_note
from charlm.text.records import Cutter, Tally
from charlm.text.sources import Source
from charlm.text.survey import Survey
from charlm.text.tokenizer import (
    BOUNDARY,
    CODE_POINTS,
    ESCAPE,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
)

HELD_BYTES = 1 << 26  # of a text of many files, which take long to open, between the two passes
_NO_BYTES = hashlib.sha256().hexdigest()
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
    counted: Counted | None = None  # of a large text

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


def scan_text(
    source: Source,
    data: DataConfig,
    progress: Progress = lambda what, read: None,
    survey: Survey | None = None,
    begun: Path | None = None,
) -> Scan:
    """Read a text once for its length, alphabet and checksum; show its records to a survey.

    Args:
        source: The text.
        data: How it is read.
        progress: Called often; may raise to stop.
        survey: Looks at its records, or its lines.
        begun: The folder for which `encode_corpus` with `resumable` may have been begun: what was
            counted of a large text then is not counted again.

    Raises:
        DataError: The text is empty, not decodable, compressed or binary; names part, byte and line.
        MachineError: It cannot be read.
    """
    notes = [*source.notes]
    if survey and (note := table_note(source, data)):
        notes.append(note)
        survey.is_table = True
    sees_all = survey is not None and survey.most is None
    kept, reading = begun and shared_place(begun), partial(progress, "reading")
    if not sees_all and (counted := count_symbols(source, data, reading, kept)):
        scan = _of_counted(counted, data, notes, survey)
    else:
        scan = _read_through(source, data, progress, notes, survey)
    counts = scan.counts
    if not scan.size:
        raise empty_text(source, data, scan.sha256 == _NO_BYTES)
    if data.min_count > 1 and counts[ord(ESCAPE)]:
        mend = Phrase("remove it, or use {}", Setting("data.min_count", 1))
        raise DataError(source.name, "holds U+10FFFE, which stands for rare characters", mend)
    if counts[ord("\r")] and data.unit == "chars":
        returns = "the text has carriage returns (\\r; Windows ends lines with \\r\\n), which are learned too"
        notes.append(f"{returns}; data.newlines=lf makes each line end a \\n")
    if np.count_nonzero(counts) == 1:
        notes.append("only one distinct symbol: there is nothing to learn")
    return scan


def _of_counted(
    counted: Counted, data: DataConfig, notes: list[str], survey: Survey | None
) -> Scan:
    """Return what is known of a large text; show its start to a survey."""
    notes += counted.plan.notes
    counts = counted.table(_kinds(data))
    if survey and data.unit == "chars":
        for piece in first_symbols(counted, data):
            survey.push(piece)
            if survey.ended:
                break
    closed = survey and survey.close()
    return Scan(sum(counted.sizes), counted.sha256, counts, notes, survey=closed, counted=counted)


def _read_through(
    source: Source, data: DataConfig, progress: Progress, notes: list[str], survey: Survey | None
) -> Scan:
    """Read a text from its start to its end, and hold it if it is short and of many files."""
    size, digest = 0, hashlib.sha256()
    counts = np.zeros(_kinds(data), np.int64)
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
    return Scan(size, digest.hexdigest(), counts, notes, held, tally, survey and survey.close())


def _kinds(data: DataConfig) -> int:
    """Return how many symbols there may be."""
    return 256 if data.unit == "bytes" else CODE_POINTS


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
