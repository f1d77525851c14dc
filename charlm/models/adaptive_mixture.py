"""A mixture that goes on learning how to join its experts, while it reads.

Before each character, with f the features of `gate`:

    hidden = relu(inner(f) + an offset for each of the last 1, 2 and 3 characters)
    powers = fixed powers + outer(hidden)
    logits = sum of power_e * log p_e + a correction of each character, for each of these contexts

After the character, one step of gradient descent on its surprisal updates all but the fixed powers.
Offsets and corrections begin at 0. Offsets let the trust in experts depend on the context, as the
weight sets of PAQ's mixers do (Mahoney 2005); corrections learn what all experts get wrong, as PAQ's
last stage does.
"""

import copy
from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.models.adaptive import AdaptiveReader
from charlm.models.counts import Array
from charlm.models.gate import FAR, FEATURES, LEAST, Gate
from charlm.models.kernel import kernel
from charlm.models.mixture import FLOOR, MixtureModel, join

# Learning rates, chosen on the end of the training part (docs/experiments.md).
GATE_RATE = 3e-4
OFFSET_RATE = 0.2
CORRECTION_RATE = 0.01
ORDERS = 3
ROWS_BYTES = 1 << 28  # of offsets and corrections; only rows that are used take memory
MIX = 40503  # odd, near 2^16 / golden ratio: spreads contexts over rows (Knuth 1973, section 6.4)


class State(NamedTuple):
    """What the reader has learned and read: arrays, which the kernels change."""

    powers: Array  # (E,), fixed
    inner: Array  # (H, F + 1)
    outer: Array  # (E, H + 1)
    offsets: Array  # (ORDERS, rows, H)
    corrections: Array  # (ORDERS, rows, V)
    # Of the last prediction, to learn from it when the next character is known:
    log_p: Array  # (E, V)
    features: Array  # (F,)
    hidden: Array  # (H,)
    slopes: Array  # (H,), the derivatives by them
    p: Array  # (V,)
    rows: Array  # (ORDERS,), of its contexts
    recent: Array  # (ORDERS,), the last characters, the newest first, plus 1; 0 before the text
    length: Array  # (1,), characters read
    boundary: int  # the id between records, which ends their context; -1: none


OF_A_TEXT = ("log_p", "features", "hidden", "p", "rows", "recent", "length")  # read, not learned


def begin(model: MixtureModel, boundary: int | None = None) -> State:
    """Return the state before a text, or before records with a `boundary` between them."""
    experts, vocab_size = len(model.weights), model.vocab_size
    gate = model.gate or Gate(experts)
    hidden = len(gate.inner)
    rows = 1 << (ROWS_BYTES // (4 * ORDERS * (hidden + vocab_size))).bit_length() - 1
    return State(
        powers=_array(model.weights / model.temperature),
        inner=_array(gate.inner),
        outer=_array(gate.outer),
        offsets=np.zeros((ORDERS, rows, hidden), np.float32),
        corrections=np.zeros((ORDERS, rows, vocab_size), np.float32),
        log_p=np.zeros((experts, vocab_size)),
        features=np.zeros(FEATURES * experts),
        hidden=np.zeros(hidden),
        slopes=np.zeros(hidden),
        p=np.zeros(vocab_size),
        rows=np.zeros(ORDERS, np.int64),
        recent=np.zeros(ORDERS, np.int64),
        length=np.zeros(1, np.int64),
        boundary=-1 if boundary is None else boundary,
    )


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.cpu().numpy(), np.float64)


class AdaptiveMixture(AdaptiveReader):
    """Reads one text with readers of a mixture's experts, joined.

    Args:
        model: The mixture; its weights stay as they are.
        experts: The reader of each expert in order.
        mixing: Whether to learn how they are joined. A linear mixture never does.
        boundary: The id between records; None: it reads one text.
    """

    def __init__(
        self,
        model: MixtureModel,
        experts: list[AdaptiveReader],
        mixing: bool,
        boundary: int | None = None,
    ) -> None:
        self.experts, self.vocab_size = experts, model.vocab_size
        self.linear = model.combine == "linear"
        self.mixing = mixing and not self.linear
        gate = copy.deepcopy(model.gate).cpu() if model.gate is not None else None
        self.fixed = model.weights.cpu(), model.temperature.cpu(), model.combine, gate
        self.state = begin(model, boundary)

    @property
    def learned(self) -> tuple[str, ...]:
        """What changes while it reads."""
        own = ("mixing weights",) if self.mixing else ()
        return tuple(dict.fromkeys(word for e in self.experts for word in e.learned)) + own

    @torch.no_grad()
    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters."""
        read = [expert.go_on(ids) for expert in self.experts]
        if self.linear:
            return join(read, *self.fixed).log_softmax(dim=-1)
        log_p = torch.stack(read, dim=1).clamp_(min=FLOOR).numpy()
        joined = np.empty((len(ids), self.vocab_size), np.float32)
        _read(log_p, ids.astype(np.int64), joined, self.mixing, self.state)
        return torch.from_numpy(joined)

    def fork(self) -> "AdaptiveMixture":
        """Return a reader that goes on from here and learns no more."""
        other = copy.copy(self)
        other.experts = [expert.fork() for expert in self.experts]
        other.mixing = False
        own = {name: getattr(self.state, name).copy() for name in OF_A_TEXT}
        other.state = self.state._replace(**own)
        return other

    @torch.no_grad()
    def first(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of a text's first character."""
        firsts = (expert.first() for expert in self.experts)
        return join(firsts, *self.fixed).log_softmax(dim=-1)


