"""The interface of what turns blocks of a text into code.

A coder learns from each block, and needs it for the next. So one that decodes must be made like the
one that encoded, and must decode the same blocks in the same order.
"""

from collections.abc import Callable
from typing import Protocol

# Called with the number of bytes encoded or decoded since the last call; it may raise Stopped.
Tick = Callable[[int], None]


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
