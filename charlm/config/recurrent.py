"""The models between one table and attention: an MLP over the last characters, and recurrent networks.

C is `n_embd`, H `n_hidden`, V the vocabulary, T `block_size`, n `context`.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from charlm.config.base import ModelConfig, Part
from charlm.config.models import embedding, head
from charlm.config.values import Share, Size
from charlm.errors import Problem

KERNEL = 4  # characters that a convolution of `mingru` looks at
WIDE = 128  # from so many channels on, products take most of the time


class MLPConfig(ModelConfig):
    """The embeddings of the last few characters side by side, and one hidden layer."""

    type: Literal["mlp"]
    """Which model this is."""
    context: Size = 8
    """Characters that it looks back on (n)."""
    n_embd: Size = 32
    """Channels of an embedding (C)."""
    n_hidden: Size = 256
    """Channels of the hidden layer (H)."""
    dropout: Share = 0.0
    """Probability of dropping a channel of the hidden layer in training."""

    @property
    def has_dropout(self) -> bool:  # noqa: D102
        return self.dropout > 0

    @property
    def deep(self) -> bool:  # noqa: D102
        return self.n_hidden >= WIDE

    def parts(self, vocab_size: int) -> list[Part]:  # noqa: D102
        h, inputs = self.n_hidden, self.context * self.n_embd
        return [
            embedding(vocab_size, self.n_embd),
            Part("before", (self.n_embd,), multiplies=False),
            Part("hidden.weight", (h, inputs), hidden=True),
            Part("hidden.bias", (h,), multiplies=False),
            *head(vocab_size, h),
        ]

    def inner_shapes(self, batch_size: int) -> list[tuple[str, tuple[int, ...]]]:  # noqa: D102
        b, t = batch_size, self.block_size
        return [
            ("embeddings (B, T, C)", (b, t, self.n_embd)),
            ("the last n side by side (B, T, n*C)", (b, t, self.context * self.n_embd)),
            ("hidden (B, T, H)", (b, t, self.n_hidden)),
        ]


class BowConfig(ModelConfig):
    """The mean of all embeddings so far, with positions, and one hidden layer; makemore's `bow`."""

    type: Literal["bow"]
    """Which model this is."""
    n_embd: Size = 64
    """Channels of an embedding (C)."""
    n_hidden: Size = 64
    """Channels of the hidden layer (H)."""

    def parts(self, vocab_size: int) -> list[Part]:  # noqa: D102
        c, h = self.n_embd, self.n_hidden
        return [
            embedding(vocab_size, c),
            Part("position_embedding", (self.block_size, c), multiplies=False),
            Part("expand.weight", (h, c), hidden=True),
            Part("expand.bias", (h,), multiplies=False),
            Part("contract.weight", (c, h), hidden=True),
            Part("contract.bias", (c,), multiplies=False),
            *head(vocab_size, c),
        ]

    def flops_per_char(self, vocab_size: int) -> int:
        """Add 4 T C for the product with the matrix of averages, which has no gradient."""
        return super().flops_per_char(vocab_size) + 4 * self.block_size * self.n_embd

    def buffer_bytes(self) -> int:
        """Return the memory of the (T, T) matrix while it is built from a matrix of ones."""
        return 8 * self.block_size**2

    def inner_shapes(self, batch_size: int) -> list[tuple[str, tuple[int, ...]]]:  # noqa: D102
        b, t = batch_size, self.block_size
        return [
            ("embeddings (B, T, C)", (b, t, self.n_embd)),
            ("averaging matrix (T, T)", (t, t)),
            ("hidden (B, T, H)", (b, t, self.n_hidden)),
        ]


