"""A model that is counted, not trained: the n-gram, up to order 32.

The next character is predicted from the counts of the characters that followed the same context in
the text; `smoothing` handles rare and unseen contexts. There is one table per order, looked up by
binary search. Each context is found from a shorter one at the position before, so the cost does not
depend on the size of the alphabet.

The first positions of a text (or window, or prompt) have less context than the model can use. After
k characters it predicts what the model of order k + 1 would.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.config import AdaptConfig, ModelConfig, NGramConfig
from charlm.models.adaptive import AdaptiveReader
from charlm.models.base import LanguageModel, check_names, check_tensor
from charlm.models.counts import STRIDE
from charlm.models.smoothing import Table
from charlm.text.tokens import Ids

PARTS = ("keys", "share", "left_over")


class NGramModel(LanguageModel):
    """An n-gram model with its tables; before a fit, all characters are equally likely.

    Args:
        block_size: Characters in a window when it is scored in windows; the model itself looks at
            the last `order - 1` only.
        order: Characters of the longest n-gram.
        backs_off: Whether an unseen context asks the one without its oldest character (Kneser-Ney,
            Witten-Bell), or makes all characters equally likely (add-k).
    """

    any_length = True
    config: NGramConfig | None = None  # what it was built from, if it was
    per_character: ClassVar = {}  # tables are renumbered: see `take_over`

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        order: int,
        *,
        backs_off: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.order = order
        self.memory = order - 1
        self.backs_off = backs_off
        self.register_buffer("keys_1", torch.empty(0))  # for `device`
        self.set_tables([Table(np.arange(vocab_size), np.zeros(vocab_size), np.ones(1))])

    @classmethod
    def from_config(
        cls, config: ModelConfig, vocab_size: int, generator: torch.Generator | None = None
    ) -> LanguageModel:
        """Build the model that a configuration describes."""
        model = super().from_config(config, vocab_size, generator)
        assert isinstance(model, NGramModel)
        assert isinstance(config, NGramConfig)
        model.config = config
        return model

    @property
    def ngrams(self) -> int:
        """How many counted n-grams it stores."""
        return sum(len(self.get_buffer(f"keys_{k}")) for k in range(1, self.order + 1))

    @property
    def device(self) -> torch.device:
        """Where its tables are."""
        return self.get_buffer("keys_1").device

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check that these are tables of this order and alphabet, or raise ValueError."""
        check_names(state_dict, self.state_dict())
        contexts = 1
        for k in range(1, self.order + 1):
            keys, share, left_over = (state_dict[f"{part}_{k}"] for part in PARTS)
            length = self.vocab_size if k == 1 else keys.numel()
            rows = (2,) if share.dim() == 2 and k < self.order else ()  # see `Table`
            check_tensor(f"keys_{k}", keys, (length,), torch.int64)
            check_tensor(f"share_{k}", share, (*rows, length), torch.float32)
            check_tensor(f"left_over_{k}", left_over, (*rows, contexts), torch.float32)
            inside = not len(keys) or (keys[0] >= 0 and keys[-1] < contexts * self.vocab_size)
            if not inside or not bool((keys[1:] > keys[:-1]).all()):  # a difference may overflow
                raise ValueError(f"keys_{k} are not increasing keys of {self.vocab_size} symbols")
            whole_share = left_over.double().index_add(-1, keys // self.vocab_size, share.double())
            positive = bool((share >= 0).all() and (left_over >= 0).all())
            if not positive or not bool(((whole_share - 1).abs() < 1e-5).all()):
                raise ValueError(f"share_{k} and left_over_{k} are not probabilities that sum to 1")
            contexts = len(keys)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *options: object
    ) -> None:
        """Take tables, which may have other sizes than the present ones."""
        self.set_tables(
            Table(*(state_dict[f"{prefix}{part}_{k}"].numpy() for part in PARTS))
            for k in range(1, self.order + 1)
        )

    def take_over(self, other: LanguageModel, known: Int[Tensor, "V"]) -> None:
        """Take the tables of the same model over another alphabet.

        N-grams with a character that is missing here are left out, and what their context gave to
        them goes to shorter contexts. New characters were never counted.
        """
        assert isinstance(other, NGramModel)
        new_ids = np.full(other.vocab_size, -1)  # of the characters of the other alphabet
        here = np.flatnonzero(known.numpy() >= 0)
        new_ids[known.numpy()[here]] = here
        parents, contexts = np.zeros(1, np.int64), 1  # the new number of each context; -1: gone
        tables = []
        for k in range(1, self.order + 1):
            keys, share, left_over = (
                other.get_buffer(f"{part}_{k}").cpu().numpy() for part in PARTS
            )
            parent, character = np.divmod(keys, other.vocab_size)
            kept = (parents[parent] >= 0) & (new_ids[character] >= 0)
            left = left_over.astype(np.float64)
            for row, lost in zip(np.atleast_2d(left), np.atleast_2d(share), strict=True):
                np.add.at(row, parent[~kept], lost[~kept])
            found = np.ones((*left.shape[:-1], contexts))  # 1: nothing followed
            found[..., parents[parents >= 0]] = left[..., parents >= 0]
            new = parents[parent[kept]] * self.vocab_size + new_ids[character[kept]]
            shares = share[..., kept]
            numbers = np.full(len(keys), -1)
            numbers[kept] = np.arange(len(new))
            if k == 1:  # which has every character
                whole = np.zeros((*share.shape[:-1], self.vocab_size))
                whole[..., new] = shares
                numbers[kept] = new
                new, shares = np.arange(self.vocab_size), whole
            tables.append(Table(new, shares, found))
            parents, contexts = numbers, len(new)
        self.set_tables(tables)

    def set_tables(self, tables: Iterable[Table]) -> None:
        """Take the tables of all orders, the lowest first; orders without a table stay empty.

        They are copied to memory; see `Table.held_bytes`.
        """
        tables, device = iter(tables), self.device
        contexts, nothing = 1, np.empty(0)
        found: dict[str, Tensor] = {}
        for k in range(1, self.order + 1):
            table = next(tables, None) or Table(nothing, nothing, np.ones(contexts))
            keys = torch.from_numpy(np.array(table.keys, np.int64))
            found[f"keys_{k}"] = keys
            found[f"share_{k}"] = torch.from_numpy(np.array(table.share, np.float32))
            found[f"left_over_{k}"] = torch.from_numpy(np.array(table.left_over, np.float32))
            found[f"first_{k}"] = self._first(keys, contexts)
            contexts = len(keys)
        for name, tensor in found.items():
            self.register_buffer(name, tensor.to(device), persistent=not name.startswith("first"))

    def _first(self, keys: Int[Tensor, "N"], contexts: int) -> Int[Tensor, "M"]:
        """Return the start of each context's followers in `keys`, and the end of the last one's."""
        first = torch.empty(contexts + 1, dtype=torch.int64)
        for start in range(0, contexts + 1, STRIDE):
            stretch = torch.arange(start, min(start + STRIDE, contexts + 1))
            first[start : start + STRIDE] = torch.searchsorted(keys, stretch * self.vocab_size)
        return first

    def adaptive(self, options: AdaptConfig, trained_on: Ids | None = None) -> AdaptiveReader:
        """Return a reader whose counts grow, from those of `trained_on` on.

        Raises ValueError if the model was fitted and that text is not given: its tables hold
        probabilities, from which counts cannot be recovered.
        """
        if not options.counts or self.config is None:
            return super().adaptive(options, trained_on)
        if trained_on is None and bool(self.get_buffer("share_1").any()):
            raise ValueError("a fitted n-gram model needs the text that it was fitted to")
        from charlm.models.growing import GrowingNGram  # its compiler takes half a second to import

        return GrowingNGram(self.config, self.vocab_size, trained_on)

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return log-probabilities, which are logits too. T is not limited."""
        weight = self._ones(idx)
        p = weight.new_zeros(idx.numel(), self.vocab_size)
        for k, row, context, share, left_over in self._known(idx):
            # Each row's followers are neighbours in the table: enumerate them.
            keys, first = self.get_buffer(f"keys_{k}"), self.get_buffer(f"first_{k}")
            begin, many = first[context], first[context + 1] - first[context]
            behind = torch.repeat_interleave(begin - many.cumsum(0) + many, many)
            follower = behind + torch.arange(len(behind), device=idx.device)
            symbol = keys[follower] % self.vocab_size
            of_row = torch.repeat_interleave(row, many)
            p.view(-1)[of_row * self.vocab_size + symbol] += weight[of_row] * share[follower]
            weight[row] *= left_over[context]
        p += weight[:, None] * self.shortest()
        return p.log_().float().view(*idx.shape, self.vocab_size)

    def log_probability(
        self, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Return only the log-probability of each target, in nats: one look-up per order."""
        weight = self._ones(idx)
        p, target = torch.zeros_like(weight), targets.flatten()
        for k, row, context, share, left_over in self._known(idx):
            node = self._find(k, context * self.vocab_size + target[row])
            if len(share):  # empty before a fit, and for a text too short for this order
                p[row] += weight[row] * torch.where(node >= 0, share[node], 0.0)
            weight[row] *= left_over[context]
        p += weight * self.shortest()[target]
        return p.log_().clamp_(max=0).float().view(idx.shape)  # rounding may exceed 1 by 1e-8

    def _known(
        self, idx: Int[Tensor, "B T"]
    ) -> Iterator[tuple[int, Int[Tensor, "R"], Int[Tensor, "R"], Tensor, Tensor]]:
        """Yield each order from the highest to 2, the positions with a known context, and the contexts.

        Positions are those in the flattened `idx`; a context is a node. The shares and left-overs of
        the order come with them. An order is yielded twice if those at a beginning differ.
        """
        contexts = list(self._contexts(idx))
        for k in range(self.order, 1, -1):
            context = contexts.pop()
            share, left_over = self.get_buffer(f"share_{k}"), self.get_buffer(f"left_over_{k}")
            known = context >= 0
            if not self.backs_off and k < self.order:
                known[:, k - 1 :] = False  # they have more text: only the highest order counts
            if share.dim() == 1:
                ways = [(known, share, left_over)]
            else:  # position k - 2 is the only one where k - 1 characters are all the context
                begins = torch.zeros_like(known)
                begins[:, k - 2 : k - 1] = known[:, k - 2 : k - 1]
                known[:, : k - 1] = False
                ways = list(zip((known, begins), share, left_over, strict=True))
            for at, own_share, own_left_over in ways:
                row = torch.nonzero(at.flatten())[:, 0]
                yield k, row, context.flatten()[row], own_share, own_left_over

    def _ones(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "N"]:
        """Return the initial weight of each position, in the precision of the sums.

        Where long passages repeat, a product of left-overs can be too small for float32.
        """
        dtype = torch.float32 if idx.device.type == "mps" else torch.float64  # MPS has no float64
        return torch.ones(idx.numel(), dtype=dtype, device=idx.device)

    def shortest(self) -> Float[Tensor, "V"]:
        """Return the distribution below order 2, which an unknown context predicts."""
        share, left_over = self.get_buffer("share_1"), self.get_buffer("left_over_1")
        if share.dim() > 1:
            share, left_over = share[0], left_over[0]
        uniform = torch.full_like(share, 1 / self.vocab_size)
        return share + left_over * uniform if self.backs_off or self.order == 1 else uniform

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

    def _find(self, k: int, keys: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Return the nodes of level k with these keys, -1 for missing ones."""
        table = self.get_buffer(f"keys_{k}")
        if not len(table):
            return torch.full_like(keys, -1)
        place = torch.searchsorted(table, keys).clamp_(max=len(table) - 1)
        return torch.where(table[place] == keys, place, -1)
