"""Code blocks of any bytes with the model of a run, whose alphabet may lack some characters."""

import struct

import numpy as np

from charlm.coding.coder import Done, SymbolCoder, Tick
from charlm.coding.pieces import put_together, take_apart
from charlm.text.tokenizer import Tokenizer

_HEAD = struct.Struct("<II")


class ModelCoder:
    """Codes the known characters of a text by `symbol_coder`; see `charlm.coding.pieces`."""

    block_bytes = 1 << 16

    def __init__(self, symbol_coder: SymbolCoder, tokenizer: Tokenizer, encoding: str) -> None:
        self.symbol_coder, self.tokenizer, self.encoding = symbol_coder, tokenizer, encoding
        self.symbols = self.coded_bytes = 0

    def encode(self, text: bytes, tick: Tick) -> bytes:
        """Return the code of the next block."""
        ids, rest = take_apart(text, self.tokenizer, self.encoding)
        done = _in_bytes(tick, len(ids), len(text))
        words = self.symbol_coder.encode(ids, done).astype("<u4").tobytes()
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
        done = _in_bytes(tick, count, size)
        ids = self.symbol_coder.decode(np.frombuffer(words, "<u4").astype(np.uint32), count, done)
        return put_together(ids, rest, size, self.tokenizer, self.encoding)


def _in_bytes(tick: Tick, count: int, size: int) -> Done:
    """Return a callback that takes how many symbols were coded, and ticks their share of the bytes."""
    if not count:
        tick(size)
    return lambda symbols: tick(size * symbols / max(1, count))
