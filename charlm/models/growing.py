"""An n-gram model whose counts grow while it reads.

After each character, it predicts what a newly fitted model would: one that was fitted to the model's
own training text and, as a second text, to everything read so far. `smoothing` has the formulas. Two
facts make this cheap:

    Kneser-Ney counts a shorter n-gram once for each longer n-gram that ends in it: its `places`. So a
    character is added in one walk, from the longest n-gram that ends here to the shortest. An n-gram
    gets one more place if it is the longest, or if the one before it in this walk was new.

    Discounts depend on how many n-grams occur once, twice, three and four times. Each new count
    moves one n-gram from one of these numbers to the next.

The n-grams are a tree, each a row of one table: the children of an n-gram have one more character at
the end. Children are neighbours in the table, in the order in which they were first seen. When their
number reaches a power of two, they move to a place with room for twice as many.
"""

from copy import copy
from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.config import NGramConfig
from charlm.config.memory import human_bytes, machine_bytes
from charlm.errors import MachineError
from charlm.models.adaptive import AdaptiveReader
from charlm.models.counts import Array
from charlm.models.kernel import kernel
from charlm.models.smoothing import FALLBACK
from charlm.text.tokens import Ids

Discounts = tuple[float, float, float, float]  # of counts 0, 1, 2, and 3 or more

METHODS = ("kneser-ney", "witten-bell", "add-k")
KNESER_NEY, WITTEN_BELL, ADD_K = range(3)

# The columns of an n-gram: its last character; the first row and the number of its children; how often
# it occurs; and in how many places: after how many distinct characters (a text's start counts as one).
SYMBOL, FIRST, CHILDREN, COUNT, PLACES = range(5)
EMPTY = 1  # the row of an n-gram that never occurred; row 0 is the n-gram of no characters
MOST_ROWS = 2**31 - 1
PIECE = 1 << 14  # characters of the first text that are read at a time


class Trie(NamedTuple):
    """The counts, the place in the text, and the rule of prediction; the kernels change the arrays.

    Args:
        rows: The n-grams, (N, 5) int32; see `SYMBOL` and so on.
        used: How many rows are used, (1,).
        often: How many n-grams of each order have a count of 1, 2, 3 and 4, and how many have 1 to 4
            places, (2, order + 1, 5).
        contexts: Rows of the last 0, 1, ... characters, (order,).
        length: Characters of the longest context, (1,).
        method: An index of `METHODS`.
        added: What add-k adds to each count.
        least: N-grams with a smaller count are left out.
        boundary: The id between records, where contexts begin; -1: none.
    """

    rows: Array
    used: Array
    often: Array
    contexts: Array
    length: Array
    method: int
    added: float
    least: int
    boundary: int


