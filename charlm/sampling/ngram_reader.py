"""A reader for n-gram models that computes each distribution once."""

from bisect import bisect_left

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from charlm.models import NGramModel
from charlm.models.ngram import PARTS
from charlm.sampling.reader import Reader, Weights, array

KEPT_BYTES = 8 << 20  # of distributions: about 16,000 at 65 characters


class NGramReader(Reader):
    """Reads one text with the tables of an n-gram model, which has no matrices for `weights`.

    The distribution after a context is the one after the next shorter context times the left-over,
    plus the shares of the context's followers. Distributions are cached, up to a bound.
    """

    def __init__(self, model: NGramModel, weights: Weights = "float32") -> None:
        self.vocab_size, self.order, self.backs_off = model.vocab_size, model.order, model.backs_off
        self.tables = [_NGramTable(model, k) for k in range(1, model.order + 1)]
        self.shortest = model.shortest().numpy().astype(np.float64)
        self.kept: dict[tuple[int, int, int], Float[ndarray, "V"]] = {}
        self.nodes = [0]  # of the last 0, 1, ... characters of the text, -1 for unknown contexts

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""
        for symbol in idx[0, -self.order :].tolist():
            ending = [
                table.find(node * self.vocab_size + symbol, node) if node >= 0 else -1
                for table, node in zip(self.tables, self.nodes, strict=False)
            ]
            self.nodes = [0, *ending][: self.order]
        return np.log(self._distribution())[None]  # type: ignore[no-any-return]

    def _distribution(self) -> Float[ndarray, "V"]:
        """Return the distribution after the longest context."""
        if len(self.kept) * self.shortest.nbytes > KEPT_BYTES:
            self.kept.clear()
        longest, p = len(self.nodes) - 1, self.shortest
        missing: list[tuple[int, int, int]] = []
        for k in range(longest, 0 if self.backs_off else max(0, longest - 1), -1):
            begins = k == longest < self.order - 1
            if (context := (k, self.nodes[k], -begins)) in self.kept:
                p = self.kept[context]
                break
            if self.nodes[k] >= 0:
                missing.append(context)
        for k, node, row in reversed(missing):
            p = self.kept[k, node, row] = self.tables[k].after(node, row, p, self.vocab_size)
        return p


class _NGramTable:
    """One order of an `NGramModel`, as memory views, whose elements Python reads faster."""

    def __init__(self, model: NGramModel, k: int) -> None:
        self.keys, share, left_over = (array(model.get_buffer(f"{part}_{k}")) for part in PARTS)
        # Two rows only where a beginning is treated differently: see `Table`.
        self.share, left_over = np.atleast_2d(share), np.atleast_2d(left_over)
        self.keys_seen, self.share_seen = memoryview(self.keys), self.share.data
        self.left_over = left_over.data
        self.first = memoryview(array(model.get_buffer(f"first_{k}")))

    def find(self, key: int, context: int) -> int:
        """Return the node with this key, one of the followers of a context, or -1."""
        end = self.first[context + 1]
        place = bisect_left(self.keys_seen, key, self.first[context], end)
        return place if place < end and self.keys_seen[place] == key else -1

    def after(
        self, context: int, row: int, shorter: Float[ndarray, "V"], vocab_size: int
    ) -> Float[ndarray, "V"]:
        """Return the distribution after a context, from that after the next shorter one.

        `row` is -1 for a context at the beginning of the text, 0 for another.
        """
        begin, end, base = self.first[context], self.first[context + 1], context * vocab_size
        p = shorter * self.left_over[row, context]
        if end - begin == 1:  # true of most long contexts
            p[self.keys_seen[begin] - base] += self.share_seen[row, begin]
        else:
            p[self.keys[begin:end] - base] += self.share[row, begin:end]
        return p
