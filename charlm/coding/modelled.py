"""Code a text with the model of a run: each character by its predicted probabilities.

Bits decide here. If the probabilities that decode a character differ in one bit from those that
encoded it, all that follows may be wrong. They differ between two ways to compute the same thing:
one character or many at once, one thread or two, another release of torch, another processor. So
there is one way only: `model.adaptive`, on the CPU, one thread, one character after another, the same
to encode and to decode. `needs` says what it depends on besides the run.
"""

import contextlib
import hashlib
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from constriction import stream

from charlm.coding.coder import Tick
from charlm.coding.pieces import put_together, take_apart
from charlm.coding.ranges import distribution
from charlm.errors import NonFiniteError
from charlm.models.adaptive import AdaptiveReader
from charlm.text.tokenizer import Tokenizer

TICK = 64  # characters between two calls of a tick
TRIED = 512  # characters that a fingerprint is made of

_HEAD = struct.Struct("<II")


class ModelCoder:
    """Codes the known characters of a text with a reader of them; see `charlm.coding.pieces`."""

    block_bytes = 1 << 16

    def __init__(self, reader: AdaptiveReader, tokenizer: Tokenizer, encoding: str) -> None:
        self.reader, self.tokenizer, self.encoding = reader, tokenizer, encoding
        self.symbols = self.coded_bytes = 0
        self._next = _probabilities(reader.first())

    def encode(self, text: bytes, tick: Tick) -> bytes:
        """Return the code of the next block."""
        ids, rest = take_apart(text, self.tokenizer, self.encoding)
        encoder, told = stream.queue.RangeEncoder(), 0
        for done, idx in enumerate(ids.tolist()):
            encoder.encode(idx, distribution(self._next))
            self._read(idx)
            told = _tell(tick, told, done, len(ids), len(text))
        tick(len(text) - told)
        words: bytes = encoder.get_compressed().astype("<u4").tobytes()
        self.symbols, self.coded_bytes = self.symbols + len(ids), self.coded_bytes + len(words)
        return _HEAD.pack(len(ids), len(words)) + words + rest

    def decode(self, code: bytes, size: int, tick: Tick) -> bytes:
        """Return the next block, of `size` bytes."""
        if len(code) < _HEAD.size:
            raise ValueError("too short")
        count, length = _HEAD.unpack_from(code)
        words, rest = code[_HEAD.size :][:length], code[_HEAD.size :][length:]
        if count > size or len(words) != length or length % 4:
            raise ValueError("wrong lengths")
        decoder = stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
        ids, told = np.empty(count, np.int64), 0
        for done in range(count):
            ids[done] = idx = decoder.decode(distribution(self._next))
            self._read(idx)
            told = _tell(tick, told, done, count, size)
        tick(size - told)
        return put_together(ids, rest, size, self.tokenizer, self.encoding)

    def _read(self, idx: int) -> None:
        self._next = _probabilities(self.reader.go_on(np.array([idx]))[0])


def fingerprint(reader: AdaptiveReader, vocab_size: int) -> str:
    """Return a checksum of the bits that a new reader computes here, in 16 hexadecimal digits.

    It reads a text of pseudo-random characters one by one. Bits that differ by chance alone in rare
    places are not found this way, but a block's checksum finds what they do.
    """
    ids = np.random.Generator(np.random.PCG64(0)).integers(vocab_size, size=TRIED)
    found = hashlib.sha256(_probabilities(reader.first()).tobytes())
    for idx in ids:
        found.update(_probabilities(reader.go_on(np.array([idx]))[0]).tobytes())
    return found.hexdigest()[:16]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread while in this context: how many there are changes bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probabilities(log_p: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the probabilities of at least two symbols, (V,)."""
    p = np.exp(log_p.numpy().astype(np.float64))
    if not np.isfinite(p.sum()):
        raise NonFiniteError("", "the model predicts NaN", "use an earlier checkpoint")
    return p if len(p) > 1 else np.append(p, 0.0)  # a coder knows no alphabet of one


def _tell(tick: Tick, told: int, done: int, count: int, size: int) -> int:
    """Tell from time to time how many of a block's bytes are done; return how many were told."""
    if done % TICK:
        return told
    now = size * done // count
    tick(now - told)
    return now
