"""A GRU without the state in its gates: all positions of a window are computed at once.

A GRU cannot begin with a character before it has finished the one before, because its gates read the
state. Without that,

    h_t = (1 - z_t) h_(t-1) + z_t c_t        z_t = sigmoid(W_z x_t)        c_t = g(W_c x_t)

is linear in h, and its solution is a sum that a scan computes:

    h_t = a_t (h_0 + sum_(s <= t) z_s c_s / a_s)        a_t = (1 - z_1) (1 - z_2) ... (1 - z_t)

a_t soon is too small for a float, so the sum is taken over logarithms; g makes the candidate
positive so that it has one. What a gate cannot see of the past, a convolution over the last few
characters and the layers below bring. Feng et al. 2024, "Were RNNs all we needed?", section 3 and
appendix B; the blocks around it are those of lesson 6.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.config.recurrent import KERNEL
from charlm.models.gpt2 import MLP
from charlm.models.modern import norm, squared_relu
from charlm.models.recurrent import Embedded

PIECE = 64  # positions of one sum of logarithms: over more, float32 would lose digits
Scan = Callable[[Tensor, Tensor], Tensor]
State = tuple[Tensor, Tensor]  # h, (B, H), and what the convolution still sees, (B, 3, C)


def positive(x: Tensor) -> Tensor:
    """Return g(x): x + 1/2 from 0 on, below it sigmoid(x); both are 1/2 at 0."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def log_positive(x: Tensor) -> Tensor:
    """Return ln g(x)."""
    return torch.where(x >= 0, (x.clamp(min=0) + 0.5).log(), F.logsigmoid(x))


def scan(x: Float[Tensor, "B T two_H"], h: Float[Tensor, "B H"]) -> Float[Tensor, "B T H"]:
    """Return the states after each position, from h before the first: the sum of the module's head.

    x is W_z x and W_c x, side by side.
    """
    pieces = []
    for piece in torch.split(x, PIECE, dim=1):
        gate, candidate = piece.chunk(2, dim=-1)
        log_a = F.logsigmoid(-gate).cumsum(dim=1)  # 1 - sigmoid(z) = sigmoid(-z)
        log_new = F.logsigmoid(gate) + log_positive(candidate) - log_a
        log_sum = torch.cat([h.log()[:, None], log_new], dim=1).logcumsumexp(dim=1)[:, 1:]
        pieces.append((log_a + log_sum).exp())
        h = pieces[-1][:, -1]
    return torch.cat(pieces, dim=1)


def one_by_one(x: Float[Tensor, "B T two_H"], h: Float[Tensor, "B H"]) -> Float[Tensor, "B T H"]:
    """Return what `scan` does, one position after another: the formula as it is written."""
    states = []
    for x_t in x.unbind(dim=1):
        gate, candidate = x_t.chunk(2, dim=-1)
        z = torch.sigmoid(gate)
        h = (1 - z) * h + z * positive(candidate)
        states.append(h)
    return torch.stack(states, dim=1)


def convolve(
    x: Float[Tensor, "B T C"], weight: Float[Tensor, "k 1 C"], before: Float[Tensor, "B k_1 C"]
) -> Float[Tensor, "B T C"]:
    """Return sums of the last k positions, each channel with weights of its own.

    `before` are the k - 1 positions before the first.
    """
    time, x = x.shape[1], torch.cat([before, x], dim=1)
    out = weight[0] * x[:, :time]
    for i in range(1, len(weight)):
        out = out + weight[i] * x[:, i : i + time]
    return out


class MinGRUBlock(nn.Module):
    """A convolution and a minGRU, then an MLP; the input of each is normalised, its output added."""

    def __init__(self, n_embd: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.convolution = nn.Parameter(torch.empty(KERNEL, 1, n_embd))
        self.input = nn.Linear(n_embd, 2 * n_hidden)  # W_z and W_c
        self.start = nn.Parameter(torch.zeros(n_hidden))
        self.projection = nn.Linear(n_hidden, n_embd, bias=False)
        self.mlp = MLP(n_embd, squared_relu)
        self.dropout = nn.Dropout(dropout)

    def begin(self, batch_size: int) -> State:
        """Return the state of texts of which nothing has been read."""
        h = positive(self.start).expand(batch_size, -1)
        return h, self.convolution.new_zeros(batch_size, KERNEL - 1, self.convolution.shape[-1])

    def forward(
        self, x: Float[Tensor, "B T C"], state: State, scan: Scan = scan
    ) -> tuple[Float[Tensor, "B T C"], State]:
        """Read the next T characters."""
        h, before = state
        own = norm(x)
        states = scan(self.input(convolve(own, self.convolution, before)), h)
        x = x + self.dropout(self.projection(states))
        x = x + self.dropout(self.mlp(norm(x)))
        seen = torch.cat([before, own], dim=1)[:, -before.shape[1] :]
        return x, (states[:, -1], seen)


class MinGRU(Embedded):
    """A stack of `n_layer` blocks between an embedding and a head."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int,
        n_embd: int,
        n_hidden: int,
        dropout: float = 0.0,
        tied: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size, n_embd, n_embd, dropout, tied, generator)
        blocks = (MinGRUBlock(n_embd, n_hidden, dropout) for _ in range(n_layer))
        self.blocks = nn.ModuleList(blocks)
        for block in self.recurrent_blocks:
            _draw(block, generator)

    @property
    def recurrent_blocks(self) -> list[MinGRUBlock]:
        """The blocks, in order."""
        return cast(list[MinGRUBlock], list(self.blocks))

    def start(self, batch_size: int) -> tuple[State, ...]:
        """Return the state of each block before a text."""
        return tuple(block.begin(batch_size) for block in self.recurrent_blocks)

    def go_on(
        self, idx: Int[Tensor, "B n"], state: tuple[State, ...], scan: Scan = scan
    ) -> tuple[Float[Tensor, "B n V"], tuple[State, ...]]:
        """Read n more characters of each text; `scan` computes the states of a block."""
        x, states = norm(self.token_embedding(idx)), []
        for block, past in zip(self.recurrent_blocks, state, strict=True):
            x, after = block(x, past, scan)
            states.append(after)
        return self.logits(norm(x)), tuple(states)


def _draw(block: MinGRUBlock, generator: torch.Generator | None) -> None:
    """Draw the first weights of a block, which then adds nothing yet to the residual path."""
    nn.init.normal_(block.convolution, std=KERNEL**-0.5, generator=generator)
    for layer in (block.input, block.mlp.expand):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
    nn.init.zeros_(block.input.bias)
    for layer in (block.projection, block.mlp.contract):
        nn.init.zeros_(layer.weight)