@kernel
@no_type_check
def _read(log_p: Array, ids: Array, joined: Array, mixing: bool, state: State) -> None:
    """Learn from each character if it was predicted, then predict the next, from (n, E, V)."""
    for t in range(len(ids)):
        if mixing and state.length[0]:
            _learn(ids[t], state)
        state.length[0] += 1
        for k in range(len(state.recent) - 1, 0, -1):
            state.recent[k] = 0 if ids[t] == state.boundary else state.recent[k - 1]
        state.recent[0] = ids[t] + 1
        row = 0
        for k in range(len(state.recent)):
            row = (row * MIX + state.recent[k]) & (state.offsets.shape[1] - 1)
            state.rows[k] = row
        for e in range(log_p.shape[1]):  # element by element: a slice would be an array
            for v in range(log_p.shape[2]):
                state.log_p[e, v] = log_p[t, e, v]
        _see(state.log_p, state.p, state.features)
        _predict(joined[t], state)


@kernel
@no_type_check
def _see(log_p: Array, mean: Array, features: Array) -> None:
    """Compute what `gate.features_of` does; `mean` is overwritten."""
    experts, vocab_size = log_p.shape
    mean[:] = 0.0
    for e in range(experts):
        entropy, highest = 0.0, log_p[e, 0]
        for v in range(vocab_size):
            p = np.exp(log_p[e, v])
            mean[v] += p / experts
            entropy -= p * log_p[e, v]
            highest = max(highest, log_p[e, v])
        features[e] = entropy
        features[experts + e] = highest
        features[2 * experts + e] = -entropy
        features[3 * experts + e] = 0.0
    for v in range(vocab_size):
        log_mean = np.log(max(mean[v], LEAST))
        for e in range(experts):
            features[2 * experts + e] -= np.exp(log_p[e, v]) * log_mean
            features[3 * experts + e] += mean[v] * (log_mean - log_p[e, v])
    for e in range(experts):
        features[3 * experts + e] = min(max(features[3 * experts + e], 0.0), FAR)


@kernel
@no_type_check
def _predict(joined: Array, state: State) -> None:
    """Write the log-probabilities of the next character."""
    seen = len(state.features)
    for j in range(len(state.hidden)):
        total = state.inner[j, seen]
        for k in range(len(state.rows)):
            total += state.offsets[k, state.rows[k], j]
        for i in range(seen):
            total += state.inner[j, i] * state.features[i]
        state.hidden[j] = max(total, 0.0)
    p = state.p
    p[:] = 0.0
    for e in range(len(state.powers)):
        power = state.powers[e] + state.outer[e, len(state.hidden)]
        for j in range(len(state.hidden)):
            power += state.outer[e, j] * state.hidden[j]
        for v in range(len(p)):
            p[v] += power * state.log_p[e, v]
    for k in range(len(state.rows)):
        for v in range(len(p)):
            p[v] += state.corrections[k, state.rows[k], v]
    largest, total = p[0], 0.0
    for v in range(len(p)):
        largest = max(largest, p[v])
    for v in range(len(p)):
        total += np.exp(p[v] - largest)
    norm = largest + np.log(total)
    for v in range(len(p)):
        joined[v] = p[v] - norm
        p[v] = np.exp(p[v] - norm)


@kernel
@no_type_check
def _learn(symbol: int, state: State) -> None:
    """Take a step of gradient descent on the surprisal of the character that came."""
    p, hidden, slopes = state.p, state.hidden, state.slopes
    outer, inner = state.outer, state.inner
    p[symbol] -= 1.0  # the derivative by the logits
    for k in range(len(state.rows)):
        for v in range(len(p)):
            state.corrections[k, state.rows[k], v] -= CORRECTION_RATE * p[v]
    slopes[:] = 0.0
    for e in range(len(outer)):
        slope = 0.0  # by the power of an expert
        for v in range(len(p)):
            slope += p[v] * state.log_p[e, v]
        for j in range(len(hidden)):
            if hidden[j] > 0.0:
                slopes[j] += slope * outer[e, j]
                outer[e, j] -= GATE_RATE * slope * hidden[j]
        outer[e, len(hidden)] -= GATE_RATE * slope
    for j in range(len(hidden)):
        if slopes[j] != 0.0:
            for i in range(len(state.features)):
                inner[j, i] -= GATE_RATE * slopes[j] * state.features[i]
            inner[j, len(state.features)] -= GATE_RATE * slopes[j]
            for k in range(len(state.rows)):
                state.offsets[k, state.rows[k], j] -= OFFSET_RATE * slopes[j]
