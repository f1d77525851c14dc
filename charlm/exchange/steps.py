"""A model's next step as a function of tensors, which a graph can hold: the state comes in and goes out.

    step = step_of(model)
    logits, *state = step(ids, *state)          ids (B, n); the first state is `step.start(B)`, all zeros

charlm's own state (`model.start`) allocates memory ahead and branches in Python. Here all tensors have a
fixed shape but for the number of texts, and what is not yet there is masked by the position. The logits
are those of `model.go_on`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.models import LanguageModel
from charlm.models.attention import AttentiveModel, Head, MultiHeadAttention
from charlm.models.mingru import MinGRU, one_by_one
from charlm.models.modern import ROTARY_BASE, ModernGPT
from charlm.models.registry import Kind, kind_of
from charlm.training.carrying import rebuilt, tensors_of

State = tuple[Tensor, ...]


class Step(nn.Module):
    """A model's next step.

    Attributes:
        names: Of the tensors of its state. The first is `position`: how many characters have been read.
        most: Characters that it reads at once.
    """

    names: list[str]
    most: int

    def start(self, batch_size: int) -> State:
        """Return the state of texts of which nothing has been read: zeros, with a row for each text.

        Only `position` has a single entry for all texts.
        """
        return torch.zeros(1, dtype=torch.int64), *self.others(batch_size)

    def others(self, batch_size: int) -> State:
        """Return the start of the rest of the state."""
        raise NotImplementedError

    def pieces(self, length: int) -> Iterator[int]:
        """Yield the lengths of the pieces in which it can read a text from the start."""
        while length:
            yield min(length, self.most)
            length -= min(length, self.most)


@dataclass
class Held:
    """The keys and values of a layer, the last at the end; what `charlm.models.modern.BlockCache` asks for."""

    keys: Float[Tensor, "B H W D"]
    values: Float[Tensor, "B H W D"]
    mask: Bool[Tensor, "n S"]
    used: Any = 0  # the position, for models with learned ones
    table: Any = None
    attention_input: Any = None
    mlp_input: Any = None

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all keys and values and the mask; hold the last."""
        new, window = key.shape[-2], self.keys.shape[-2]
        keys, values = (
            torch.cat(pair, dim=-2) for pair in ((self.keys, key), (self.values, value))
        )
        self.keys, self.values = (held.narrow(-2, new, window) for held in (keys, values))
        return keys, values, self.mask


def visible(position: Int[Tensor, "1"], new: int, window: int) -> Bool[Tensor, "n S"]:
    """Return which of `window` places and `new` characters each of these sees.

    Each sees `window` characters, itself included, but no place before the start of the text.
    """
    place = torch.arange(window + new)
    query = torch.arange(window, window + new)[:, None]
    return (place <= query) & (place > query - window) & (place >= window - position)


