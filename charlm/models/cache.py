"""Key/value caches: the next character costs one position instead of a whole window.

The keys and values of a character do not change when more is read, as long as all characters stay
in view. When the view is full there are two ways to continue:

    HalvedView     with learned positions (`gpt2` and the lessons) the older half is dropped and the
                   other half read again: see `base.views`
    SlidingView    if only distances matter (`modern`) the view slides: at every layer each
                   character sees the last `block_size`, and the oldest are dropped one by one
"""

from collections.abc import Sequence
from copy import copy as shallow_copy
from typing import TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from charlm.models.attention import AttentiveModel
from charlm.models.base import views
from charlm.models.modern import ModernGPT, rotary_table

AView = TypeVar("AView", bound="View")


class KeysValues:
    """The keys and values of one layer, in memory that is allocated once, for `slots` characters.

    Each sees `window` characters, itself included.
    """

    def __init__(self, slots: int, window: int) -> None:
        self.slots = slots
        self.window = window
        self.used = 0
        self.held: Float[Tensor, "2 B H slots D"] | None = None

    @property
    def seen(self) -> int:
        """How many of the characters read may still be in view."""
        return min(self.used, self.window)

    def add(
        self, key: Float[Tensor, "B H n D"], value: Float[Tensor, "B H n D"]
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"], Bool[Tensor, "n S"] | None]:
        """Add n <= `window` more.

        Returns keys and values from the oldest that the first of the n sees to the last of them,
        and the mask of which of these each sees; None: all.
        """
        n = key.shape[-2]
        if self.held is None:
            shape = (2, *key.shape[:2], self.slots, key.shape[-1])
            self.held = torch.empty(shape, dtype=key.dtype, device=key.device)
        first, used, end = self.make_room(n)
        self.held[0, :, :, used:end] = key
        self.held[1, :, :, used:end] = value
        keys, values = self.held[:, :, :, first:end]
        return keys, values, None if n == 1 else band(n, used - first, self.window, key.device)

    def make_room(self, n: int) -> tuple[int, int, int]:
        """Reserve slots for n <= `window` more.

        Returns the oldest slot that the first of them sees, their first slot, and the one after.
        """
        if self.used + n > self.slots:
            # A copy frees slots - window slots, so as many characters share its cost.
            assert self.held is not None, "the first window always fits"
            last = self.held[..., self.used - self.window + 1 : self.used, :].clone()
            self.used = self.window - 1
            self.held[..., : self.used, :] = last
        used, self.used = self.used, self.used + n
        return max(0, used + 1 - self.window), used, self.used

    def repeat(self, count: int) -> "KeysValues":
        """Return the cache of `count` texts that all continue this one."""
        copy = shallow_copy(self)
        if self.held is not None:
            copy.held = self.held.new_empty(2, count, *self.held.shape[2:])
            copy.held[..., : self.used, :] = self.held[..., : self.used, :]
        return copy


class BlockCache(KeysValues):
    """The cache of a modern block: keys and values, and the fields of `modern.BlockCache`."""

    table: Float[Tensor, "2 T D_half"]
    attention_input: Float[Tensor, "B 1 C"] | None = None
    mlp_input: Float[Tensor, "B 1 C"] | None = None

    def repeat(self, count: int) -> "BlockCache":
        """Return the cache of `count` texts that all continue this one."""
        copy = cast(BlockCache, super().repeat(count))
        for name in ("attention_input", "mlp_input"):
            if (last := getattr(self, name)) is not None:
                setattr(copy, name, last.repeat(count, 1, 1))
        return copy


class View:
    """The state of a model: the cache of each layer, and the last characters of each text."""

    layers: Sequence[KeysValues]
    ids: Int[Tensor, "B S"]

    def repeat(self: AView, count: int) -> AView:
        """Return the state of `count` texts that all continue this one."""
        copy = shallow_copy(self)
        copy.ids = self.ids.repeat(count, 1)
        copy.layers = [layer.repeat(count) for layer in self.layers]
        return copy


class HalvedView(View):
    """The state of a model with learned positions; `ids` are the characters in view."""

    def __init__(self, model: AttentiveModel, ids: Int[Tensor, "B 0"]) -> None:
        self.ids = ids
        self.layers = self._empty(model)

    def _empty(self, model: AttentiveModel) -> list[KeysValues]:
        return [KeysValues(model.block_size, model.block_size) for _ in range(model.depth)]

    def go_on(self, model: AttentiveModel, idx: Int[Tensor, "B n"]) -> Float[Tensor, "B n V"]:
        """Read n more characters of each text."""
        logits = []
        for kept, new in views(self.ids, idx, model.block_size):
            self.ids, unread = torch.cat([kept, new], dim=1), new
            if self.layers[0].used > kept.shape[1]:
                self.layers, unread = self._empty(model), self.ids
            logits.append(model(unread, self.layers)[:, -new.shape[1] :])
        return torch.cat(logits, dim=1)


class SlidingView(View):
    """The state of a `ModernGPT`; `ids` are as many characters as n-grams look back."""

    layers: Sequence[BlockCache]

    def __init__(self, model: ModernGPT, ids: Int[Tensor, "B 0"]) -> None:
        self.ids = ids
        size = model.block_size
        self.layers = [BlockCache(2 * size, size) for _ in model.blocks]
        self.length = 0  # characters read
        self._first = 0  # position of the table's first column
        self._table = torch.empty(2, 0, model.head_size // 2)

    def go_on(self, model: ModernGPT, idx: Int[Tensor, "B n"]) -> Float[Tensor, "B n V"]:
        """Read n more characters of each text; the view slides on with them."""
        logits = []
        back = model.ngram_embedding.longest - 1 if model.ngram_embedding is not None else 0
        for part in torch.split(idx, model.block_size, dim=1):
            table = self.angles(part.shape[1])
            for layer in self.layers:
                layer.table = table
            logits.append(model(part, self))
            self.length += part.shape[1]
            ids = torch.cat([self.ids, part], dim=1)
            self.ids = ids[:, max(0, ids.shape[1] - back) :]
        return torch.cat(logits, dim=1)

    def angles(self, count: int) -> Float[Tensor, "2 T D_half"]:
        """Return the rotary table of at least the next `count` positions."""
        if self.length + count > self._first + self._table.shape[1]:
            self._first = self.length
            slots, head_size = self.layers[0].slots, 2 * self._table.shape[2]
            table = rotary_table(slots, head_size, self._first, torch.float64)
            self._table = table.to(self.ids.device)
        return self._table[:, self.length - self._first :]


def band(n: int, before: int, window: int, device: torch.device) -> Bool[Tensor, "n S"]:
    """Return which of `before` + n characters each of the last n sees: up to `window` of them."""
    query = torch.arange(before, before + n, device=device)[:, None]
    key = torch.arange(before + n, device=device)
    return (key <= query) & (key > query - window)
