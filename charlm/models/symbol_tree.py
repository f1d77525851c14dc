"""Each character as a walk down a binary tree: one bit at each node, until a leaf is reached.

A model of bits learns faster if characters that are used alike share their first bits: vowels,
capitals, punctuation. So characters are split in two by their neighbours in the text, and each half
is split again. Both halves are about equally frequent, so that walks are short.
"""

from typing import NamedTuple

import numpy as np

from charlm.models.bit_tables import Array

NEIGHBOURS = 256  # only so many characters, the most frequent ones, count as neighbours
LEVELS = 3  # nodes of so many levels are neighbours in memory, a group of at most 7
MOST = 1 << 24  # nodes on the walks to all characters: a file must not ask for more memory


class Walks(NamedTuple):
    """The walk to each character, and other facts about the tree; all int64.

    Args:
        child: The node after each node and bit, (V - 1, 2), or -1 - id for a character. Node 0 is
            the root, and each node comes before those below it.
        nodes: The nodes on the walk to each character, (V, D).
        bits: The bits there, (V, D).
        length: The number of these nodes, (V,).
        group: The number of each node's group, (V - 1,).
        place: Its place in the group, 1 to 7, (V - 1,). The group begins at place 1.
    """

    child: Array
    nodes: Array
    bits: Array
    length: Array
    group: Array
    place: Array


def grow_tree(ids: Array, vocab_size: int) -> Array:
    """Return the children of the nodes of a tree for a text, (V - 1, 2) int32; see `Walks.child`."""
    often = np.bincount(ids, minlength=vocab_size)
    beside = _beside(ids, often)
    weight = often.astype(np.float64) + 1
    child = np.zeros((vocab_size - 1, 2), np.int32)
    used = 0
    waiting = [(np.arange(vocab_size), -1, 0)]  # characters, the node above, its bit
    while waiting:
        characters, above, bit = waiting.pop()
        one = len(characters) == 1
        if above >= 0:
            child[above, bit] = -1 - characters[0] if one else used
        if one:
            continue
        if len(characters) > 2 and len(ids):
            characters = characters[np.argsort(_alike(beside[characters], weight[characters]))]
        total = weight[characters].cumsum()
        half = 1 + int(np.abs(total[:-1] - total[-1] / 2).argmin())
        waiting += [(characters[half:], used, 1), (characters[:half], used, 0)]
        used += 1
    return child


def _beside(ids: Array, often: Array) -> Array:
    """Return how often each frequent character stands before and after each character, (V, 2 N)."""
    frequent = np.argsort(-often, kind="stable")[:NEIGHBOURS]
    column = np.full(len(often), -1)
    column[frequent] = np.arange(len(frequent))
    beside = np.zeros((len(often), 2 * len(frequent)), np.float32)
    for these, others, first in ((ids[1:], ids[:-1], 0), (ids[:-1], ids[1:], len(frequent))):
        known = column[others] >= 0
        np.add.at(beside, (these[known], first + column[others[known]]), 1)
    return beside


def _alike(beside: Array, weight: Array) -> Array:
    """Return a number for each character, (N,); characters with similar neighbours have similar numbers.

    It is the first principal component of the square roots of the neighbours' frequencies.
    """
    share = np.sqrt(beside / np.maximum(beside.sum(axis=1, keepdims=True), 1))
    mass = (weight / weight.sum())[:, None]
    scaled = (share - (mass * share).sum(axis=0)) * np.sqrt(mass)
    if len(scaled) <= scaled.shape[1]:
        first = np.linalg.eigh(scaled @ scaled.T)[1][:, -1]
    else:
        first = scaled @ np.linalg.eigh(scaled.T @ scaled)[1][:, -1]
    return first / np.sqrt(mass[:, 0])  # type: ignore[no-any-return]


def walks_of(child: Array) -> Walks:
    """Return the walks down a tree; ValueError if the children form no tree, or one far too deep."""
    count = len(child) + 1
    deepest = max(512, MOST // count)
    walks: list[tuple[list[int], list[int]]] = [([], []) for _ in range(count)]
    group, place = np.zeros((2, max(1, count - 1)), np.int64)
    reached = 0
    waiting: list[tuple[int, list[int], list[int]]] = [(0, [], [])] if count > 1 else []
    while waiting:
        node, nodes, bits = waiting.pop()
        reached += 1
        if len(nodes) == deepest:
            raise ValueError("the tree of characters is too deep")
        begins = len(nodes) % LEVELS == 0
        group[node] = node + 1 if begins else group[nodes[-1]]
        place[node] = 1 if begins else 2 * place[nodes[-1]] + bits[-1]
        for bit in (0, 1):
            to = int(child[node, bit])
            way = [*nodes, node], [*bits, bit]
            if not -count <= to < count - 1 or 0 <= to <= node or (to < 0 and walks[-1 - to][0]):
                raise ValueError("the characters do not form a tree")
            if to < 0:
                walks[-1 - to] = way
            else:
                waiting.append((to, *way))
    if reached != count - 1:
        raise ValueError("the characters do not form a tree")
    length = np.array([len(nodes) for nodes, _ in walks], np.int64)
    found = np.full((2, count, max(1, int(length.max()))), 0, np.int64)
    for i, (nodes, bits) in enumerate(walks):
        found[0, i, : len(nodes)], found[1, i, : len(bits)] = nodes, bits
    return Walks(child.astype(np.int64), found[0], found[1], length, group, place)
