"""What turns a text into code, in two parts: one for blocks of bytes, one for the symbols in them.

Both learn from each block, and need it for the next. So what decodes must be made like what encoded,
and must decode the same blocks in the same order.
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
        block_bytes: Bytes of a block. A block is checked when it is complete, on another core while
            the next is encoded; each costs about 25 bytes.
        symbols: Characters (or bytes) that were coded with predictions, so far.
        coded_bytes: Bytes of code that they took.
    """

    block_bytes: int
    symbols: int
    coded_bytes: int

    def encode(self, text: bytes, tick: Tick) -> bytes:
        """Return the code of the next block."""

    def decode(self, code: bytes, size: int, tick: Tick) -> bytes:
        """Return the next block, of `size` bytes.

        Damaged code, or code of another coder, gives another text, or a ValueError.
        """


class SymbolCoder(Protocol):
    """Encodes the symbols of one text by their probabilities, or decodes them."""

    def encode(self, ids: Array, done: Done) -> Words:
        """Return the words of symbols, (N,) int64."""

    def decode(self, words: Words, count: int, done: Done) -> Array:
        """Return the symbols of words, (count,) int64. Damaged words give others, or a ValueError."""
