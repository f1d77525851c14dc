"""Some texts of a part or a file, spread evenly over it: records, or stretches of one text."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from charlm.config import DataConfig
from charlm.evaluation.known import as_texts, codes_of, records_of
from charlm.text.borders import Borders
from charlm.text.columns import as_table_or_text
from charlm.text.raw import decoded
from charlm.text.reading import empty_text, gathered, read_symbols
from charlm.text.records import Cutter
from charlm.text.sources import Source
from charlm.text.tokenizer import Tokenizer, of_code_points
from charlm.text.tokens import Ids

FINER = 8  # times as many texts are kept as are chosen, so that the last are as likely as the first

Symbols = npt.NDArray[np.integer]


class Chosen(NamedTuple):
    """Some texts, and of how many they were chosen."""

    texts: list[str]
    of: int


def texts_of_part(part: Ids, tokenizer: Tokenizer, count: int, length: int) -> Chosen:
    """Return at most `count` records of a part, or stretches of `length` symbols of one text."""
    if part.boundary is not None:
        many = len(Borders(part)) - 1
        symbols = -(-min(count, many) * (len(part) - 1) // many)
        found = (text for some in records_of(part, tokenizer, symbols) for text in as_texts(some))
        return Chosen([text for text, _ in zip(found, range(count), strict=False)], many)
    length = min(length, len(part))
    many = len(part) // length
    count = min(count, many)
    starts = np.arange(count) * (len(part) - length) // max(1, count - 1)
    if tokenizer.unit == "bytes":
        return Chosen([tokenizer.decode(part.read(int(at), length)) for at in starts], many)
    pieces = (codes_of(part, tokenizer, int(at), length) for at in starts)
    return Chosen([of_code_points(codes) for codes in pieces], many)


def texts_of_source(
    source: Source,
    data: DataConfig,
    count: int,
    length: int,
    notes: list[str],
    progress: Callable[[int], None] = lambda read: None,
) -> Chosen:
    """Return at most `count` records of a text, cut as `data` says, or stretches of `length` symbols.

    It may have characters that a model lacks. `notes` gets remarks for the user, `progress` the bytes
    that were read. Raises DataError if the text cannot be read, or is empty.
    """
    data = as_table_or_text(data, source)
    chunks = gathered(read_symbols(source, data, lambda read: None, notes, progress))
    if data.records == "none":
        of_codes = _of_bytes if data.unit == "bytes" else of_code_points
        chosen = evenly(map(of_codes, _stretches(chunks, length)), count)
    else:
        cutter = Cutter.of(data, source.name)
        cut = cutter.cut(chunks)
        chosen = evenly((text for records in cut for text in as_texts(records)), count)
        notes += cutter.tally.notes(data.records)
    if not chosen.texts:
        raise empty_text(source, data, False)
    return chosen


def evenly(texts: Iterable[str], count: int) -> Chosen:
    """Return at most `count` texts, spread evenly; not many more are in memory, however many there are."""
    kept: list[str] = []
    seen, step = 0, 1
    for seen, text in enumerate(texts, 1):
        if (seen - 1) % step == 0:
            kept.append(text)
            if len(kept) > FINER * count:
                kept, step = kept[::2], 2 * step
    count = min(count, len(kept))
    return Chosen([kept[i * len(kept) // count] for i in range(count)], seen)


def _stretches(chunks: Iterable[Symbols], length: int) -> Iterator[Symbols]:
    """Cut a text into stretches; a shorter rest is dropped unless it is all."""
    rest, whole = np.empty(0, np.uint8), False
    for chunk in chunks:
        rest = np.concatenate([rest, chunk])
        stop = len(rest) // length * length
        for first in range(0, stop, length):
            whole = True
            yield rest[first : first + length]
        rest = rest[stop:]
    if len(rest) and not whole:
        yield rest


def _of_bytes(symbols: Symbols) -> str:
    return decoded(symbols.astype(np.uint8).tobytes(), "bytes", "")
