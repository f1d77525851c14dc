"""A model that was counted, not trained: the n-gram, from the lesson's bigram to order 32.

What follows a context is read off the counts of what followed it in the text; `smoothing` says
what becomes of contexts that are rare or were never seen. A table for each order, looked up by
binary search; the contexts of all orders at one position are found one from the other, so
nothing depends on how wide the alphabet or how long the context is.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.models.base import LanguageModel
from charlm.models.smoothing import Table

PARTS = ("keys", "share", "left_over")


class NGramModel(LanguageModel):
    """An n-gram model with its tables.

    Args:
        vocab_size: Number of distinct characters (V).
        block_size: Characters in a window when it is scored in windows; it looks at the last
            `order - 1` only.
        order: Characters of the longest n-gram.
        backs_off: Whether an unseen context asks the one without its oldest character (Kneser-Ney,
            Witten-Bell), or gives all characters the same probability (add-k).
    """

    any_length = True

    def __init__(
        self, vocab_size: int, block_size: int, order: int, *, backs_off: bool = True
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.order = order
        self.memory = order - 1
        self.backs_off = backs_off
        self.set_tables([Table(np.arange(vocab_size), np.zeros(vocab_size), np.ones(1))])

    @property
    def device(self) -> torch.device:
        """Where its tables are."""
        return self.get_buffer("keys_1").device

    def init_weights(self, generator: torch.Generator) -> None:
        """Do nothing: before it is fitted, every character is equally likely."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tables by name: `keys_k`, `share_k` and `left_over_k` for each order k."""
        return {
            f"{part}_{k}": tensor
            for k in range(1, self.order + 1)
            for part, tensor in zip(PARTS, self._table(k), strict=True)
        }

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tables of a checkpoint.

        Raises:
            ValueError: They are not tables of this order and alphabet.
        """
        expected = self.tensors()
        for name in sorted(expected.keys() ^ tensors.keys()):
            state = "is missing" if name in expected else "belongs to another model"
            raise ValueError(f"{name} {state}; its config.yaml describes another model")
        contexts = 1
        for k in range(1, self.order + 1):
            keys, share, left_over = (tensors[f"{part}_{k}"] for part in PARTS)
            whole = k > 1 or len(keys) == self.vocab_size
            sizes = keys.ndim == 1 and share.shape == keys.shape and left_over.shape == (contexts,)
            types = keys.dtype == torch.int64 and {share.dtype, left_over.dtype} == {torch.float32}
            if not (whole and sizes and types):
                raise ValueError(f"keys_{k}, share_{k} and left_over_{k} do not fit together")
            inside = not len(keys) or (keys[0] >= 0 and keys[-1] < contexts * self.vocab_size)
            if not inside or not bool((keys.diff() > 0).all()):
                raise ValueError(f"keys_{k} are not increasing keys of {self.vocab_size} symbols")
            for part, tensor in (("share", share), ("left_over", left_over)):
                if not bool(((tensor >= 0) & (tensor <= 1 + 1e-6)).all()):
                    raise ValueError(f"{part}_{k} holds values that are no probabilities")
            contexts = len(keys)
        self.set_tables(
            [Table(*(tensors[f"{p}_{k}"].numpy() for p in PARTS)) for k in range(1, self.order + 1)]
        )

    def set_tables(self, tables: Iterable[Table]) -> None:
        """Take the tables of all orders, the lowest first; orders without one stay empty."""
        vocab_size, contexts = self.vocab_size, 1
        tables = list(tables)
        empty = np.empty(0)
        for k in range(1, self.order + 1):
            table = tables[k - 1] if k <= len(tables) else Table(empty, empty, np.ones(contexts))
            keys = torch.from_numpy(np.ascontiguousarray(table.keys, np.int64))
            self.register_buffer(f"keys_{k}", keys)
            self.register_buffer(f"share_{k}", _floats(table.share))
            self.register_buffer(f"left_over_{k}", _floats(table.left_over))
            edges = torch.arange(contexts + 1) * vocab_size
            self.register_buffer(f"first_{k}", torch.searchsorted(keys, edges), persistent=False)
            contexts = len(keys)

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return log-probabilities: logits whose softmax is themselves. T is not limited."""
        uniform = 1 / self.vocab_size
        _, share, left_over = self._table(1)
        p = (share + left_over * uniform).repeat(idx.numel(), 1)
        for k, context in enumerate(self._contexts(idx), start=2):
            keys, share, left_over = self._table(k)
            if not self.backs_off:
                p.view(*idx.shape, -1)[:, k - 2 :] = uniform
            rows = torch.nonzero(context.flatten() >= 0)[:, 0]
            node = context.flatten()[rows]
            p[rows] *= left_over[node, None]
            # Each row's followers stand side by side in the table: count them off.
            first = self.get_buffer(f"first_{k}")
            begin, many = first[node], first[node + 1] - first[node]
            behind = torch.repeat_interleave(begin - many.cumsum(0) + many, many)
            follower = behind + torch.arange(len(behind), device=idx.device)
            symbol = keys[follower] % self.vocab_size
            row = torch.repeat_interleave(rows, many)
            p.view(-1)[row * self.vocab_size + symbol] += share[follower]
        return p.log().view(*idx.shape, self.vocab_size)

    def log_probability(
        self, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Return the log-probability of each target alone, in nats: one look-up an order."""
        uniform = 1 / self.vocab_size
        _, share, left_over = self._table(1)
        p = share[targets] + left_over * uniform
        for k, context in enumerate(self._contexts(idx), start=2):
            _, share, left_over = self._table(k)
            if not self.backs_off:
                p[:, k - 2 :] = uniform
            known = torch.nonzero((context >= 0).flatten())[:, 0]
            node = context.flatten()[known]
            target = self._find(k, node * self.vocab_size + targets.flatten()[known])
            # An order may have no table: before the fit, or for a text too short for it.
            gained = torch.where(target >= 0, share[target], 0.0) if len(share) else 0.0
            p.view(-1)[known] = p.view(-1)[known] * left_over[node] + gained
        return p.log()

    def _contexts(self, idx: Int[Tensor, "B T"]) -> Iterator[Int[Tensor, "B T"]]:
        """Yield, for k = 1 to order - 1, the node of the k-gram that ends at each position, or -1.

        One leads to the next: the k-gram that ends at t is the (k - 1)-gram that ends at t - 1,
        and the character at t.
        """
        node = idx
        for k in range(1, self.order):
            if k > 1:
                longer = torch.full_like(idx, -1)
                known = node[:, :-1] >= 0
                keys = node[:, :-1][known] * self.vocab_size + idx[:, 1:][known]
                longer[:, 1:][known] = self._find(k, keys)
                node = longer
            yield node

    def _table(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        keys, share, left_over = (self.get_buffer(f"{part}_{k}") for part in PARTS)
        return keys, share, left_over

    def _find(self, k: int, keys: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Return the nodes of level k with these keys, -1 for those that are not there."""
        table = self.get_buffer(f"keys_{k}")
        if not len(table):
            return torch.full_like(keys, -1)
        place = torch.searchsorted(table, keys).clamp_(max=len(table) - 1)
        return torch.where(table[place] == keys, place, -1)


def _floats(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
