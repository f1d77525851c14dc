"""A model of bytes that predicts bit by bit and learns from each, in integers only.

Integers give the same bits on every machine. Each byte is a walk down a binary tree, a bit at a time,
its highest first; each node of the tree, in each context of two bytes, has the probability of a 1.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from charlm.coding.ranges import Words, bit_decoder, next_bit

NAME = "order-2 1"  # in the header of a file; changes whenever a prediction would
RATE = 4  # each bit moves a probability by 1/16 of the way


class State(NamedTuple):
    """What the model has learned: probabilities of a 1 in 1/65536, by context and node (C, 2^w).

    Args:
        p: The probabilities.
        last: The two symbols read last, the later one first.
        width: Bits of a symbol (w).
    """

    p: npt.NDArray[np.uint16]
    last: npt.NDArray[np.int64]
    width: int


def new(vocab_size: int) -> State:
    """Return the state before anything was read."""
    width = max(1, (vocab_size - 1).bit_length())
    p = np.full((1 << 2 * width, 1 << width), 1 << 15, np.uint16)
    return State(p, np.zeros(2, np.int64), width)


def encoded(
    state: State, ids: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Read symbols; return their bits and the probability of a 1 that each was predicted with, (N,)."""
    bits = np.empty(len(ids) * state.width, np.uint8)
    p = np.empty(len(bits), np.uint16)
    _encode(state, ids, bits, p)
    return bits, p


def decoded(state: State, words: Words, count: int) -> npt.NDArray[np.uint8]:
    """Decode this many symbols, and learn from them as `encoded` did."""
    ids = np.empty(count, np.uint8)
    _decode(state, bit_decoder(words), words, ids)
    return ids


@njit(cache=True, nogil=True)
def _encode(
    state: State, ids: npt.NDArray[np.uint8], bits: npt.NDArray[np.uint8], p: npt.NDArray[np.uint16]
) -> None:
    at = 0
    for symbol in ids:
        node = 1
        for place in range(state.width - 1, -1, -1):
            bit = symbol >> place & 1
            bits[at], p[at] = bit, _predict(state, node)
            _learn(state, node, bit)
            node = node << 1 | bit
            at += 1
        state.last[1], state.last[0] = state.last[0], symbol


@njit(cache=True, nogil=True)
def _decode(
    state: State, decoder: npt.NDArray[np.uint64], words: Words, ids: npt.NDArray[np.uint8]
) -> None:
    for t in range(len(ids)):
        node = 1
        for _ in range(state.width):
            bit = next_bit(decoder, words, _predict(state, node))
            _learn(state, node, bit)
            node = node << 1 | bit
        ids[t] = symbol = node - (1 << state.width)
        state.last[1], state.last[0] = state.last[0], symbol


@njit(cache=True, nogil=True)
def _predict(state: State, node: int) -> int:
    context = state.last[1] << state.width | state.last[0]
    return int(max(64, min(65536 - 64, state.p[context, node])))


@njit(cache=True, nogil=True)
def _learn(state: State, node: int, bit: int) -> None:
    context = state.last[1] << state.width | state.last[0]
    p = np.int64(state.p[context, node])
    state.p[context, node] = p + ((bit * 65535 - p) >> RATE)
