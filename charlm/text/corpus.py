"""From a text to a corpus: scan its alphabet, encode it to a token file, split it.

A text is split by position, and a list of records by records, in an order of their own (see
`records`). The alphabet comes from the whole text; otherwise the validation part could have a character without
an id. So a text is read twice, in chunks, and memory does not grow with the text.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from charlm.config import DataConfig
from charlm.errors import CheckpointError, DataError, number_of
from charlm.storage import new_folder, read_manifest, verify_folder
from charlm.storage.json_file import Count, reason
from charlm.text.escapes import IdWriter
from charlm.text.large import IDS, RARE, working_files, write_ids
from charlm.text.parts import record_bounds, refuse_empty, split_bounds
from charlm.text.reading import gathered, read_symbols
from charlm.text.records import Cutter, Records, keys_of
from charlm.text.scan import Progress, Scan
from charlm.text.shuffling import BORDERS, PartWriter, Sorter, cuts_between_repeats, write_parts
from charlm.text.sources import Source, changed_meanwhile
from charlm.text.tokenizer import (
    Tokenizer,
    not_in_alphabet,
)
from charlm.text.tokens import ESCAPES, RESTORE, Escapes, Split, TokenFile, id_dtype

INDEX = "borders.bin"
_CHECKED = 1 << 20  # ids at a time


@dataclass(frozen=True)
class Corpus:
    """A text as ids on disk, split into parts, with the facts of its manifest (see `_Facts`)."""

    splits: Mapping[str, Split]  # `train`, `val` and `test`; a part may be empty
    facts: Mapping[str, Any]


def encode_corpus(
    source: Source,
    data: DataConfig,
    scan: Scan,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress = lambda what, read: None,
    *,
    resumable: bool = False,
) -> Corpus:
    """Write the ids of a text to a new `folder`, which appears only if that succeeds.

    A text that the scan does not hold is read again. What is finished of a large one when this is
    killed or stopped stays beside `folder` if it is `resumable`, and the next call goes on with it.

    Raises:
        DataError: The text changed since it was scanned, or has a character without an id.
        MachineError: The disk or its permissions refuse.
    """
    dtype = id_dtype(tokenizer.vocab_size)
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
    hashes: dict[str, str] = {}
    large = scan.counted
    resumable, working = resumable and bool(large), working_files(large) if large else []
    with new_folder(folder, facts, hashes, resumable=resumable, apart=working) as temporary:
        if large:
            encoding = partial(progress, "encoding")
            hashes[IDS], escapes = write_ids(large, data, tokenizer, strange, temporary, encoding)
        else:
            found, escapes = _write_text(
                source, data, scan, tokenizer, strange, temporary, progress
            )
            facts |= found
        if tokenizer.escape is not None:
            facts |= {"escape": tokenizer.escape, "escapes": escapes}
            facts["distinct"] = tokenizer.vocab_size - 1 + len(strange)
    return _corpus(folder, read_manifest(folder))


def _write_text(
    source: Source,
    data: DataConfig,
    scan: Scan,
    tokenizer: Tokenizer,
    strange: Sequence[str],
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], int]:
    """Read a text from its start and write its ids; return facts about it, and the number of escapes."""
    digest = hashlib.sha256()
    facts: dict[str, Any] = {}
    held, scan.held = scan.held, None
    read = read_symbols(source, data, digest.update, [], partial(progress, "encoding"))
    pieces = gathered(read) if held is None else iter(held)
    with ExitStack() as files:
        names = (IDS, INDEX, RARE)
        wanted = (True, data.records != "none", tokenizer.escape is not None)
        ids, index, rare = (
            files.enter_context((folder / name).open("wb")) if one else None
            for name, one in zip(names, wanted, strict=True)
        )
        assert ids
        writer = IdWriter(ids, tokenizer, strange, rare)
        if index:
            parts = PartWriter(writer, index, tokenizer.vocab_size - 1)
            cut = Cutter.of(data, source.name).cut(pieces)
            facts = _write_records(cut, data, scan, folder, parts)
        else:
            table = writer.table()
            for symbols in pieces:
                writer.write(table.take(symbols))
    if held is None and digest.hexdigest() != scan.sha256:
        raise changed_meanwhile(source.name)
    return facts, writer.escaped


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


def open_corpus(folder: Path, *, checked: bool = False) -> Corpus:
    """Open a corpus that `encode_corpus` wrote.

    If another process has just written or `checked` it, only its manifest and sizes are checked, which
    takes no time even if the text is large.

    Raises DataError if its file of ids is truncated, and CheckpointError if the folder is missing,
    otherwise damaged, or has invalid ids.
    """
    if checked:
        return _corpus(folder, read_manifest(folder, RESTORE))
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
