"""Code a text with a model that starts empty, learns while it reads, and needs no run.

It uses integer arithmetic only, so any machine decodes what another has encoded. Its symbols are the
bytes that occur in the text. Their tree (`charlm.models.symbol_tree`) is made from the beginning of
the text, in floating point, so the header of a file records it.
"""

import re

import numpy as np

from charlm.coding.bits import Bits
from charlm.coding.coder import Array, Tick
from charlm.config.context_mixing import DEFAULT
from charlm.errors import DataError
from charlm.models.bit_mixing import new_mixer
from charlm.models.symbol_tree import grow_tree, walks_of
from charlm.models.view import classes_of, codes_of
from charlm.text.tokenizer import ByteTokenizer

SLOT_BITS = 23  # of the mixer's table: 256 MiB, of which a short text uses little


class PortableCoder:
    """Codes the bytes of a text; `tree` has all that occur, see `tree_of`.

    Raise ValueError if it is not a valid tree.
    """

    block_bytes = 1 << 17

    def __init__(self, tree: str) -> None:
        self.alphabet, child = _read(tree)
        self._ids = np.zeros(256, np.int64)
        self._ids[self.alphabet] = np.arange(len(self.alphabet))
        contexts = [codes_of(looks_at) for looks_at in DEFAULT]
        self._bits = Bits(new_mixer(walks_of(child), self._classes(), contexts, SLOT_BITS))
        self.symbols = self.coded_bytes = 0

    def encode(self, text: bytes, tick: Tick) -> bytes:
        """Return the code of the next block; DataError if the tree lacks one of its bytes."""
        symbols = np.frombuffer(text, np.uint8)
        if not np.isin(symbols, self.alphabet).all():
            mend = "compress it when no other program writes to it"
            raise DataError("the text", "changed while it was being read", mend)
        ids = self._ids[symbols]
        words = self._bits.encode(ids, tick).astype("<u4").tobytes()
        self.symbols, self.coded_bytes = self.symbols + len(ids), self.coded_bytes + len(words)
        return words

    def decode(self, code: bytes, size: int, tick: Tick) -> bytes:
        """Return the next block, of `size` bytes."""
        if len(code) % 4 or not len(self.alphabet):
            raise ValueError("no words of this alphabet")
        words = np.frombuffer(code, "<u4").astype(np.uint32)
        text: Array = self.alphabet[self._bits.decode(words, size, tick)]
        return text.tobytes()

    def _classes(self) -> Array:
        """Return the class of each symbol, and the symbol of its lower case: `view.classes_of`."""
        kind, lower = classes_of(ByteTokenizer())[:, self.alphabet]
        known = self.alphabet[self._ids[lower]] == lower
        return np.stack([kind, np.where(known, self._ids[lower], np.arange(len(lower)))])


def tree_of(start: bytes, occur: bytes) -> str:
    """Return a tree of all bytes that `occur`, by their neighbours in the start of the text.

    A node is written as `.`, then what follows its 0, then what follows its 1; a byte in two
    hexadecimal digits.
    """
    alphabet = np.frombuffer(occur, np.uint8)
    ids = np.zeros(256, np.int64)
    ids[alphabet] = np.arange(len(alphabet))
    child = grow_tree(ids[np.frombuffer(start, np.uint8)], max(1, len(alphabet)))
    written, waiting = [], [0 if len(alphabet) > 1 else -1] * (len(alphabet) > 0)
    while waiting:
        node = waiting.pop()
        written.append("." if node >= 0 else f"{alphabet[-1 - node]:02x}")
        if node >= 0:
            waiting += [int(child[node, 1]), int(child[node, 0])]
    return "".join(written)


def check_tree(tree: str) -> None:
    """Check that a header has a tree, or raise ValueError."""
    walks_of(_read(tree)[1])


def _read(tree: str) -> tuple[Array, Array]:
    """Return the bytes of a tree, increasing, and the children of its nodes."""
    if not re.fullmatch(r"(\.|[0-9a-f]{2})*", tree):
        raise ValueError("no tree")
    symbols: list[int] = []
    child: list[list[int]] = []
    places = [(-1, 0)] if tree else []  # nodes and bits that lead to what is yet to come
    for word in re.findall(r"\.|..", tree):
        if not places:
            raise ValueError("no tree")
        above, bit = places.pop()
        number = len(child) if word == "." else -1 - int(word, 16)
        if above >= 0:
            child[above][bit] = number
        if number < 0:
            symbols.append(-1 - number)
        else:
            child.append([0, 0])
            places += [(number, 1), (number, 0)]
    alphabet = np.unique(np.array(symbols, np.int64))
    if places or len(alphabet) != len(symbols):
        raise ValueError("no tree")
    children = np.array(child, np.int64).reshape(-1, 2)
    leaf = children < 0
    children[leaf] = -1 - np.searchsorted(alphabet, -1 - children[leaf])
    return alphabet.astype(np.uint8), children
