"""The longest span of a text that also stands in a part, word for word.

The texts and a piece of the part are sorted together by all their suffixes. Of a suffix of a text,
the longest match in the piece is with the nearest suffix of the piece before or after it; how many
symbols they share is the least of the common prefixes of the neighbours between them (Kasai et al.
2001). So all places of all texts are matched at once, in time that grows with the part alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydivsufsort import divsufsort, kasai

from charlm.evaluation.known import Progress
from charlm.text.raw import as_bytes
from charlm.text.tokenizer import CharTokenizer, Tokenizer, code_points
from charlm.text.tokens import Ids, id_dtype

PIECE = 1 << 22  # symbols of the part at a time, or as many as the texts have: about 40 bytes each
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Copied:
    """The longest copied span of each text: where it begins and its length in symbols, (N,)."""

    starts: Numbers
    lengths: Numbers


def longest_copied(
    texts: Sequence[str],
    part: Ids,
    tokenizer: Tokenizer,
    progress: Progress = lambda step, done, total: None,
) -> Copied:
    """Return the longest span of each text that also stands in a part, within one record.

    Symbols are characters, or bytes of a model of bytes. Spans end at characters that are not in the
    alphabet.
    """
    missing = tokenizer.vocab_size  # an id that the part has not: ends each text, or is unknown
    coded = [_ids(text, tokenizer) for text in texts]
    lengths = np.array([len(ids) for ids in coded], np.int64)
    joined = np.concatenate([np.append(ids, missing) for ids in coded])
    joined = joined.astype(id_dtype(missing + 1))
    matched = np.zeros(len(joined), np.int64)
    size = max(PIECE, len(joined))
    for piece in _pieces(part, size, int(lengths.max())):
        matched = np.maximum(matched, _matched(joined, piece.astype(joined.dtype)))
        progress("searching", min(size, len(piece)), len(part))
    starts = np.cumsum(lengths + 1) - lengths - 1
    best = [int(a + matched[a : a + n].argmax()) for a, n in zip(starts, lengths + 1, strict=True)]
    return Copied(np.array(best) - starts, matched[best])


def _ids(text: str, tokenizer: Tokenizer) -> Numbers:
    """Return the ids of a text; what the tokenizer lacks has the first id that is free."""
    if not isinstance(tokenizer, CharTokenizer):
        return np.frombuffer(as_bytes(text), np.uint8).astype(np.int64)
    known, codes = code_points(tokenizer.alphabet), code_points(text)
    at = np.searchsorted(known, codes).clip(max=len(known) - 1)
    return np.where(known[at] == codes, at, len(known))


def _pieces(part: Ids, size: int, longest: int) -> Iterator[npt.NDArray[np.integer]]:
    """Yield pieces of a part that overlap, so that no span is lost between two."""
    for first in range(0, max(1, len(part) - longest), size):
        yield part.read(first, min(size + longest, len(part) - first))


def _matched(texts: npt.NDArray[np.integer], piece: npt.NDArray[np.integer]) -> Numbers:
    """Return how many symbols from each place of `texts` on also stand in a piece, (N,)."""
    both = np.concatenate([texts, piece])
    suffixes = divsufsort(both)
    shared = kasai(both, suffixes)[:-1].astype(np.int64)  # by each suffix and the next
    of_piece = suffixes >= len(texts)
    before = np.append(0, _least_since(shared, of_piece[:-1]))
    after = np.append(_least_since(shared[::-1], of_piece[:0:-1])[::-1], 0)
    matched = np.zeros(len(both), np.int64)
    matched[suffixes] = np.maximum(before, after)
    return matched[: len(texts)]


def _least_since(values: Numbers, begins: npt.NDArray[np.bool_]) -> Numbers:
    """Return the least value since the last place where `begins` is set, inclusive; 0 before any."""
    many = np.cumsum(begins)
    step = int(values.max(initial=0)) + 1
    # Each stretch lies below all before it, so that the least so far is the least of the stretch.
    falling = np.where(many > 0, values, 0) - many * step
    least: Numbers = np.minimum.accumulate(falling) + many * step
    return least
