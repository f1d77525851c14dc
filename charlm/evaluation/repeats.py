"""How much of a text also stands in another, such as validation text in the training part.

A model that has read a text predicts it too well, so its loss there says nothing about new text. Two
texts are compared by hashes: stretches of 64 symbols at any place, and whole lines, because a list
may be repeated in another order. Hashes of 64 bits are equal by chance once in 10^13 cases here.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.text.corpus import Corpus
from charlm.text.tokenizer import CharTokenizer, Tokenizer
from charlm.text.tokens import Ids

Hashes = npt.NDArray[np.uint64]

STRETCH = 64  # symbols; a power of 2
MOST_STRETCHES = 2_048
CHUNK = 1 << 18  # symbols at a time: their hashes fit into a CPU's cache
MOST_CHUNKS = 128  # of the other text, spread evenly over it: 32 Mi symbols, under 2 seconds
MOST_LINES = 1 << 20  # symbols at the start of the text whose lines are looked up
# A part that is shorter is no measure anyway. A list of names, Shakespeare's
# verse and Python's code and docs repeat up to 8 % of their stretches and 18 % of their lines.
LEAST = 1_024  # symbols
COPIED_STRETCHES, COPIED_LINES = 0.2, 0.5
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd


def validation_notes(corpus: Corpus, tokenizer: Tokenizer) -> list[str]:
    """Note validation text that also stands in the training part of a corpus."""
    note = copy_note(corpus.splits["val"], corpus.splits["train"], tokenizer)
    return [note] if note else []


def copy_note(text: Ids, train: Ids, tokenizer: Tokenizer, what: str = "validation") -> str | None:
    """Return a note if much of a text, named `what`, also stands in the training part."""
    if len(text) < LEAST:
        return None
    symbols = "characters" if tokenizer.unit == "chars" else "bytes"
    share, of = share_of_stretches(text, train), f"stretches of {STRETCH} {symbols}"
    if share < COPIED_STRETCHES:
        newline = _newline(tokenizer)
        of = "lines" if text.boundary is None else "records"
        share = 0.0 if newline is None else share_of_lines(text, train, newline)
        if share < COPIED_LINES:
            return None
    found = f"{100 * share:.0f} % of its {of} also stand in the training part"
    return f"{what}: {found}, so its loss shows what was memorised, not what was learned"


def _newline(tokenizer: Tokenizer) -> int | None:
    if tokenizer.boundary is not None:
        return tokenizer.boundary
    if isinstance(tokenizer, CharTokenizer) and "\n" not in tokenizer.alphabet:
        return None
    return int(tokenizer.encode("\n")[0])


def share_of_stretches(text: Ids, other: Ids) -> float:
    """Return the share of a text's stretches, spread evenly, that stand in another text.

    0 for a text shorter than a stretch.
    """
    count = min(MOST_STRETCHES, len(text) // STRETCH)
    starts = np.arange(count, dtype=np.int64) * (len(text) - STRETCH) // max(1, count - 1)
    rows = [text.read(int(start), STRETCH) for start in starts]
    wanted = np.array([_rolling(row)[0] for row in rows], np.uint64)
    return _share(wanted, (_rolling(ids) for ids in _chunks(other, STRETCH - 1)))


def share_of_lines(text: Ids, other: Ids, newline: int) -> float:
    """Return the share of a text's lines that are also lines of another text."""
    wanted = _lines(text.read(0, min(len(text), MOST_LINES)), newline)
    # A line at the end of a chunk may be cut: it is whole at the start of the next one.
    chunks = _chunks(other, CHUNK // 4)
    return _share(wanted, (_lines(ids, newline) for ids in chunks))


def _share(wanted: Hashes, others: Iterator[Hashes]) -> float:
    if not len(wanted):
        return 0.0
    kinds, places = np.unique(wanted, return_inverse=True)
    found = np.zeros(len(kinds), bool)
    # Most of the others are not wanted: 16 bits tell, without a search.
    perhaps = np.zeros(1 << 16, bool)
    perhaps[_mixed(kinds)] = True
    for hashes in others:
        some = hashes[perhaps[_mixed(hashes)]]
        at = np.searchsorted(kinds, some).clip(max=len(kinds) - 1)
        found[at[kinds[at] == some]] = True
    return float(found[places].mean())


def _mixed(hashes: Hashes) -> npt.NDArray[np.uint64]:
    return (hashes * _BASE) >> np.uint64(48)


def _chunks(text: Ids, overlap: int) -> Iterator[npt.NDArray[np.integer[Any]]]:
    count = -(-len(text) // CHUNK)
    step = max(1, -(-count // MOST_CHUNKS))
    for first in range(0, len(text), step * CHUNK):
        yield text.read(first, min(CHUNK + overlap, len(text) - first))


def _rolling(ids: npt.NDArray[np.integer[Any]]) -> Hashes:
    """Return the hash of the stretch at each position, (N - 63,): a polynomial modulo 2^64."""
    hashes, power, length = ids.astype(np.uint64) + np.uint64(1), _BASE, 1
    with np.errstate(over="ignore"):
        while length < STRETCH:
            hashes = hashes[:-length] * power + hashes[length:]
            power, length = power * power, 2 * length
    return hashes


def _lines(ids: npt.NDArray[np.integer[Any]], newline: int) -> Hashes:
    """Return the hashes of the whole lines of a text that are not empty."""
    ends = np.flatnonzero(ids == newline)
    if len(ends) < 2:
        return np.empty(0, np.uint64)
    starts = ends[:-1] + 1  # the first line may be cut
    inside = ids[starts[0] : ends[-1] + 1].astype(np.uint64) + np.uint64(1)
    starts = starts - starts[0]
    lengths = np.diff(starts, append=len(inside))
    place = np.arange(len(inside)) - np.repeat(starts, lengths)
    powers = np.cumprod(np.full(int(lengths.max()), _BASE))
    hashes: Hashes = np.add.reduceat(inside * powers[place], starts)[lengths > 1]
    return hashes
