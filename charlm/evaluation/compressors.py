"""Compressors as baselines: what a text adds to the size of the compressed text before it.

A compressor learns from the text while it reads it, as a model does under the protocol `adaptive`.
Its cost for a text that follows another is the size of both, compressed as one, less the size of the
first, compressed alone. This is fair only if both are compressed with the same settings. zpaq and
7-Zip choose their memory by the length of the input, in powers of two: for the training part of Tiny
Shakespeare it is 16 MiB, for the whole 32 MiB, and the difference makes PPMd of order 16 look like
1.09 nats; with 32 MiB for both, it is 1.42. So memory is fixed here, and large enough never to run out.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charlm.errors import check_stop
from charlm.text.escapes import NONE
from charlm.text.tokenizer import BOUNDARY, CharTokenizer, Tokenizer, code_points, of_code_points

PIECE = 1 << 18  # bytes compressed between two calls of `should_stop`

# In bytes. If it runs out, PPMd forgets everything; 2,500,000 random Chinese characters need more than
# 64 MiB. Only the part in use takes memory: 8 MiB for Tiny Shakespeare.
PPMD_MEMORY = 1 << 28
BZIP3_BLOCK = 1 << 24  # bytes, the default of bzip3: 2,500,000 characters of UTF-8 fit in it


class Compressor(Protocol):
    """The interface that `bz2`, `lzma` and `zlib` share; both methods return compressed bytes."""

    def compress(self, data: bytes, /) -> bytes: ...  # noqa: D102
    def flush(self) -> bytes: ...  # noqa: D102


def compressors() -> dict[str, Callable[[], Compressor]]:
    """Return a constructor of each compressor that is installed, with the settings of its command."""
    import pyppmd  # here, because it takes 40 ms

    found: dict[str, Callable[[], Compressor]] = {
        "gzip": lambda: zlib.compressobj(9),  # gzip -9
        "bzip2": bz2.BZ2Compressor,  # bzip2, which is bzip2 -9
        "xz": lzma.LZMACompressor,  # xz, which is xz -6
        # 7z -m0=PPMd, with a fixed memory
        "PPMd, order 6": lambda: pyppmd.PpmdCompressor(6, PPMD_MEMORY, variant="H"),
    }
    with suppress(ImportError):  # there are no wheels for macOS
        from bz3.backends import BZ3Compressor

        found["bzip3"] = lambda: BZ3Compressor(BZIP3_BLOCK)
    return found


def added_bytes(
    new: Callable[[], Compressor],
    before: bytes,
    after: bytes,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Return how many bytes `after` adds to the compressed `before`, perhaps none."""

    def size(data: bytes) -> int:
        compressor, total = new(), 0
        for first in range(0, len(data), PIECE):
            check_stop(should_stop)
            total += len(compressor.compress(data[first : first + PIECE]))
        return total + len(compressor.flush())

    return max(0, size(before + after) - size(before))  # bzip2 may compress a longer text better


def utf8(
    ids: npt.NDArray[np.integer[Any]], tokenizer: Tokenizer, rare: npt.NDArray[np.uint32] = NONE
) -> bytes:
    """Return the text of ids in UTF-8; in byte mode, the bytes themselves.

    `rare` are the code points of those that are escapes.
    """
    if not isinstance(tokenizer, CharTokenizer):
        return ids.astype(np.uint8).tobytes()
    codes = code_points(tokenizer.alphabet)[ids]
    if tokenizer.escape is not None:
        codes[ids == tokenizer.escape] = rare
    text = of_code_points(codes)
    if tokenizer.boundary is not None:
        text = text.replace(BOUNDARY, "\n")
    # Half a surrogate pair, which only utf-7 allows in a text, takes 3 bytes.
    return text.encode("utf-8", "surrogatepass")
