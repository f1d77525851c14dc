"""What symbols cost that are rare, or that the training part does not have."""

import math

import numpy as np
import numpy.typing as npt

from charlm.config import DataConfig
from charlm.errors import number_of
from charlm.text.corpus import Corpus
from charlm.text.scan import Scan
from charlm.text.tokenizer import BOUNDARY, CharTokenizer, Tokenizer, code_points
from charlm.text.tokens import Ids

FEW, ONCE = 5, 2  # symbols that occur fewer times are rare
RARE_SYMBOLS, RARE_SHARE = 50, 0.05  # how many, of all symbols, are worth a note
MOST_NATS = 0.02  # a character, that joining rare symbols may add to the loss
SEEN_NATS = 0.005  # added to the mean loss of a character: what is worth a note
CODE_POINTS = 0x110000  # of Unicode
OFTEN = 100  # a symbol that occurs more often is in each part, unless the text is very odd
CHUNK = 1 << 20  # ids at a time


def rare_note(scan: Scan, data: DataConfig) -> str | None:
    """Say how many symbols are rare, if they are many and `data.min_count` could join them cheaply."""
    if data.unit == "bytes" or data.min_count > 1:
        return None
    counts = scan.counts.copy()
    counts[ord(BOUNDARY)] *= scan.records is None
    kinds, few, once = int((counts >= 1).sum()), _below(counts, FEW), _below(counts, ONCE)
    for least, joined in ((FEW, few), (ONCE, once)):
        if joined < max(RARE_SYMBOLS, RARE_SHARE * kinds):
            continue
        if (nats := added_nats(counts, least)) <= MOST_NATS:
            return (
                f"{few:,} of {kinds:,} different characters occur fewer than {FEW} times ({once:,} of them "
                "once), and yet each takes time in every training step; "
                f"data.min_count={least} lets {joined:,} share one symbol, and adds about {nats:.1g} nats to "
                "the loss"
            )
    return None


def added_nats(counts: npt.NDArray[np.int64], least: int) -> float:
    """Return what joining symbols that occur fewer than `least` times adds to the loss of a character.

    In nats, for a model that knows how often each symbol occurs and no more.
    """
    size = counts.sum()
    rare = counts[(counts >= 1) & (counts < least)]
    if not len(rare):
        return 0.0
    share = rare.sum() / size
    apart = (rare / size * np.log(size / rare)).sum()
    return float(share * (math.log(CODE_POINTS) - math.log(share)) - apart)


def unseen_note(scan: Scan, corpus: Corpus, tokenizer: Tokenizer) -> str | None:
    """Say which symbols stand in the validation part only, if that can be seen in its loss.

    What a model gives to a symbol that it has never met is about as much as if it had met it once.
    """
    if not isinstance(tokenizer, CharTokenizer) or len(val := corpus.splits["val"]) < 2:
        return None
    size, V = len(val), tokenizer.vocab_size
    each = math.log(max(2, len(corpus.splits["train"])))
    total = scan.counts[code_points(tokenizer.alphabet)]
    if total[total <= OFTEN].sum() * each < SEEN_NATS * size:  # see `may_be_unseen`
        return None
    in_val = counted(val, V)
    only = (in_val > 0) & (total <= in_val + counted(corpus.splits["test"], V))
    for special in (tokenizer.escape, tokenizer.boundary):
        if special is not None:
            only[special] = False
    chars = int(in_val[only].sum())
    if chars * each < SEEN_NATS * size:
        return None
    stand = number_of(int(only.sum()), "character stands", "characters stand")
    named = [repr(tokenizer.alphabet[i]) for i in np.flatnonzero(only)]
    named[FEW:] = ["..."] * (len(named) > FEW)
    times = f"{', '.join(named)}; {number_of(chars, 'time')}"
    return (
        f"{stand} in the validation part only ({times}), where no model can learn "
        f"from it: about {each / math.log(2):.0f} bits each time, {chars * each / size:.2g} nats of the "
        "whole loss"
    )


def may_be_unseen(scan: Scan, data: DataConfig) -> bool:
    """Tell whether there are enough rare symbols for a note of `unseen_note`, whatever parts they are in."""
    if data.unit == "bytes" or not data.val_fraction:
        return False
    rare = scan.counts[(scan.counts >= data.min_count) & (scan.counts <= OFTEN)].sum()
    return bool(rare * math.log(max(2, scan.size)) >= SEEN_NATS * data.val_fraction * scan.size)


def counted(ids: Ids, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return how often each id occurs, (V,)."""
    found = np.zeros(vocab_size, np.int64)
    for first in range(0, len(ids), CHUNK):
        some = ids.read(first, min(CHUNK, len(ids) - first))
        found += np.bincount(some, minlength=vocab_size)
    return found


def _below(counts: npt.NDArray[np.int64], most: int) -> int:
    return int(((counts >= 1) & (counts < most)).sum())
