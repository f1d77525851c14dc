"""Texts that one model reads side by side although they begin and end at different times.

SeparateRows    any model: each text has a reader of its own
SlidingRows     a `ModernGPT`: all texts share each step
FewOrMany       a `ModernGPT`: a few texts have readers of their own, which are faster; many share

A modern GPT only sees how far apart characters are. So the keys of a text that joins are turned to the
positions that the others have reached, and put where their last characters are: all rows go on together,
and a mask hides what was in the memory before a text began.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.models import LanguageModel, ModernGPT
from charlm.models.cache import BlockCache, SlidingView
from charlm.models.modern import rotary_table, rotate
from charlm.models.onednn import by_onednn
from charlm.sampling.generate import Context
from charlm.sampling.gpt_reader import ModernReader
from charlm.sampling.reader import Reader, StepReader

FEW = 4  # texts: from one more on, to read them together is faster (see `draw.WORTH`)


class Rows(ABC):
    """Any number of texts, read one character of each at a time."""

    @abstractmethod
    def join(self, context: Context) -> None:
        """Add a row that continues a context."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and drop all others."""

    @abstractmethod
    def read(self, idx: Int[ndarray, "B"]) -> Float[ndarray, "B V"]:
        """Read one more character of each row; return the logits of the next one."""


def rows_of(model: LanguageModel) -> Rows:
    """Return no rows yet of a model."""
    if not isinstance(model, ModernGPT):
        return SeparateRows()
    return FewOrMany(model) if model.device.type == "cpu" else SlidingRows(model)


class SeparateRows(Rows):
    """Rows with a reader each."""

    def __init__(self) -> None:
        self.readers: list[Reader] = []

    def join(self, context: Context) -> None:
        """Add a row that continues a context."""
        self.readers.append(context.reader.fork())

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and drop all others."""
        self.readers = [self.readers[row] for row in rows]

    def read(self, idx: Int[ndarray, "B"]) -> Float[ndarray, "B V"]:
        """Read one more character of each row."""
        rows = zip(self.readers, idx[:, None, None], strict=True)
        return np.concatenate([reader.read(row) for reader, row in rows])


class SlidingRows(Rows):
    """Rows of a `ModernGPT` in one state."""

    def __init__(self, model: ModernGPT) -> None:
        self.model = by_onednn(model)
        self.state: SlidingView | None = None
        self.begins: list[int] = []  # positions of the state at which rows have something in view

    def join(self, context: Context) -> None:
        """Add a row that continues a context."""
        self.join_view(view_of(context.reader.fork()))

    def join_view(self, view: SlidingView) -> None:
        """Add a row that continues a state of one text, which must not be used again."""
        with torch.no_grad():
            seen = view.layers[0].seen
            if self.state is None:
                self.state = _as_rows(view)
            else:
                _join(self.state, view)
            self.begins.append(self.state.length - seen)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and drop all others."""
        assert self.state is not None, "there are rows"
        self.begins = [self.begins[row] for row in rows]
        if not rows:
            self.state = None
            return
        chosen = torch.tensor(rows, device=self.state.ids.device)
        with torch.no_grad():
            self.state.ids = self.state.ids[chosen]
            for layer in self.state.layers:
                cast(RowsCache, layer).keep(chosen)

    def read(self, idx: Int[ndarray, "B"]) -> Float[ndarray, "B V"]:
        """Read one more character of each row."""
        assert self.state is not None, "there are rows"
        with torch.no_grad():
            ids, mask = torch.from_numpy(idx[:, None]).to(self.model.device), self._mask()
            for layer in self.state.layers:
                cast(RowsCache, layer).mask = mask
            logits, _ = self.model.step(ids, self.state)
            return logits.float().cpu().numpy()

    def _mask(self) -> Bool[Tensor, "B 1 1 S"] | None:
        """Return what each row sees of the positions in view, the next one included; None: all."""
        assert self.state is not None, "there are rows"
        layer, end = self.state.layers[0], self.state.length + 1
        first = end - min(layer.used + 1, layer.window)
        if max(self.begins) <= first:
            return None
        begins = torch.tensor(self.begins, device=self.state.ids.device)
        positions = torch.arange(first, end, device=begins.device)
        return (positions >= begins[:, None])[:, None, None]

    def view(self, row: int) -> SlidingView:
        """Return the state of one row."""
        assert self.state is not None, "there are rows"
        view = copy(self.state)
        ids = self.state.ids[row]
        view.ids = ids[ids >= 0][None]
        seen = self.state.length - self.begins[row]
        view.layers = [cast(RowsCache, layer).row(row, seen) for layer in self.state.layers]
        return view


