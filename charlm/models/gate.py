"""A gate: chooses the powers of a mixture's experts for each character.

    features   of each expert: how certain it is, and how far from the mean of all experts
    powers     the mixture's fixed ones + outer(relu(inner(features)))

An n-gram model that has seen the long context before is certain of one character; one that has not
predicts what any other would. The gate sees this in the distributions alone, so it serves any kind of
expert. Networks that choose between experts: Jacobs et al. 1991, "Adaptive mixtures of local experts";
as powers of probabilities, Mahoney 2005, "Adaptive weighing of context models for lossless data
compression".
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from charlm.errors import check_stop

HIDDEN = 32  # units between features and powers
FEATURES = 4  # of each expert
FAR = 8.0  # nats from the mean, at most: an expert that rules a character out might be further
LEAST = 1e-37  # least mean probability, before its logarithm is taken
SPREAD = 1e-2  # least standard deviation that features are divided by
# Chosen on the end of the training part (docs/experiments.md). More passes overfit the slice.
PASSES = 2
BATCH = 256
PIECE = 1 << 12  # predictions whose features are computed at a time
RATE = 2e-3
DROPOUT = 0.4  # of the hidden units, while they learn


class Gate(nn.Module):
    """The network. The last column of each matrix is its bias. At first it adds 0 to the powers."""

    inner: Float[Tensor, "H F+1"]
    outer: Float[Tensor, "E H+1"]

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.register_buffer("inner", torch.zeros(HIDDEN, FEATURES * experts + 1))
        self.register_buffer("outer", torch.zeros(experts, HIDDEN + 1))

    def forward(self, features: Float[Tensor, "*shape F"]) -> Float[Tensor, "*shape E"]:
        """Return what is added to the fixed powers."""
        return added(features, self.inner, self.outer)

    def numbers(self) -> list[float]:
        """Return its weights in one list, as a mixture keeps them until it is saved."""
        return torch.cat([self.inner.flatten(), self.outer.flatten()]).tolist()

    def take(self, numbers: Sequence[float]) -> None:
        """Take the weights that `numbers` returned; raise ValueError if their number is wrong."""
        if len(numbers) != self.inner.numel() + self.outer.numel():
            raise ValueError(f"{len(numbers)} numbers are not a gate's")
        first = self.inner.numel()
        self.inner.copy_(torch.tensor(numbers[:first]).view_as(self.inner))
        self.outer.copy_(torch.tensor(numbers[first:]).view_as(self.outer))


def added(
    features: Float[Tensor, "*shape F"],
    inner: Float[Tensor, "H F+1"],
    outer: Float[Tensor, "E H+1"],
    dropped: Float[Tensor, "*shape H"] | float = 1.0,
) -> Float[Tensor, "*shape E"]:
    """Return what a gate with these weights adds; hidden units are multiplied by `dropped`."""
    hidden = linear(features, inner[:, :-1], inner[:, -1]).relu() * dropped
    return linear(hidden, outer[:, :-1], outer[:, -1])


def features_of(log_p: Any, tools: Any = torch) -> Any:
    """Return what the gate sees of the experts' log-probabilities, (E, *, V) to (*, F).

    All log-probabilities are finite. The features are the entropy of each expert, its highest
    log-probability, its divergence from the mean of all, and that of the mean from it. With
    `tools=numpy` it takes arrays, which is faster for a few numbers.
    """
    p = tools.exp(log_p)
    mean = p.mean(0)
    log_mean = tools.log(tools.clip(mean, LEAST, 1.0))
    entropy = -(p * log_p).sum(-1)
    from_mean = -entropy - (p * log_mean).sum(-1)
    to_mean = (mean * log_mean).sum(-1) - (mean * log_p).sum(-1)
    found = [entropy, tools.amax(log_p, -1), from_mean, tools.clip(to_mean, 0.0, FAR)]
    seen = tools.moveaxis(tools.stack(found), (0, 1), (-2, -1))
    return seen.reshape(*seen.shape[:-2], -1)


def fit_gate(
    log_p: Float[Tensor, "E N V"],
    targets: Int[Tensor, "N"],
    powers: Float[Tensor, "E"],
    should_stop: Callable[[], bool] = lambda: False,
) -> Gate:
    """Fit a gate on predictions of a text that the experts have not seen.

    It begins with the fixed powers and learns to change them, by Adam on batches in random order.

    Raises:
        Stopped: `should_stop`, which is called often, said so.
    """
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([features_of(part) for part in torch.split(log_p, PIECE, dim=1)])
    middle, spread = seen.mean(dim=0), seen.std(dim=0, correction=0).clamp(min=SPREAD)
    seen = (seen - middle) / spread
    experts, count = log_p.shape[:2]
    rows = log_p.transpose(0, 1).contiguous()  # drawn in random order, so kept together
    limit = 1 / math.sqrt(seen.shape[1])
    inner = torch.empty(HIDDEN, seen.shape[1] + 1).uniform_(-limit, limit, generator=generator)
    outer = torch.zeros(experts, HIDDEN + 1)
    learned = [inner.requires_grad_(), outer.requires_grad_()]
    optimizer = torch.optim.Adam(learned, lr=RATE)
    steps = -(-PASSES * count // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    orders = torch.cat([torch.randperm(count, generator=generator) for _ in range(PASSES)])
    with torch.enable_grad():
        for some in torch.split(orders, BATCH):
            check_stop(should_stop)
            kept = torch.rand(len(some), HIDDEN, generator=generator) >= DROPOUT
            own = powers + added(seen[some], inner, outer, kept / (1 - DROPOUT))
            joined = torch.einsum("ne,nev->nv", own, rows[some])
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(joined, targets[some]))
            optimizer.step()
            schedule.step()
    gate = Gate(experts)
    with torch.no_grad():  # the gate takes features that are not standardised
        gate.inner[:, :-1] = inner[:, :-1] / spread
        gate.inner[:, -1] = inner[:, -1] - gate.inner[:, :-1] @ middle
        gate.outer.copy_(outer)
    return gate
