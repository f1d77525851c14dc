"""Compressed files, unpacked while they are read: gzip, bzip2, xz and zstd.

A file is known by its first bytes, not by its name. Memory holds one chunk and what the format looks
back on: 32 KiB in gzip, 0.9 MB in bzip2; in xz and zstd it is what the packer chose, 8 MiB or less
unless it was told otherwise.
"""

import bz2
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from charlm.errors import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:  # the same module for older Pythons
    from backports import zstd


@runtime_checkable
class Unpacker(Protocol):
    """What unpacks one of the streams in a file; `bz2`, `lzma` and `zstd` share this interface."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes without more input."""

    @property
    def unused_data(self) -> bytes:
        """What follows the end of the stream in the input so far."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take more input, and return at most `max_length` bytes."""


class _Gzip:
    """`zlib` with that interface. It checks the checksum at the end of a stream."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


def _zstd() -> Unpacker:
    # By default, files made with `zstd --long=31`, as large texts often are, are refused.
    parameter = zstd.DecompressionParameter.window_log_max
    return zstd.ZstdDecompressor(options={parameter: parameter.bounds()[1]})


class Format(NamedTuple):
    """A format of compressed files."""

    name: str
    begins: re.Pattern[bytes]
    unpacker: Callable[[], Unpacker]
    error: type[Exception]  # raised for damaged data


FORMATS = (
    Format("gzip", re.compile(rb"\x1f\x8b\x08"), _Gzip, zlib.error),
    # A text may begin with BZh; the digits of pi or of its root follow in a file.
    Format("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor, OSError),
    Format("xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor, lzma.LZMAError),
    # The other one begins a frame that holds no data; some packers write it first.
    Format("zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _zstd, zstd.ZstdError),
)


def format_of(head: bytes) -> Format | None:
    """Return the format of a compressed file that begins with `head`."""
    return next((one for one in FORMATS if one.begins.match(head)), None)


def unpacked(
    packed: Format, head: bytes, read: Callable[[], bytes], name: str, size: int
) -> Iterator[bytes]:
    """Yield what is in a compressed file, in chunks of at most `size` bytes.

    A file may hold several streams, as those of `pigz`, `bgzip` and `cat a.gz b.gz` do.

    Args:
        packed: The format of the file.
        head: Its first chunk.
        read: Returns the next chunk; empty at its end.
        name: Of the file, for errors.
        size: Bytes in a chunk.

    Raises DataError if the file is truncated or damaged.
    """
    data = head
    while data:
        unpacker = packed.unpacker()
        while True:
            try:
                chunk = unpacker.decompress(data, size)
            except packed.error as error:
                what = f"damaged {packed.name} file ({error})"
                raise DataError(name, what, "get a sound copy") from None
            if chunk:
                yield chunk
            if unpacker.eof:
                break
            data = read() if unpacker.needs_input else b""
            if unpacker.needs_input and not data:
                raise DataError(name, f"truncated {packed.name} file", "get a complete copy")
        data = unpacker.unused_data or read()
        while data and not (data := data.lstrip(b"\0")):  # zeros fill up blocks on tapes and in xz
            data = read()