class GrowingNGram(AdaptiveReader):
    """Reads one text with an n-gram model, and counts each character after predicting it.

    Args:
        config: The order, the smoothing, and which part of the text is counted.
        vocab_size: Number of distinct characters (V).
        trained_on: The text to count first. None: begin without counts, all characters equally likely.
        boundary: The id between records, if `trained_on` does not tell; None: it reads one text.

    Raises MachineError if the n-grams need more memory than the machine has.
    """

    learned = ("counts",)

    def __init__(
        self,
        config: NGramConfig,
        vocab_size: int,
        trained_on: Ids | None = None,
        boundary: int | None = None,
    ) -> None:
        boundary = boundary if trained_on is None else trained_on.boundary
        assert config.order != "auto", "chosen when the run began"
        self.vocab_size, self.counting = vocab_size, True
        self.trie = Trie(
            rows=np.zeros((1 << 10, 5), np.int32),  # the first is the empty n-gram
            used=np.array([EMPTY + 1], np.int64),
            often=np.zeros((2, config.order + 1, 5), np.int64),
            contexts=np.zeros(config.order, np.int64),
            length=np.zeros(1, np.int64),
            method=METHODS.index(config.smoothing),
            added=config.add_k,
            least=config.min_count,
            boundary=-1 if boundary is None else boundary,
        )
        if trained_on is not None:
            size = len(trained_on)
            first = 0 if config.last_chars is None else max(0, size - config.last_chars)
            for at in range(first, size, PIECE):
                ids = trained_on.read(at, min(PIECE, size - at)).astype(np.int64)
                self._read(ids, np.empty((0, vocab_size)))
            self.trie.length[0] = 0  # another text begins

    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters, counting each."""
        p = np.empty((len(ids), self.vocab_size))
        self._read(ids, p)
        return torch.from_numpy(p).log_().float()

    def fork(self) -> "GrowingNGram":
        """Return a reader that goes on from here and counts no more."""
        other = copy(self)
        other.counting = False
        contexts, length = self.trie.contexts.copy(), self.trie.length.copy()
        other.trie = self.trie._replace(contexts=contexts, length=length)
        return other

    def first(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of a character without context."""
        p = np.empty(self.vocab_size)
        predict(self.trie, 0, p)
        return torch.from_numpy(p).log_().float()

    def _read(self, ids: Int[ndarray, "n"], p: Float[ndarray, "m V"]) -> None:
        """Read on; write the prediction after each character to `p`, unless that is empty."""
        ids, done = ids.astype(np.int64), 0
        while True:
            done += read(self.trie, ids[done:], p[done:], self.counting)
            if done == len(ids):
                return
            self.trie = self.trie._replace(rows=_wider(self.trie.rows))


def _wider(rows: Array) -> Array:
    """Return the rows with room for twice as many.

    Raises MachineError if that is more memory than the machine has.
    """
    needed = 2 * rows.nbytes
    if 2 * len(rows) > MOST_ROWS or needed > machine_bytes():
        what = f"counts that grow need {human_bytes(needed)} of memory"
        raise MachineError("model.order", what, "lower it, or count fewer characters")
    found = np.zeros((2 * len(rows), 5), np.int32)
    found[: len(rows)] = rows
    return found


@kernel
@no_type_check
def read(trie: Trie, ids: Array, p: Array, counting: bool) -> int:
    """Read on, perhaps counting, and write p (n, V) of the next character after each of `ids`.

    Returns how many of `ids` fitted into the rows. Nothing is predicted if `p` is empty.
    """
    contexts, length = trie.contexts, trie.length
    for t in range(len(ids)):
        if counting:
            needed = 0
            for k in range(length[0] + 1):
                needed += 2 * trie.rows[contexts[k], CHILDREN] + 1
            if trie.used[0] + needed > len(trie.rows):
                return t
            count(trie, ids[t])
        if ids[t] == trie.boundary:
            length[0] = 0  # what follows sees nothing before the boundary
        length[0] = min(length[0] + 1, len(contexts) - 1)
        if not counting:
            for k in range(length[0], 0, -1):
                contexts[k] = find(trie.rows, contexts[k - 1], ids[t])
        if len(p):
            predict(trie, length[0], p[t])
    return len(ids)


@kernel
@no_type_check
def count(trie: Trie, symbol: int) -> None:
    """Count a symbol after each context; then replace these by the contexts of the next symbol."""
    rows, often, order = trie.rows, trie.often, len(trie.contexts)
    new = True  # the longest has a place, the start of the text, unless it has the full order
    for k in range(trie.length[0], -1, -1):
        node = _child(rows, trie.used, trie.contexts[k], symbol)
        seen = rows[node, COUNT]
        _add_one(rows[node], COUNT, often[0, k + 1])
        if k + 1 < order:
            if new:
                _add_one(rows[node], PLACES, often[1, k + 1])
            trie.contexts[k + 1] = node
        new = seen == 0