class _Recurrent(ModelConfig):
    carries_state: ClassVar[bool] = True

    n_layer: Size = 1
    """Layers in the stack."""
    n_embd: Size = 64
    """Channels of an embedding (C)."""
    n_hidden: Size = 128
    """Channels of the state of a layer (H)."""
    dropout: Share = 0.0
    """Probability of dropping an output of a layer in training."""
    tied: bool = False
    """Use the embeddings as the head too; then n_embd and the width before the head are equal."""

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0

    @property
    def width(self) -> int:
        """Channels before the head."""
        return self.n_hidden

    def conflicts(self) -> Iterator[Problem]:
        if self.tied and self.n_embd != self.width:
            what = f"needs equal widths, and n_embd is {self.n_embd} but n_hidden {self.n_hidden}"
            yield Problem("tied", what, "make them equal, or set tied=false")

    def parts(self, vocab_size: int) -> list[Part]:
        v, c = vocab_size, self.n_embd
        if self.tied:
            return [Part("token_embedding = head", (v, c)), *self.layers()]
        return [embedding(v, c), *self.layers(), *head(v, self.width)]

    def layers(self) -> list[Part]:
        """List the weights between the embedding and the head."""
        raise NotImplementedError(f"{type(self).__name__}.layers")

    def inner_shapes(self, batch_size: int) -> list[tuple[str, tuple[int, ...]]]:
        b, t = batch_size, self.block_size
        return [
            ("embeddings (B, T, C)", (b, t, self.n_embd)),
            ("state, for one character (B, H)", (b, self.n_hidden)),
            ("states (B, T, H)", (b, t, self.n_hidden)),
        ]


class _OfCells(_Recurrent):
    """A stack of cells, each of which reads the state of the one below."""

    gates: ClassVar[int]  # matrices that read the input
    states: ClassVar[int] = 1  # tensors in the state of a layer

    residual: bool = False
    """Add the input of each layer to its output, where they have the same width."""

    def layers(self) -> list[Part]:
        h, g, more = self.n_hidden, self.gates, self.n_layer - 1
        parts = [Part("layers.input.weight", (g * h, self.n_embd), hidden=True)]
        if more:
            parts.append(Part("layers.input.weight", (g * h, h), more, hidden=True))
        return [
            *parts,
            Part("layers.input.bias", (g * h,), self.n_layer, multiplies=False),
            *self.of_state(),
            Part("layers.start", (self.states * h,), self.n_layer, multiplies=False),
        ]

    def of_state(self) -> list[Part]:
        """List the matrices that read the state."""
        h = self.n_hidden
        return [Part("layers.state.weight", (self.gates * h, h), self.n_layer, hidden=True)]


class RNNConfig(_OfCells):
    """A recurrent network: the state is a tanh of the character and the state before."""

    gates: ClassVar[int] = 1

    type: Literal["rnn"]
    """Which model this is."""


class GRUConfig(_OfCells):
    """Gated recurrent units: gates choose how much of the state to replace, and by what."""

    gates: ClassVar[int] = 3

    type: Literal["gru"]
    """Which model this is."""

    def of_state(self) -> list[Part]:
        """List two matrices: that of the gates, and that of the candidate, which reads r * h."""
        h = self.n_hidden
        return [
            Part("layers.state.weight", (2 * h, h), self.n_layer, hidden=True),
            Part("layers.candidate.weight", (h, h), self.n_layer, hidden=True),
        ]


class LSTMConfig(_OfCells):
    """Long short-term memory: a memory that gates write to, forget from and read."""

    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2

    type: Literal["lstm"]
    """Which model this is."""


class MinGRUConfig(_Recurrent):
    """A GRU whose gates read the input only, so that a scan computes all states at once."""

    type: Literal["mingru"]
    """Which model this is."""
    n_layer: Size = 4
    """Blocks in the stack: a recurrent part and an MLP in each."""
    n_embd: Size = 128
    """Channels of an embedding and of the residual path (C)."""
    n_hidden: Size = 192
    """Channels of the state of a layer (H)."""

    @property
    def width(self) -> int:
        """Channels before the head: those of the residual path."""
        return self.n_embd

    def layers(self) -> list[Part]:  # noqa: D102
        c, h, n = self.n_embd, self.n_hidden, self.n_layer
        return [
            Part("blocks.convolution", (KERNEL, 1, c), n, multiplies=False),
            Part("blocks.input.weight", (2 * h, c), n, hidden=True),
            Part("blocks.input.bias", (2 * h,), n, multiplies=False),
            Part("blocks.start", (h,), n, multiplies=False),
            Part("blocks.projection.weight", (c, h), n, hidden=True),
            Part("blocks.mlp.expand", (4 * c, c), n, hidden=True),
            Part("blocks.mlp.contract", (c, 4 * c), n, hidden=True),
        ]

    def inner_shapes(self, batch_size: int) -> list[tuple[str, tuple[int, ...]]]:  # noqa: D102
        expanded = batch_size, self.block_size, 4 * self.n_embd
        return [*super().inner_shapes(batch_size), ("expanded in the MLP (B, T, 4C)", expanded)]
