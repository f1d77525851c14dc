"""A counted model of the next character after chosen parts of the text before it.

    looks_at: 1 2 3 word word-1     the last three characters, the word so far, and the word before

Smoothing is Kneser-Ney's, with parts in the place of characters: where a combination of parts is new,
the last part is left out, and then the one before. So the most telling part comes first. As in an
n-gram model, a shorter combination counts where the longer one is new (see `growing`, whose counts
these are; only the contexts are found by hashes here).

Its weights are the text that it has counted. The counts are made again from it when they are first
needed, a second or two for a million characters, and take about 50 bytes for each.
"""

from collections.abc import Callable, Mapping
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import int64, uint64
from numpy import ndarray
from torch import Tensor

from charlm.config import AdaptConfig
from charlm.errors import check_stop
from charlm.models.adaptive import AdaptiveReader
from charlm.models.base import LanguageModel, check_names, check_tensor
from charlm.models.growing import CHILDREN, KNESER_NEY, Array, count_one, predict, wider
from charlm.models.kernel import kernel
from charlm.models.view import SIZE, codes_of, mixed, part, see
from charlm.text.tokens import Ids

PIECE = 1 << 16  # characters counted between two looks at whether to stop
EMPTY = 1  # the row of a context that was never seen
FULL = 0.5  # share of the table of contexts that may be in use


