"""Texts as records, and which of them a part holds as a whole.

A part is compared by hashes of its records, 8 bytes each. Two texts are taken for equal by chance
once in 10^13 cases for a list of a million.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from charlm.evaluation.records import RECORDS
from charlm.text.borders import Borders
from charlm.text.escapes import escaped
from charlm.text.records import Records, keys_of
from charlm.text.tokenizer import CharTokenizer, Tokenizer, code_points, of_code_points
from charlm.text.tokens import Ids

SYMBOLS = 1 << 22  # of records that are read at a time, about

Progress = Callable[[str, int, int], None]  # a step's name, what is newly done, and its total


class Known:
    """The records of a part, to tell which texts are among them.

    Args:
        keys: Hashes of the records, (R,), sorted.
    """

    def __init__(self, keys: npt.NDArray[np.uint64]) -> None:
        self.keys = keys

    @classmethod
    def of_part(
        cls,
        part: Ids,
        tokenizer: Tokenizer,
        progress: Progress = lambda step, done, total: None,
    ) -> "Known":
        """Read the records of a part, some at a time; `progress` counts them."""
        keys = np.empty(len(Borders(part)) - 1, np.uint64)
        done = 0
        for records in records_of(part, tokenizer):
            new = len(records.lengths)
            keys[done : done + new] = keys_of(records, 0)
            done += new
            progress("reading", new, len(keys))
        keys.sort()
        return cls(keys)

    def holds(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Tell for each text whether it is a record of the part, (N,); an empty one is none."""
        found = np.zeros(len(texts), bool)
        full = [i for i, text in enumerate(texts) if text]
        wanted = keys_of(as_records([texts[i] for i in full]), 0)
        if len(wanted) and len(self.keys):
            at = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
            found[full] = self.keys[at] == wanted
        return found


def records_of(part: Ids, tokenizer: Tokenizer, most: int | None = None) -> Iterator[Records]:
    """Yield the records of a part as code points; about `most` characters, spread over the part."""
    borders = Borders(part)
    count, apart = len(borders) - 1, most is not None and most < len(part) - 1
    chosen = max(1, count * most // (len(part) - 1)) if apart and most is not None else count
    at_once = max(1, min(RECORDS, SYMBOLS * count // len(part)))
    for first in range(0, chosen, at_once):
        number = min(at_once, chosen - first)
        if apart:
            ends = [borders.read((first + i) * count // chosen, 2) for i in range(number)]
            texts = [codes_of(part, tokenizer, int(a) + 1, int(b - a) - 1) for a, b in ends]
            yield Records(np.concatenate(texts), np.array([len(text) for text in texts], np.int64))
            continue
        places = borders.read(first, number + 1)
        text = codes_of(part, tokenizer, int(places[0]), int(places[-1] - places[0]))
        inside = np.ones(len(text), bool)
        inside[places[:-1] - places[0]] = False
        yield Records(text[inside], np.diff(places) - 1)


def codes_of(part: Ids, tokenizer: Tokenizer, first: int, count: int) -> npt.NDArray[np.uint32]:
    """Return the code points of some ids, (count,); those of escapes as the text had them."""
    assert isinstance(tokenizer, CharTokenizer)
    ids = part.read(first, count)
    codes: npt.NDArray[np.uint32] = code_points(tokenizer.alphabet)[ids]
    if part.escape is not None and (rare := ids == part.escape).any():
        codes[rare] = np.concatenate([*escaped(part, first, count)])
    return codes


def as_records(texts: Sequence[str]) -> Records:
    """Return texts as code points."""
    return Records(code_points("".join(texts)), np.array([len(text) for text in texts], np.int64))


def as_texts(records: Records) -> list[str]:
    """Return records as texts."""
    text, ends = of_code_points(records.symbols), np.cumsum(records.lengths).tolist()
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
