import math

import numpy as np
import pytest
from constriction import stream
from numba import njit

from charlm.coding.ranges import bit_decoder, distribution, encoded_bits, next_bit


def drawn(count, seed=0):
    """Return bits and the probabilities that they were drawn with, many of them extreme."""
    numbers = np.random.default_rng(seed)
    p = np.clip(numbers.beta(0.2, 0.2, count) * 65536, 1, 65535).astype(np.uint16)
    return (numbers.random(count) < p / 65536).astype(np.uint8), p


@njit
def decoded(state, words, p):
    bits = np.empty(len(p), np.uint8)
    for t in range(len(p)):
        bits[t] = next_bit(state, words, p[t])
    return bits


@pytest.mark.parametrize("count", [0, 1, 2, 40, 20_000])
def test_bits_come_back(count):
    bits, p = drawn(count, count)

    words = encoded_bits(bits, p)

    assert np.array_equal(decoded(bit_decoder(words), words, p), bits)


def test_bits_are_decoded_as_constriction_decodes_them():
    bits, p = drawn(20_000)
    words = encoded_bits(bits, p)

    theirs = stream.queue.RangeDecoder(words).decode(
        stream.model.Bernoulli(perfect=True), p / 65536
    )

    assert np.array_equal(theirs, bits)


def test_bits_cost_what_their_probabilities_say():
    bits, p = drawn(100_000)
    own = np.where(bits, p, 65536 - p.astype(int)) / 65536

    words = encoded_bits(bits, p)

    assert 8 * words.nbytes == pytest.approx(-np.log2(own).sum(), abs=64)  # two words


def test_bits_with_the_least_probabilities_come_back():
    p = np.array([1, 65535] * 500, np.uint16)
    bits = np.array([1, 0] * 500, np.uint8)  # the unlikely ones: 16 bits each

    words = encoded_bits(bits, p)

    assert np.array_equal(decoded(bit_decoder(words), words, p), bits)
    assert 8 * words.nbytes == pytest.approx(16 * 1000, abs=64)


def test_a_symbol_without_probability_can_still_be_coded():
    coder = stream.queue.RangeEncoder()
    coder.encode(1, distribution(np.array([1.0, 0.0, 0.0])))

    decoder = stream.queue.RangeDecoder(coder.get_compressed())

    assert decoder.decode(distribution(np.array([1.0, 0.0, 0.0]))) == 1


def test_a_distribution_that_is_none_is_refused():
    with pytest.raises(ValueError, match="not normalizable"):
        distribution(np.array([0.5, math.nan]))