class SlidingStep(Step):
    """That of a `ModernGPT`, whose view slides; see `charlm.models.cache.SlidingView`."""

    def __init__(self, model: ModernGPT) -> None:
        super().__init__()
        self.model, self.most = model, model.block_size
        table = model.ngram_embedding
        self.back = 0 if table is None else table.longest - 1
        self.names = ["position", "before"] if self.back else ["position"]
        self.parts = ["keys", "values"]
        self.parts += ["attention_input", "mlp_input"] if model.shift else []
        self.names += [f"{part}.{i}" for i in range(model.depth) for part in self.parts]

    def others(self, batch_size: int) -> State:
        """Return zeros: characters before (their ids + 1), and for each layer what it holds."""
        model = self.model
        width, size = model.token_embedding.embedding_dim, model.head_size
        held, last = (width // size, model.block_size, size), (1, width)
        before = torch.zeros(batch_size, self.back, dtype=torch.int64)
        # No tensor twice: an exporter takes equal ones for one input.
        parts = [
            torch.zeros(batch_size, *shape)
            for _ in range(model.depth)
            for shape in (held, held, last, last)[: len(self.parts)]
        ]
        return *([before] if self.back else []), *parts

    def forward(self, ids: Int[Tensor, "B n"], *state: Tensor) -> State:
        """Return the logits and the next state."""
        position, *others = state
        model, new = self.model, ids.shape[1]
        before, held = (others[:1], others[1:]) if self.back else ([], others)
        mask = visible(position, new, model.block_size)
        table = rotary_from(position, new, model.head_size)
        every = [held[i :: len(self.parts)] for i in range(len(self.parts))]
        layers = [
            Held(mask=mask, table=table, **dict(zip(self.parts, of_layer, strict=True)))
            for of_layer in zip(*every, strict=True)
        ]
        text = before[0] - 1 if before else None
        logits = model(ids, SimpleNamespace(ids=text, layers=layers))
        later = [getattr(layer, part) for layer in layers for part in self.parts]
        return logits, position + new, *(last_of(one, ids + 1) for one in before), *later


def rotary_from(
    position: Int[Tensor, "1"], count: int, head_size: int
) -> Float[Tensor, "2 n D_half"]:
    """Return `charlm.models.modern.rotary_table` from a position on.

    Angles are in double precision, since the position grows without end. The cosine is written as a
    sine, because ONNX Runtime has no cosine of doubles.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_size, 2) / head_size)
    places = (position + torch.arange(count)).double()
    angles = places[:, None] * frequencies.double()
    return torch.stack([(angles + math.pi / 2).sin(), angles.sin()]).float()


def last_of(held: Int[Tensor, "B W"], new: Int[Tensor, "B n"]) -> Int[Tensor, "B W"]:
    """Return the last characters, as many as were held."""
    return torch.cat([held, new], dim=1).narrow(1, new.shape[1], held.shape[1])


class HalvedStep(Step):
    """That of a model with attention and learned positions; see `charlm.models.cache.HalvedView`.

    `position` counts the characters in view. When the view is full, the next step drops its older half and
    reads the other half again. Steps of several characters must not go on beyond the end of the view.
    """

    def __init__(self, model: AttentiveModel) -> None:
        super().__init__()
        self.model, self.most = model, model.block_size
        self.kept = model.block_size - max(1, model.block_size // 2)
        layers = range(model.depth)
        self.names = ["position", "view"]
        self.names += [f"{part}.{i}" for i in layers for part in ("keys", "values")]

    def others(self, batch_size: int) -> State:
        """Return zeros: the characters in view, and for each layer its keys and values."""
        size = self.model.block_size
        view = torch.zeros(batch_size, size, dtype=torch.int64)
        held = [
            torch.zeros(batch_size, heads, size, width)
            for heads, width in head_shapes(self.model)
            for _ in range(2)
        ]
        return view, *held

    def pieces(self, length: int) -> Iterator[int]:
        """Yield the lengths of the pieces in which it can read a text from the start."""
        room = self.most
        while length:
            yield min(length, room)
            length -= min(length, room)
            room = self.most - self.kept

    def forward(self, ids: Int[Tensor, "B n"], *state: Tensor) -> State:
        """Return the logits and the next state."""
        new, view = ids.shape[1], state[1]
        full = (state[0] + new > self.most)[0]
        position, *held = torch.cond(full, self.again, as_it_is, state)
        logits, later = self.read(ids, position, held)
        return logits, position + new, last_of(view, ids), *later

    def again(self, position: Tensor, view: Tensor, *held: Tensor) -> State:
        """Read the younger half of the view as if it were the whole text."""
        start = tuple(torch.zeros_like(one) for one in held)
        if self.kept:
            _, start = self.read(view[:, -self.kept :], torch.zeros_like(position), start)
        return as_copies(torch.full_like(position, self.kept), *start)

    def read(
        self, ids: Int[Tensor, "B n"], position: Tensor, held: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "B n V"], State]:
        """Return the logits of characters at a position, and what the layers hold then."""
        mask = visible(position, ids.shape[1], self.most)
        first = position.item()
        layers = [Held(*pair, mask, first) for pair in zip(held[::2], held[1::2], strict=True)]
        logits = self.model(ids, layers)
        return logits, tuple(one for layer in layers for one in (layer.keys, layer.values))


def as_it_is(position: Tensor, view: Tensor, *held: Tensor) -> State:
    """Return the position and what the layers hold."""
    return as_copies(position, *held)


def as_copies(*tensors: Tensor) -> State:
    """Return tensors whose memory is laid out alike, as those that come from two branches must be."""
    return tuple(one.clone(memory_format=torch.contiguous_format) for one in tensors)


def head_shapes(model: AttentiveModel) -> Iterator[tuple[int, int]]:
    """Yield the number and the width of the heads of each layer."""
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            yield module.n_head, module.projection.in_features // module.n_head
        elif isinstance(module, Head):
            yield 1, module.value.out_features


class ViewStep(Step):
    """That of a model that runs again on all characters in view; see `LanguageModel.go_on`.

    `position` counts the characters in view, which stand at its start. What comes after them changes no
    logits.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model, self.most = model, 1
        self.names = ["position", "view"]
        size = model.block_size
        # With a fixed memory the oldest character goes; with a block, its older half.
        self.dropped = 1 if model.any_length else max(1, size // 2)
        self.size = model.memory if model.any_length and model.memory else size

    def others(self, batch_size: int) -> State:
        """Return an empty view."""
        return (torch.zeros(batch_size, self.size, dtype=torch.int64),)

    def forward(self, ids: Int[Tensor, "B 1"], *state: Tensor) -> State:
        """Return the logits and the next state."""
        position, view = state
        full = position == self.size
        later = F.pad(view[:, self.dropped :], (0, self.dropped))
        view = torch.where(full, later, view)
        position = torch.where(full, self.size - self.dropped, position)
        place = torch.arange(self.size)
        view = torch.where(place == position, ids, view)
        logits = self.model(view).index_select(1, position)
        return logits, position + 1, view


class TensorStep(Step):
    """That of a model whose state is tensors of a fixed shape, such as a recurrent one.

    A state may begin with other numbers than zeros: those come from `model.start` at position 0.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model, self.most = model, 1  # a pass over several is a loop, which a graph lacks
        # A scan over logarithms is for many characters; for one, the formula itself does.
        self.options = {"scan": one_by_one} if isinstance(model, MinGRU) else {}
        self.names = ["position", *(f"state.{i}" for i in range(len(self.others(1))))]

    def others(self, batch_size: int) -> State:
        """Return zeros."""
        leaves = tensors_of(self.model.start(batch_size))
        return tuple(torch.zeros_like(leaf) for leaf in leaves if leaf.numel())

    def forward(self, ids: Int[Tensor, "B 1"], *state: Tensor) -> State:
        """Return the logits and the next state."""
        position, *others = state
        first = position == 0
        begun, given = self.model.start(ids.shape[0]), iter(others)

        def put(leaf: Tensor) -> Tensor:
            return torch.where(first, leaf, next(given)) if leaf.numel() else leaf

        logits, after = self.model.go_on(ids, rebuilt(begun, put), **self.options)
        later = (leaf for leaf in tensors_of(after) if leaf.numel())
        return logits, position + 1, *later


def step_of(model: LanguageModel) -> Step | None:
    """Return the next step of a model that computes with tensors; None of any other."""
    if kind_of(model).learner != Kind.learner:
        return None  # it counts
    if isinstance(model, ModernGPT):
        return SlidingStep(model)
    if isinstance(model, AttentiveModel):
        return HalvedStep(model)
    return TensorStep(model) if has_fixed_state(model) else ViewStep(model)


def has_fixed_state(model: LanguageModel) -> bool:
    """Tell whether reading leaves the shapes of a model's state as they are."""
    state = begun = model.start(1)
    with torch.no_grad():
        for _ in range(2):
            _, state = model.go_on(torch.zeros(1, 1, dtype=torch.int64), state)
    before, after = ([one.shape for one in tensors_of(part)] for part in (begun, state))
    return before == after