class ContextModel(LanguageModel):
    """Counts of what followed each combination of parts; before a fit, it knows nothing.

    Args:
        block_size: Characters in a window when it is scored in windows. `go_on` sees all parts,
            however far back they are.
        looks_at: The parts, as in the configuration.
    """

    text: Tensor
    classes: Tensor

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        looks_at: str,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.codes = codes_of(looks_at)
        self.register_buffer("text", torch.empty(0, dtype=_width(vocab_size)))
        self.register_buffer("classes", torch.zeros(2, vocab_size, dtype=torch.int32))
        self._counts: Counts | None = None

    @property
    def device(self) -> torch.device:
        """Where its text is; it predicts on the CPU."""
        return self.text.device

    def fit(
        self, ids: Ids, classes: Array, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Count a text instead of the one before; `classes` are those of `classes_of`.

        Raises Stopped if `should_stop` says so; the model is unchanged then.
        """
        text = np.asarray(ids.read(0, len(ids)))
        counts = Counts(self.vocab_size, self.codes, classes)
        counts.count(text, should_stop)
        self.text = torch.from_numpy(text.astype(np.int64)).to(self.text.dtype).to(self.device)
        self.classes = torch.from_numpy(classes).to(self.device)
        self._counts = counts

    def counts(self) -> "Counts":
        """Return its counts, made again if need be."""
        if self._counts is None:
            counts = Counts(self.vocab_size, self.codes, self.classes.cpu().numpy())
            counts.count(self.text.cpu().numpy())
            self._counts = counts
        return self._counts

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check that this is a text of this alphabet, or raise ValueError."""
        check_names(state_dict, self.state_dict())
        text, classes = state_dict["text"], state_dict["classes"]
        check_tensor("text", text, (text.numel(),), self.text.dtype)
        check_tensor("classes", classes, (2, self.vocab_size), torch.int32)
        for name, tensor in (("text", text), ("classes", classes)):
            if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < self.vocab_size:
                raise ValueError(f"{name} has ids that are none of {self.vocab_size} symbols")

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *options: object
    ) -> None:
        """Take a text of any length."""
        self.text = state_dict[f"{prefix}text"].to(self.device)
        self.classes = state_dict[f"{prefix}classes"].to(self.device)
        self._counts = None

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> "ContextModel":
        self._counts = None  # a model that is moved away shall not keep them
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return log-probabilities, which are logits too."""
        self.check_length(idx)
        return self.go_on(idx, self.start(len(idx)))[0]

    def start(self, batch_size: int) -> Int[Tensor, "B S"]:
        """Return a view of nothing for each text."""
        return torch.zeros(batch_size, SIZE, dtype=torch.int64)

    def go_on(
        self, idx: Int[Tensor, "B n"], state: Int[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B n V"], Int[Tensor, "B S"]]:
        """Read on; the state is brought up to date in place."""
        counts, p = self.counts(), np.empty((*idx.shape, self.vocab_size))
        for row, ids, view in zip(p, idx.cpu().numpy(), state.numpy(), strict=True):
            counts.read(ids, row, view.view(np.uint64))
        return torch.from_numpy(p).log_().float().to(idx.device), state

    def adaptive(self, options: AdaptConfig, trained_on: Ids | None = None) -> AdaptiveReader:
        """Return a reader whose counts grow; the model knows the text that it was fitted to."""
        if not options.counts:
            return super().adaptive(options, trained_on)
        return GrowingContexts(self.counts().copy())


class GrowingContexts(AdaptiveReader):
    """Reads one text, and counts each character after predicting it, in `counts`, its own."""

    learned = ("counts",)

    def __init__(self, counts: "Counts") -> None:
        self.counts = counts
        self.view = np.zeros(SIZE, np.uint64)

    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters, counting each."""
        p = np.empty((len(ids), self.counts.vocab_size))
        self.counts.learn(ids, p, self.view)
        return torch.from_numpy(p).log_().float()

    def first(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of a text's first character."""
        p = np.empty((1, self.counts.vocab_size))
        self.counts.read(np.empty(0, np.int64), p, self.view)
        return torch.from_numpy(p[0]).log_().float()


class Counts:
    """What followed each combination of the parts with these `codes`, and of the first of them."""

    def __init__(self, vocab_size: int, codes: Array, classes: Array) -> None:
        self.vocab_size, self.codes, self.classes = vocab_size, codes, classes
        self.rows = np.zeros((1 << 10, 5), np.int32)  # see `growing`; first the empty combination
        self.used = np.array([EMPTY + 1, 0], np.int64)  # rows, and entries of the table
        self.table = np.zeros((1 << 10, 2), np.int64)  # the hash of a combination, and its row
        self.often = np.zeros((2, len(codes) + 2, 5), np.int64)

    def copy(self) -> "Counts":
        """Return counts that can grow without these."""
        other = Counts(self.vocab_size, self.codes, self.classes)
        for name in ("rows", "used", "table", "often"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def count(self, text: Array, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Count a whole text."""
        view, nothing = np.zeros(SIZE, np.uint64), np.empty((0, self.vocab_size))
        for first in range(0, len(text), PIECE):
            check_stop(should_stop)
            self.learn(text[first : first + PIECE], nothing, view)

    def learn(self, ids: Array, p: Array, view: Array) -> None:
        """Count each of `ids` and, if `p` has rows, predict the next character there."""
        ids, done = ids.astype(np.int64), 0
        while True:
            tree = (self.rows, self.used, self.table, self.often)
            done += _learn(ids[done:], p[done:], view, self.codes, self.classes, *tree)
            if done == len(ids):
                return
            if self.used[1] + len(self.codes) > FULL * len(self.table):
                table = np.zeros((2 * len(self.table), 2), np.int64)
                _move(self.table, table)
                self.table = table
            else:
                self.rows = wider(self.rows, "model.looks_at")

    def read(self, ids: Array, p: Array, view: Array) -> None:
        """Predict the next character after each of `ids`; if there are none, after the view."""
        tree = (self.rows, self.used, self.table, self.often)
        _foresee(ids.astype(np.int64), p, view, self.codes, self.classes, *tree)


@kernel
@no_type_check
def _learn(
    ids: Array,
    p: Array,
    view: Array,
    codes: Array,
    classes: Array,
    rows: Array,
    used: Array,
    table: Array,
    often: Array,
) -> int:
    """Count each of `ids`, predict the next if `p` has rows; return how many there was room for."""
    contexts = np.zeros(len(codes) + 1, np.int64)
    if not _look(view, codes, table, rows, used, contexts, True):
        return 0
    for t in range(len(ids)):
        needed = 0
        for k in range(len(contexts)):
            needed += 2 * rows[contexts[k], CHILDREN] + 2
        if used[0] + needed > len(rows) or used[1] + len(codes) > FULL * len(table):
            return t
        count_one(ids[t], rows, used, contexts, len(codes), often, False)
        see(view, ids[t], classes)
        _look(view, codes, table, rows, used, contexts, True)
        if len(p):
            predict(p[t], rows, contexts, len(codes), often, KNESER_NEY, 0.0, 1)
    return len(ids)


@kernel
@no_type_check
def _foresee(
    ids: Array,
    p: Array,
    view: Array,
    codes: Array,
    classes: Array,
    rows: Array,
    used: Array,
    table: Array,
    often: Array,
) -> None:
    """Predict the next character after each of `ids`, or after the view if there are none."""
    contexts = np.zeros(len(codes) + 1, np.int64)
    for t in range(len(p)):
        if len(ids):
            see(view, ids[t], classes)
        _look(view, codes, table, rows, used, contexts, False)
        predict(p[t], rows, contexts, len(codes), often, KNESER_NEY, 0.0, 1)


@kernel
@no_type_check
def _look(
    view: Array, codes: Array, table: Array, rows: Array, used: Array, contexts: Array, add: bool
) -> bool:
    """Find the row of each combination of the first parts; `add` those that are new, if there is room."""
    if add and (used[0] + len(codes) > len(rows) or used[1] + len(codes) > FULL * len(table)):
        return False
    key = uint64(0)
    for k in range(len(codes)):
        key = mixed(key + uint64(k), part(view, codes[k]))
        slot = _slot(table, key)
        if add and not table[slot, 1]:
            table[slot, 0], table[slot, 1] = int64(key), used[0]
            used[0] += 1
            used[1] += 1
        contexts[k + 1] = table[slot, 1] if table[slot, 1] else EMPTY
    return True


@kernel
@no_type_check
def _slot(table: Array, key: int) -> int:
    """Return where a hash is in the table, or where it belongs."""
    last = len(table) - 1  # the size is a power of two
    slot = int64(key & uint64(last))
    while table[slot, 1] and table[slot, 0] != int64(key):
        slot = (slot + 1) & last
    return slot


@kernel
@no_type_check
def _move(table: Array, wider: Array) -> None:
    """Put all entries into a wider table."""
    for old in range(len(table)):
        if table[old, 1]:
            wider[_slot(wider, uint64(table[old, 0]))] = table[old]


def _width(vocab_size: int) -> torch.dtype:
    return torch.uint8 if vocab_size <= 256 else torch.int32
