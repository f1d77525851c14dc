"""Recurrent networks: a state that each character updates, instead of a window to look at.

    state = cell(x, state)        for each character; the state is all that is kept of the past

So a text of any length is read in the memory of one state. The price: what happened long ago must
survive every update since, and so must its gradient (docs/backprop.md). Three cells, from the
plainest to the one that remembers longest: `RNNCell`, `GRUCell`, `LSTMCell`.

Letters: H `n_hidden`. A state is a tuple of tensors, (B, H) each; the first is the layer's output.
"""

from collections.abc import Callable
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.models.base import LanguageModel
from charlm.models.mlp import draw_head, draw_linear

State = tuple[Tensor, ...]


class Cell(nn.Module):
    """One layer, for one character: from its input and its state to its next state.

    `start` is the state before a text, which is learned.
    """

    vectors: ClassVar[int]  # that are computed from the input, H channels each
    states: ClassVar[int] = 1  # tensors in a state
    gate_names: ClassVar[tuple[str, ...]] = ()  # of what `gates` returns

    def __init__(self, inputs: int, n_hidden: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, self.vectors * n_hidden)
        self.state = nn.Linear(n_hidden, self.vectors * n_hidden, bias=False)
        self.start = nn.Parameter(torch.zeros(self.states * n_hidden))
        draw_linear(self.input, generator)
        nn.init.normal_(self.state.weight, std=n_hidden**-0.5, generator=generator)

    def begin(self, batch_size: int) -> State:
        """Return the state of texts of which nothing has been read."""
        return tuple(part.expand(batch_size, -1) for part in self.start.chunk(self.states))

    def gates(self, of_x: Float[Tensor, "B G"], state: State) -> tuple[Tensor, ...]:
        """Return how far each gate is open, (B, H), from 0 to 1; `of_x` is `input` of x."""
        return ()

    def forward(self, x: Float[Tensor, "B C"], state: State) -> State:
        """Return the next state."""
        raise NotImplementedError


class RNNCell(Cell):
    """The state is a tanh of the character and of the state before.

    Elman 1990, "Finding structure in time".
    """

    vectors = 1

    def forward(self, x: Float[Tensor, "B C"], state: State) -> State:
        """Mix the input with the state; tanh keeps the result between -1 and 1."""
        (h,) = state
        return (torch.tanh(self.input(x) + self.state(h)),)


class GRUCell(Cell):
    """Gates choose how much of the state to replace, and by what.

    What is not replaced stays as it is, and so does its gradient. The reset gate acts on the state
    before its matrix, as in Cho et al. 2014, "Learning phrase representations using RNN
    encoder-decoder", equations 5 to 8. (In torch's GRU it acts after it.)
    """

    vectors = 3
    gate_names = ("update", "reset")

    def __init__(self, inputs: int, n_hidden: int, generator: torch.Generator | None) -> None:
        super().__init__(inputs, n_hidden, generator)
        self.state = nn.Linear(n_hidden, 2 * n_hidden, bias=False)  # of the gates only
        self.candidate = nn.Linear(n_hidden, n_hidden, bias=False)
        for layer in (self.state, self.candidate):
            nn.init.normal_(layer.weight, std=n_hidden**-0.5, generator=generator)

    def gates(self, of_x: Float[Tensor, "B G"], state: State) -> tuple[Tensor, ...]:
        """Return how much of the state to replace, and how much of it the candidate sees."""
        (h,) = state
        update, reset = torch.sigmoid(of_x[:, : 2 * h.shape[1]] + self.state(h)).chunk(2, dim=1)
        return update, reset

    def forward(self, x: Float[Tensor, "B C"], state: State) -> State:
        """Replace a part of the state by a candidate."""
        (h,) = state
        of_x = self.input(x)
        update, reset = self.gates(of_x, state)
        candidate = torch.tanh(of_x[:, 2 * h.shape[1] :] + self.candidate(reset * h))
        return ((1 - update) * h + update * candidate,)