class FewOrMany(Rows):
    """Rows of a `ModernGPT` on a CPU: up to `FEW` of them are read one by one, more together."""

    def __init__(self, model: ModernGPT) -> None:
        self.model = model
        self.few = SeparateRows()
        self.many: SlidingRows | None = None

    def join(self, context: Context) -> None:
        """Add a row that continues a context."""
        if self.many:
            self.many.join(context)
            return
        self.few.join(context)
        if len(self.few.readers) > FEW:
            self.many = SlidingRows(self.model)
            for reader in self.few.readers:
                self.many.join_view(view_of(reader))
            self.few.readers = []

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and drop all others."""
        if (
            self.many and len(rows) > FEW // 2
        ):  # not at once: one that left may be followed by another
            self.many.keep(rows)
        elif self.many:
            views = [self.many.view(row) for row in rows]
            self.few.readers = [ModernReader(self.model, state=view) for view in views]
            self.many = None
        else:
            self.few.keep(rows)

    def read(self, idx: Int[ndarray, "B"]) -> Float[ndarray, "B V"]:
        """Read one more character of each row."""
        return self.many.read(idx) if self.many else self.few.read(idx)


def view_of(reader: Reader) -> SlidingView:
    """Return the state of a reader of one text by a `ModernGPT`."""
    read = reader.model if isinstance(reader, ModernReader) else reader
    return cast(SlidingView, cast(StepReader, read).state)


class RowsCache(BlockCache):
    """The cache of a block for texts that begin at different slots; `mask` says what each sees.

    `held` is the beginning of `room`, which has rows to spare: texts come and go all the time.
    """

    mask: Bool[Tensor, "B 1 1 S"] | None
    room: Float[Tensor, "2 R H slots D"] | None = None

    def add(
        self, key: Float[Tensor, "B H 1 D"], value: Float[Tensor, "B H 1 D"]
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"], Bool[Tensor, "B 1 1 S"] | None]:
        """Add a key and a value; return those in view, and the mask of what each text sees."""
        keys, values, _ = super().add(key, value)
        return keys, values, self.mask

    def keep(self, rows: Int[Tensor, "B"]) -> None:
        """Keep these rows."""
        assert self.held is not None, "something was read"
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        if len(moved):
            seen = self.held[..., max(0, self.used - self.window) : self.used, :]
            seen[:, moved] = seen[:, rows[moved]]
        self.held = self.held[:, : len(rows)]
        for name in self._inputs():
            setattr(self, name, getattr(self, name)[rows])

    def _inputs(self) -> list[str]:
        """Return the names of what blocks that shift tokens keep; none, if they do not."""
        names = ["attention_input", "mlp_input"]
        return [] if self.attention_input is None else names

    def row(self, row: int, seen: int) -> BlockCache:
        """Return the cache of one text of which so many characters were read."""
        assert self.held is not None, "something was read"
        one = BlockCache(self.slots, self.window)
        one.used = min(seen, self.used)
        one.held = self.held.new_empty(2, 1, *self.held.shape[2:])
        one.held[..., : one.used, :] = self.held[
            :, row : row + 1, :, self.used - one.used : self.used
        ]
        one.table = self.table
        for name in self._inputs():
            setattr(one, name, getattr(self, name)[row : row + 1].clone())
        return one

    def join(self, other: BlockCache, turn: Float[Tensor, "2 1 D_half"]) -> None:
        """Add the text of another cache as the last row, its keys turned to the positions here."""
        assert self.held is not None, "something was read"
        assert other.held is not None, "something was read"
        used, seen = self.used, other.seen
        longest, rows = max(used, seen), self.held.shape[1]
        if self.room is None or self.room.shape[1] == rows or longest > used:
            self.room = self.held.new_empty(2, rows + 1 + rows // 2, *self.held.shape[2:])
            self.room[:, :rows, :, : longest - used] = 0  # masked, but NaN would not be
            self.room[:, :rows, :, longest - used : longest] = self.held[..., :used, :]
        held = self.room[:, : rows + 1]
        held[:, -1, :, : longest - seen] = 0
        new = other.held[:, 0, :, other.used - seen : other.used]
        held[0, -1, :, longest - seen : longest] = rotate(new[0], turn.expand(-1, seen, -1))
        held[1, -1, :, longest - seen : longest] = new[1]
        self.held, self.used = held, longest
        for name in self._inputs():
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))


def _as_rows(view: SlidingView) -> SlidingView:
    """Return the state of one text as that of a single row."""
    state = copy(view)
    state.layers = []
    for layer in view.layers:
        one = RowsCache(layer.slots, layer.window)
        vars(one).update(vars(layer))
        state.layers.append(one)
    return state


def _join(state: SlidingView, view: SlidingView) -> None:
    """Add one text to the state of others, as the last row."""
    # Of a text that is shorter than n-grams look back, the places before it are -1.
    width = max(state.ids.shape[1], view.ids.shape[1])
    state.ids = torch.cat([_padded(state.ids, width), _padded(view.ids, width)])
    head_size = 2 * state.layers[0].table.shape[-1]
    turn = rotary_table(1, head_size, state.length - view.length, torch.float64)
    for layer, other in zip(state.layers, view.layers, strict=True):
        cast(RowsCache, layer).join(other, turn.to(state.ids.device))


def _padded(ids: Int[Tensor, "B S"], width: int) -> Int[Tensor, "B W"]:
    return torch.nn.functional.pad(ids, (width - ids.shape[1], 0), value=-1)
