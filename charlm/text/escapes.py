"""Rare characters: those that a text has fewer than `data.min_count` times share one id, the escape.

A text of many kinds of characters, such as Chinese or source code, has thousands that occur once or
twice. A model can learn nothing about them, and each of its steps pays for all of them. So they become
one symbol, "some rare character"; characters that the text does not have are read as it, too.

Which character an escape stands for is not lost. The code points of all escapes are kept beside the
ids, with their places, and each costs what a uniform code over the code points outside the alphabet
takes, ln(1,114,112 - V) nats, beside the model's own nats for the escape (see
`charlm.evaluation.unknown`). So losses stay comparable, whatever the alphabet.
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from charlm.text.tokenizer import REPLACEMENT, CharTokenizer, Tokenizer, code_points
from charlm.text.tokens import CODE_BITS, ESCAPES, Ids, Split, id_dtype

CHUNK = 1 << 20  # escapes at a time

Codes = npt.NDArray[np.uint32]
NONE = np.empty(0, np.uint32)


@runtime_checkable
class Writable(Protocol):
    """What bytes are written to."""

    def write(self, data: memoryview, /) -> object:
        """Take bytes."""


class IdWriter:
    """Writes the ids of a text, and apart from them which character each escape stands for.

    While a text is encoded, the characters `strange` to its alphabet have ids of their own, from V on.

    Args:
        file: Takes the ids.
        tokenizer: Of the text.
        strange: The characters of the text that it lacks, in Unicode order.
        escapes: Takes the escapes; None: there are none.
    """

    def __init__(
        self,
        file: Writable,
        tokenizer: Tokenizer,
        strange: Sequence[str] = (),
        escapes: BinaryIO | None = None,
    ) -> None:
        self._file, self._escapes, self._tokenizer = file, escapes, tokenizer
        self._codes = code_points("".join(strange))
        self.wide = id_dtype(tokenizer.vocab_size + len(strange))  # what holds all ids
        self.size = self.escaped = 0  # ids so far, and how many of them are escapes

    def table(self) -> npt.NDArray[Any]:
        """Return a table from code point (or byte) to id, to encode the text."""
        if not isinstance(self._tokenizer, CharTokenizer):
            return np.arange(256, dtype=self.wide)
        table = self._tokenizer.table(self.wide)
        table[self._codes] = self._tokenizer.vocab_size + np.arange(len(self._codes))
        return table

    def write(self, ids: npt.NDArray[Any]) -> None:
        """Write ids of this table, (N,)."""
        if self._escapes is not None:
            rare = np.flatnonzero(ids >= self._tokenizer.vocab_size)
            codes = self._codes[ids[rare] - self._tokenizer.vocab_size]
            found = ((rare + self.size) << CODE_BITS) | codes
            self._escapes.write(found.astype(ESCAPES).data)
            self.escaped += len(rare)
            ids = ids.copy()
            ids[rare] = self._tokenizer.escape
        self._file.write(ids.astype(id_dtype(self._tokenizer.vocab_size), copy=False).data)
        self.size += len(ids)


def escaped(ids: Ids, first: int = 0, count: int | None = None) -> Iterator[Codes]:
    """Yield the code points of the escapes among `count` ids from position `first`, in order.

    Those of ids in memory are not known: they are U+FFFD.
    """
    stop = len(ids) if count is None else first + count
    if isinstance(ids, Split) and ids.escapes is not None:
        found = ids.escapes.between(ids.start + first, ids.start + stop)
        for at in range(0, len(found), CHUNK):
            codes = found.read(at, min(CHUNK, len(found) - at)).astype(np.uint64)
            yield (codes & np.uint64((1 << CODE_BITS) - 1)).astype(np.uint32)
    elif ids.escape is not None:
        among = count_escapes(ids.read(first, stop - first), ids.escape)
        yield np.full(among, ord(REPLACEMENT), np.uint32)


def count_escapes(ids: npt.NDArray[Any], escape: int | None) -> int:
    """Return how many of some ids are escapes."""
    return 0 if escape is None else int((ids == escape).sum())


def utf8_sizes(codes: Codes) -> npt.NDArray[np.int64]:
    """Return the length of each character in UTF-8, in bytes."""
    return np.searchsorted([0x80, 0x800, 0x10000], codes, side="right") + 1


def utf8_size(codes: Codes) -> int:
    """Return the length of characters in UTF-8, in bytes."""
    return int(utf8_sizes(codes).sum())
