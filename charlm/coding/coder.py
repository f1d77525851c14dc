"""The interface of coders: of one for blocks of bytes, and of one for the symbols in a block.

Both learn from each block that they code. So a decoder must be made like the encoder, and must decode
the same blocks in the same order.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt

from charlm.coding.ranges import Words

Array = npt.NDArray[Any]

# Called with the number of bytes encoded or decoded since the last call; it may raise Stopped.
Tick = Callable[[float], None]
Done = Callable[[int], None]  # the same, of symbols


class Coder(Protocol):
    """Encodes the blocks of one text, or decodes them.

    Attributes:
        block_bytes: The size of a block. A complete block is checked on another core while the next
            is encoded; each block adds about 25 bytes to the file.
        symbols: How many characters (or bytes) were coded with predictions, so far.
        coded_bytes: Bytes of code for them.
    """

    block_bytes: int
    symbols: int
    coded_bytes: int

    def encode(self, text: bytes, tick: Tick) -> bytes:
        """Return the code of the next block."""

    def decode(self, code: bytes, size: int, tick: Tick) -> bytes:
        """Return the next block, of `size` bytes.

        Damaged code, or code of a different coder, gives other bytes or raises ValueError.
        """


class SymbolCoder(Protocol):
    """Encodes the symbols of one text by their probabilities, or decodes them."""

    def encode(self, ids: Array, done: Done) -> Words:
        """Return the words of symbols, (N,) int64."""

    def decode(self, words: Words, count: int, done: Done) -> Array:
        """Return the symbols of words, (count,) int64. Damaged words give others, or a ValueError."""
