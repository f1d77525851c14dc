"""A fast reader of one text for minGRU on a CPU: a loop for each character."""

from copy import copy
from typing import Any, no_type_check

import numpy as np
from jaxtyping import Float, Int
from numpy import float32, ndarray

from charlm.models.kernel import kernel
from charlm.models.mingru import MinGRU
from charlm.sampling.reader import Reader, Weights, array
from charlm.sampling.recurrent_reader import add_product, columns, head_of, sigmoid

Array = Any

EPS = np.finfo(float32).eps
ZERO, HALF = float32(0), float32(0.5)


class MinGRUReader(Reader):
    """Reads one text with a stack of blocks; it has no use for `weights` of fewer bits."""

    def __init__(self, model: MinGRU, weights: Weights = "float32") -> None:
        blocks = model.recurrent_blocks
        self.weights = (
            array(model.token_embedding.weight),
            np.stack([array(block.convolution)[:, 0] for block in blocks]),
            columns([block.input.weight for block in blocks]),
            np.stack([array(block.input.bias) for block in blocks]),
            columns([block.projection.weight for block in blocks]),
            columns([block.mlp.expand.weight for block in blocks]),
            columns([block.mlp.contract.weight for block in blocks]),
            *head_of(model),
        )
        states = [block.begin(1) for block in blocks]
        self.state = np.stack([array(h)[0] for h, _ in states])  # (layers, H)
        self.seen = np.stack([array(seen)[0] for _, seen in states])  # (layers, k - 1, C)

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""
        logits = np.empty((1, len(self.weights[-1])), float32)
        widest = max(self.weights[2].shape[2], self.weights[5].shape[2])
        work = np.empty((3, widest), float32)
        read(idx[0], self.weights, self.state, self.seen, work, logits[0])
        return logits

    def copy(self) -> "MinGRUReader":
        """Return a copy that shares the weights."""
        other = copy(self)
        other.state, other.seen = self.state.copy(), self.seen.copy()
        return other


@kernel
@no_type_check
def norm(x: Array, out: Array) -> None:
    """Divide x by the root of its mean square."""
    total = ZERO
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    scale = float32(1) / np.sqrt(total / float32(x.shape[0]) + EPS)
    for j in range(x.shape[0]):
        out[j] = x[j] * scale


@kernel
@no_type_check
def recur(
    own: Array, taps: Array, seen: Array, matrix: Array, bias: Array, y: Array, h: Array
) -> None:
    """Convolve `own` with what was seen before, and update h: `MinGRUBlock.forward`.

    `seen` moves on by one position; y is room for gate and candidate.
    """
    width, n, last = own.shape[0], h.shape[0], seen.shape[0]
    for j in range(width):
        total = taps[last, j] * own[j]
        for i in range(last):
            total += taps[i, j] * seen[i, j]
        for i in range(last - 1):
            seen[i, j] = seen[i + 1, j]
        seen[last - 1, j] = own[j]
        own[j] = total
    for j in range(2 * n):
        y[j] = bias[j]
    add_product(matrix, own, y)
    for j in range(n):
        value = y[n + j]
        new = value + HALF if value >= ZERO else sigmoid(value)
        h[j] += sigmoid(y[j]) * (new - h[j])


@kernel
@no_type_check
def read(idx: Array, weights: Any, state: Array, seen: Array, work: Array, logits: Array) -> None:
    """Read characters one after another, and write the logits after the last."""
    tokens, taps, inputs, biases, projections, expands, contracts, head, head_bias = weights
    width, wide = tokens.shape[1], expands.shape[2]
    x, own, y = work[0, :width], work[1, :width], work[2]
    for t in range(len(idx)):
        norm(tokens[idx[t]], x)
        for layer in range(state.shape[0]):
            norm(x, own)
            recur(own, taps[layer], seen[layer], inputs[layer], biases[layer], y, state[layer])
            add_product(projections[layer], state[layer], x)
            norm(x, own)
            for j in range(wide):
                y[j] = ZERO
            add_product(expands[layer], own, y)
            for j in range(wide):
                positive = max(y[j], ZERO)
                y[j] = positive * positive
            add_product(contracts[layer], y[:wide], x)
    norm(x, own)
    for j in range(logits.shape[0]):
        logits[j] = head_bias[j]
    add_product(head, own, logits)