@kernel
@no_type_check
def _child(rows: Array, used: Array, parent: int, symbol: int) -> int:
    """Return the child of an n-gram with this last character; if it is new, with a count of 0."""
    node = find(rows, parent, symbol)
    if node != EMPTY:
        return node
    first, size = rows[parent, FIRST], rows[parent, CHILDREN]
    if size & (size - 1) == 0:  # no room: move to the end
        for i in range(size):
            for column in range(5):  # a slice would be an array, which takes longer to make
                rows[used[0] + i, column] = rows[first + i, column]
        first = rows[parent, FIRST] = used[0]
        used[0] += max(1, 2 * size)
    rows[parent, CHILDREN] = size + 1
    rows[first + size, SYMBOL] = symbol
    return first + size


@kernel
@no_type_check
def find(rows: Array, parent: int, symbol: int) -> int:
    """Return the child of an n-gram with this last character, or `EMPTY`."""
    first = rows[parent, FIRST]
    for node in range(first, first + rows[parent, CHILDREN]):
        if rows[node, SYMBOL] == symbol:
            return node
    return EMPTY


@kernel
@no_type_check
def _add_one(row: Array, column: int, often: Array) -> None:
    """Add 1 to a count of an n-gram, and update `often`: how many of its order have each count."""
    seen = row[column]
    row[column] = seen + 1
    if 1 <= seen <= 4:
        often[seen] -= 1
    if seen < 4:
        often[seen + 1] += 1


@kernel
@no_type_check
def predict(trie: Trie, length: int, p: Array) -> None:
    """Write p (V,) of the next character, from the context of this length to the empty one.

    An order gives each character that followed the context a share; the next order divides the rest.
    """
    rows, method = trie.rows, trie.method
    p[:] = 0.0
    rest = 1.0
    for k in range(length, -1, -1):
        column = COUNT if k == length or method != KNESER_NEY else PLACES
        parent = trie.contexts[k]
        first = rows[parent, FIRST]
        end = first + rows[parent, CHILDREN]
        if end > first:
            seldom = trie.often[column - COUNT, k + 1]
            added = trie.added * len(p)
            taken, whole, discount = _rule(rows, first, end, column, seldom, method, added)
            for node in range(first, end):
                seen = rows[node, column]
                share = (seen - discount[min(seen, 3)]) / whole
                if k == 0 or rows[node, COUNT] >= trie.least:
                    p[rows[node, SYMBOL]] += rest * share
                else:
                    taken += share * whole
            rest *= taken / whole
        if method == ADD_K:
            break
    p += rest / len(p)


@kernel
@no_type_check
def _rule(
    rows: Array, first: int, end: int, column: int, often: Array, method: int, added: float
) -> tuple[float, float, Discounts]:
    """Return how a context divides its probability.

    Returns what shorter contexts get, the total that this is a share of, and the discounts of counts
    of 0, 1, 2, and 3 or more.
    """
    total, ones, twos, more = 0, 0, 0, 0
    for node in range(first, end):
        seen = rows[node, column]
        total += seen
        ones += seen == 1
        twos += seen == 2
        more += seen > 2
    if method == KNESER_NEY:
        discount = _discounts(often)
        taken = discount[1] * ones + discount[2] * twos + discount[3] * more
        return taken, float(total), discount
    taken = added if method == ADD_K else float(end - first)
    return taken, total + taken, (0.0, 0.0, 0.0, 0.0)


@kernel
@no_type_check
def _discounts(often: Array) -> Discounts:
    """Return `discounts` of `smoothing`, from how many n-grams have counts of 1, 2, 3 and 4."""
    y = often[1] / max(1, often[1] + 2 * often[2])
    one = 1 - 2 * y * often[2] / max(1, often[1])
    two = 2 - 3 * y * often[3] / max(1, often[2])
    three = 3 - 4 * y * often[4] / max(1, often[3])
    return (
        0.0,
        one if often[1] and 0 < one < 1 else FALLBACK[0],
        two if often[1] and often[2] and 0 < two < 2 else FALLBACK[1],
        three if often[1] and often[3] and 0 < three < 3 else FALLBACK[2],
    )
