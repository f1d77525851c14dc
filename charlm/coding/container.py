"""The file that `charlm compress` writes: a header, blocks, an end.

    magic     8 bytes, some of which a copy in text mode would change
    header    format (1 byte), length (2), JSON deflated to that length, its CRC-32 (4)
    blocks    length of the text (4), length of the code (4), CRC-32 of each (4, 4), the code
    end       4 bytes of 0, length of the whole text (8), its SHA-256 (32)

Numbers are little-endian. The header records what decoding depends on. It is deflated with a dictionary:
plain, it would take more than one percent of a text of 100,000 characters. The CRC-32 of the code tells
whether the file is damaged; the CRC-32 of the text tells whether it was decoded to the original.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from charlm.errors import DataError
from charlm.storage.json_file import parse_object

MAGIC = b"\x89CLM\r\n\x1a\n"
FORMAT = 1
MOST = 1 << 24  # bytes of a block's text or code: a damaged length must not ask for more memory

_HEADER = struct.Struct("<BH")
_BLOCK = struct.Struct("<IIII")
_CHECKSUM = struct.Struct("<I")
_SIZE = struct.Struct("<Q")

# A typical header, zlib's dictionary. It is a part of the format.
_USUAL = (
    b'{"model":"portable","engine":"mixing 1","tree":".....65.69612e2c207374,"size":'
    b'{"model":"run","run":"shakespeare","step":1000,"sha256":"","adapt":{"counts":true,"mixing":true,'
    b'"weights":false,"every":128},"needs":{"charlm":"0.1.0","torch":"2.13.0+cpu","numpy":"2.4.6",'
    b'"numba":"0.68.1","constriction":"0.5.0","blas":"0.3.31.dev SkylakeX","cpu":"AVX512","machine":"Linux x86_64"},'
    b'"processor":"Intel(R) Xeon(R) CPU @ AMD EPYC","fingerprint":"","size":1115394}'
)
_LONGEST = 1 << 16  # bytes of a header

GET_ANOTHER = "get another copy of it"


@dataclass(frozen=True)
class Block:
    """A part of the text, encoded.

    Args:
        number: Counted from 1.
        size: Bytes of its text, not 0.
        checksum: CRC-32 of its text.
        code: What a coder returned for its text.
    """

    number: int
    size: int
    checksum: int
    code: bytes

    @classmethod
    def of(cls, number: int, text: bytes, code: bytes) -> "Block":
        """Return the block of a text."""
        return cls(number, len(text), zlib.crc32(text), code)

    def is_of(self, text: bytes) -> bool:
        """Tell whether this is the text that was encoded."""
        return len(text) == self.size and zlib.crc32(text) == self.checksum


class Digest:
    """The length and the SHA-256 of a text that comes in parts."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()

    def add(self, text: bytes) -> None:
        """Add the next part."""
        self.size += len(text)
        self._sha256.update(text)

    def sha256(self) -> bytes:
        """Return the SHA-256 of all parts, 32 bytes."""
        return self._sha256.digest()


class ContainerWriter:
    """Writes a container to a binary file, from its header to its end.

    Attributes:
        size: Bytes written so far.
    """

    def __init__(
        self, file: IO[bytes], header: Mapping[str, Any], text_size: int | None = None
    ) -> None:
        self._file = file
        self.size = 0
        plain = json.dumps({**header, "size": text_size}, separators=(",", ":"))
        content = _deflated(plain.encode())
        checksum = _CHECKSUM.pack(zlib.crc32(content))
        self._write(MAGIC, _HEADER.pack(FORMAT, len(content)), content, checksum)

    def add(self, block: Block) -> None:
        """Write a block."""
        code = block.code
        head = _BLOCK.pack(block.size, len(code), block.checksum, zlib.crc32(code))
        self._write(head, code)

    def end(self, whole: Digest) -> None:
        """Write the end, after the blocks of the whole text."""
        self._write(bytes(4), _SIZE.pack(whole.size), whole.sha256())

    def _write(self, *parts: bytes) -> None:
        for part in parts:
            self._file.write(part)
            self.size += len(part)


class ContainerReader:
    """Reads a container from a binary file; `name` is what messages call it.

    Attributes:
        header: What decoding depends on.

    Raises:
        DataError: The file is not a container, is damaged or cut off, or is from a later charlm.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self.name = name
        if file.read(len(MAGIC)) != MAGIC:
            what = "is not a file that charlm compress wrote"
            raise DataError(name, what, "name one, or copy it again in binary mode")
        version, length = _HEADER.unpack(self._read(_HEADER.size, "its header"))
        if version != FORMAT:
            what = f"has format {version}, but this charlm reads format {FORMAT}"
            raise DataError(name, what, "use the version of charlm that wrote it, or a later one")
        content = self._read(length, "its header")
        (checksum,) = _CHECKSUM.unpack(self._read(_CHECKSUM.size, "its header"))
        if zlib.crc32(content) != checksum:
            raise self._damaged("its header")
        try:
            self.header = parse_object(_inflated(content))
        except (ValueError, zlib.error):
            raise self._damaged("its header") from None

    @property
    def text_size(self) -> int | None:
        """The text's size in bytes, if the header has it; only the end of the file is reliable."""
        size = self.header.get("size")
        return size if isinstance(size, int) and 0 <= size < 1 << 63 else None

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks; then `check` can be called."""
        number = 1
        while any(start := self._read(4, place := f"block {number}")):
            rest = self._read(_BLOCK.size - 4, place)
            size, length, checksum, of_code = _BLOCK.unpack(start + rest)
            if max(size, length) > MOST:
                raise self._damaged(place)
            code = self._read(length, place)
            if zlib.crc32(code) != of_code:
                raise self._damaged(place)
            yield Block(number, size, checksum, code)
            number += 1

    def check(self, decoded: Digest) -> None:
        """Check the whole text against the end of the file, and that nothing follows."""
        (size,) = _SIZE.unpack(self._read(_SIZE.size, "its end"))
        sha256 = self._read(len(decoded.sha256()), "its end")
        if (size, sha256) != (decoded.size, decoded.sha256()):
            what = f"is damaged: its blocks do not make up the whole text of {size:,} bytes"
            raise DataError(self.name, what, GET_ANOTHER)
        if self._file.read(1):
            raise DataError(self.name, "has more data after its end", GET_ANOTHER)

    def _read(self, length: int, place: str) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise DataError(self.name, f"is cut off in {place}", "get the whole file")
        return data

    def _damaged(self, place: str) -> DataError:
        return DataError(self.name, f"is damaged in {place}", GET_ANOTHER)


def _deflated(header: bytes) -> bytes:
    assert len(header) < _LONGEST, "a header is short"
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_USUAL)
    return deflater.compress(header) + deflater.flush()


def _inflated(content: bytes) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS, zdict=_USUAL).decompress(content, _LONGEST)
