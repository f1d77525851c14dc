"""Code symbols bit by bit with context mixing: `charlm.models.bit_mixing`.

Each symbol is a walk down a tree. The bit at each node is predicted from what was read; after the
symbol, the mixer learns from its bits. Decoding does the same, with bits that come from the code. All
arithmetic is in integers, so every machine computes the same bits.
"""

import hashlib
from typing import no_type_check

import numpy as np

from charlm.coding.coder import Array, Done
from charlm.coding.ranges import Words, bit_decoder, encoded_bits, next_bit
from charlm.models.bit_mixing import Mixer, learn, look, predict
from charlm.models.bit_reading import move_on
from charlm.models.kernel import kernel

# In the header of a file. Changes whenever a prediction changes: with the mixer, or its contexts.
ENGINE = "mixing 1"
PIECE = 1 << 13  # symbols between two calls of `done`: a fifth of a second


class Bits:
    """Codes the symbols of one text with a mixer, which goes on learning."""

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def encode(self, ids: Array, done: Done) -> Words:
        """Return the words of symbols, (N,)."""
        bits = np.empty(int(self.mixer.walks.length[ids].sum()), np.uint8)
        p, at = np.empty(len(bits), np.uint16), 0
        for part in _pieces(ids):
            at += _encode(self.mixer, part, bits[at:], p[at:])
            done(len(part))
        return encoded_bits(bits, p)

    def decode(self, words: Words, count: int, done: Done) -> Array:
        """Return the symbols of words, (count,) int64."""
        ids, decoder = np.empty(count, np.int64), bit_decoder(words)
        for part in _pieces(ids):
            _decode(self.mixer, decoder, words, part)
            done(len(part))
        return ids

    def fingerprint(self) -> str:
        """Return a checksum of what the mixer has learned, in 16 hexadecimal digits."""
        found = hashlib.sha256()
        for array in (self.mixer.weights, self.mixer.final, self.mixer.contexts.maps):
            found.update(array.astype("<i8").tobytes())
        return found.hexdigest()[:16]


def _pieces(ids: Array) -> list[Array]:
    return np.split(ids, range(PIECE, len(ids), PIECE))


@kernel
@no_type_check
def _encode(m: Mixer, ids: Array, bits: Array, p: Array) -> int:
    """Write the bits of symbols and their predictions; return how many bits there are."""
    at = 0
    for i in range(len(ids)):
        symbol = ids[i]
        look(m)
        for k in range(m.walks.length[symbol]):
            bits[at], p[at] = m.walks.bits[symbol, k], predict(m, m.walks.nodes[symbol, k], k)
            at += 1
        learn(m, symbol)
        move_on(m, symbol, True)
    return at


@kernel
@no_type_check
def _decode(m: Mixer, decoder: Array, words: Words, ids: Array) -> None:
    """Write the next symbols of words, as many as there is room for in `ids`."""
    for i in range(len(ids)):
        look(m)
        # Not the constant 0: numba would compile all that takes it once for it and once for others.
        node, k = np.int64(0 if len(m.walks.child) else -1), np.int64(0)
        while node >= 0:
            node = m.walks.child[node, next_bit(decoder, words, predict(m, node, k))]
            k += 1
        symbol = -1 - node
        ids[i] = symbol
        learn(m, symbol)
        move_on(m, symbol, True)