class LSTMCell(Cell):
    """A memory `c` that gates write to, forget from and read.

    c is only scaled and added to. While the forget gate is near 1, so is the slope of c by the c
    before it, and gradients do not vanish. Hochreiter and Schmidhuber 1997, "Long short-term memory";
    the forget gate: Gers et al. 2000, "Learning to forget"; its bias of 1 at the start: Jozefowicz et
    al. 2015, section 2.2.
    """

    vectors = 4
    states = 2
    gate_names = ("write", "forget", "read")

    def __init__(self, inputs: int, n_hidden: int, generator: torch.Generator | None) -> None:
        super().__init__(inputs, n_hidden, generator)
        with torch.no_grad():
            self.input.bias[n_hidden : 2 * n_hidden] = 1

    def gates(self, of_x: Float[Tensor, "B G"], state: State) -> tuple[Tensor, ...]:
        """Return how much to write, how much to keep, and how much to read."""
        write, forget, _, read = self._parts(of_x, state)
        return torch.sigmoid(write), torch.sigmoid(forget), torch.sigmoid(read)

    def forward(self, x: Float[Tensor, "B C"], state: State) -> State:
        """Forget, write, read."""
        write, forget, content, read = self._parts(self.input(x), state)
        c = torch.sigmoid(forget) * state[1] + torch.sigmoid(write) * torch.tanh(content)
        return torch.sigmoid(read) * torch.tanh(c), c

    def _parts(self, of_x: Float[Tensor, "B G"], state: State) -> tuple[Tensor, ...]:
        write, forget, content, read = (of_x + self.state(state[0])).chunk(4, dim=1)
        return write, forget, content, read


ThroughTime = Callable[[Cell, Tensor, State], tuple[Tensor, State]]


def through_time(
    cell: Cell, x: Float[Tensor, "B T C"], state: State
) -> tuple[Float[Tensor, "B T H"], State]:
    """Apply a cell to one character after another; return its output at each, and the last state."""
    outputs = []
    for x_t in x.unbind(dim=1):
        state = cell(x_t, state)
        outputs.append(state[0])
    return torch.stack(outputs, dim=1), state


class Embedded(LanguageModel):
    """What all recurrent models have: an embedding, a head (the same matrix if `tied`), a state."""

    any_length = True
    per_character: ClassVar = {
        "token_embedding.weight": (0,),
        "head.weight": (0,),
        "head.bias": (0,),
    }

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_embd: int,
        width: int,
        dropout: float,
        tied: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        if tied and n_embd != width:
            raise ValueError(f"a tied head needs n_embd {n_embd} to equal the {width} before it")
        self.memory = None
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.head = None if tied else nn.Linear(width, vocab_size)
        if tied:
            self.per_character = {"token_embedding.weight": (0,)}  # type: ignore[misc]  # of this one
        # Small if the same numbers make the logits: the first loss is near ln V.
        std = 0.02 if tied else 1.0
        nn.init.normal_(self.token_embedding.weight, std=std, generator=generator)
        if self.head is not None:
            draw_head(self.head, generator)

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position, from the start of a text on."""
        return self.go_on(idx, self.start(idx.shape[0]))[0]

    def logits(self, x: Float[Tensor, "B T W"]) -> Float[Tensor, "B T V"]:
        """Return logits from the output of the last layer."""
        if self.head is None:
            return F.linear(x, self.token_embedding.weight)
        return self.head(x)  # type: ignore[no-any-return]


class RecurrentModel(Embedded):
    """A stack of `n_layer` cells between an embedding and a head.

    `residual`: the input of a layer is added to its output, where they have the same width. `dropout`
    is the probability of dropping an output of a layer in training.
    """

    cell: ClassVar[type[Cell]]

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int,
        n_embd: int,
        n_hidden: int,
        residual: bool = False,
        dropout: float = 0.0,
        tied: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size, n_embd, n_hidden, dropout, tied, generator)
        self.residual = residual
        widths = [n_embd] + [n_hidden] * (n_layer - 1)
        self.layers = nn.ModuleList(self.cell(width, n_hidden, generator) for width in widths)

    @property
    def cells(self) -> list[Cell]:
        """The cell of each layer."""
        return cast(list[Cell], list(self.layers))

    def start(self, batch_size: int) -> tuple[State, ...]:
        """Return the learned state of each layer."""
        return tuple(cell.begin(batch_size) for cell in self.cells)

    def go_on(
        self,
        idx: Int[Tensor, "B n"],
        state: tuple[State, ...],
        through_time: ThroughTime = through_time,
    ) -> tuple[Float[Tensor, "B n V"], tuple[State, ...]]:
        """Read n more characters of each text; `through_time` applies a layer to all of them."""
        x, states = self.token_embedding(idx), []
        for cell, past in zip(self.cells, state, strict=True):
            out, after = through_time(cell, x, past)
            out = self.dropout(out)
            x = x + out if self.residual and x.shape == out.shape else out
            states.append(after)
        return self.logits(x), tuple(states)


class RNN(RecurrentModel):
    """A stack of `RNNCell`."""

    cell = RNNCell


class GRU(RecurrentModel):
    """A stack of `GRUCell`."""

    cell = GRUCell


class LSTM(RecurrentModel):
    """A stack of `LSTMCell`."""

    cell = LSTMCell
