"""Code a text with a model that begins with nothing, learns while it reads, and needs no run.

It computes in integers, so any machine decodes what another has encoded. Its symbols are the bytes
that the text has.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.coding import bits
from charlm.coding.coder import Tick
from charlm.coding.ranges import encoded_bits
from charlm.errors import DataError


class PortableCoder:
    """Codes the bytes of a text; `alphabet` has all that occur, in increasing order."""

    block_bytes = 1 << 17

    def __init__(self, alphabet: bytes) -> None:
        self.alphabet = np.frombuffer(alphabet, np.uint8)
        self._ids = np.zeros(256, np.uint8)
        self._ids[self.alphabet] = np.arange(len(alphabet))
        self._state = bits.new(len(alphabet))
        self.symbols = self.coded_bytes = 0

    def encode(self, text: bytes, tick: Tick) -> bytes:
        """Return the code of the next block; DataError if the alphabet lacks one of its bytes."""
        symbols = np.frombuffer(text, np.uint8)
        ids = self._ids[symbols]
        if not np.array_equal(self.alphabet[ids], symbols):
            what = "has a byte that it lacked when it was read first"
            raise DataError("the text", what, "compress it when nothing writes to it any more")
        words = encoded_bits(*bits.encoded(self._state, ids))
        tick(len(text))
        self.symbols, self.coded_bytes = self.symbols + len(text), self.coded_bytes + words.nbytes
        return words.astype("<u4").tobytes()

    def decode(self, code: bytes, size: int, tick: Tick) -> bytes:
        """Return the next block, of `size` bytes."""
        if not len(self.alphabet) or len(code) % 4:
            raise ValueError("no code of such a text")
        words = np.frombuffer(code, "<u4").astype(np.uint32)
        ids = bits.decoded(self._state, words, size)
        tick(size)
        text: npt.NDArray[Any] = self.alphabet[np.minimum(ids, len(self.alphabet) - 1)]
        return text.tobytes()
