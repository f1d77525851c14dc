"""Range coding, by the library constriction: symbols and their probabilities to words, and back.

A range coder keeps an interval of numbers. Each symbol narrows it to a part as large as the symbol's
probability, so a symbol of probability p costs log2(1/p) bits. Martin 1979, "Range encoding". A
`RangeDecoder` gives the same symbols back if, and only if, it gets the very same probabilities.

Symbols that a model predicts one by one are coded with `symbols` (`constriction` rounds to parts of
2^24). Bits come millions at a time, so `encoded_bits` takes whole arrays, and `next_bit` is compiled
with the model whose predictions depend on each decoded bit.
"""

from typing import Any, no_type_check

import numpy as np
import numpy.typing as npt
from constriction import stream

from charlm.models.kernel import kernel

Words = npt.NDArray[np.uint32]

PRECISION = 24  # bits of a probability, in constriction
FINE = 16  # bits of a probability of `encoded_bits`

_WORD = np.uint64(32)  # bits
_FULL = np.uint64(1 << 32)  # below that, the interval takes in the next word
_SHIFT = np.uint64(PRECISION)
_FINER = np.uint64(PRECISION - FINE)
_ONE = np.uint64(1 << PRECISION)


def distribution(p: npt.NDArray[Any]) -> Any:
    """Return the probabilities of the symbols, (V,), V >= 2, as constriction's coders take them.

    Raise ValueError if one is negative or not finite.
    """
    return stream.model.Categorical(p, perfect=False)


def encoded_bits(bits: npt.NDArray[np.uint8], p: npt.NDArray[np.uint16]) -> Words:
    """Return the words of bits, (N,), that are 1 with probability p / 65536, (N,), p >= 1."""
    encoder = stream.queue.RangeEncoder()
    # `perfect` keeps a probability that is a multiple of 2^-24 as it is; otherwise it is changed.
    encoder.encode(
        bits.astype(np.int32), stream.model.Bernoulli(perfect=True), p / float(1 << FINE)
    )
    return encoder.get_compressed()  # type: ignore[no-any-return]


def bit_decoder(words: Words) -> npt.NDArray[np.uint64]:
    """Return the state of a decoder of bits, (4,): the interval's start and length, the point, the place.

    It reads what constriction's `RangeEncoder` wrote, like its `RangeDecoder`.
    """
    first, second = [*words[:2].tolist(), 0, 0][:2]
    return np.array([0, (1 << 64) - 1, first << 32 | second, 2], np.uint64)


@kernel
@no_type_check
def next_bit(state: npt.NDArray[np.uint64], words: Words, p: int) -> int:
    """Return the next bit, which is 1 with probability p / 65536."""
    start, length, point, place = state
    part = length >> _SHIFT
    ones = np.uint64(p) << _FINER
    zeros = _ONE - ones
    if point - start < part * zeros:
        bit, length = 0, part * zeros
    else:
        bit, start, length = 1, start + part * zeros, part * ones
    if length < _FULL:
        word = np.uint64(words[place]) if place < len(words) else np.uint64(0)
        start, length, point = start << _WORD, length << _WORD, point << _WORD | word
        place += np.uint64(1)
    state[0], state[1], state[2], state[3] = start, length, point, place
    return bit
