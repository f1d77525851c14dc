"""A fast reader of one text for recurrent models on a CPU: a loop for each character.

One character costs little arithmetic, and torch's calls would take most of the time.
"""

from copy import copy
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import float32, ndarray

from charlm.models.kernel import kernel
from charlm.models.recurrent import Embedded, GRUCell, LSTMCell, RecurrentModel
from charlm.sampling.reader import Reader, Weights, array

Array = Any

RNN, GRU, LSTM = range(3)
ONE = float32(1)


class RecurrentReader(Reader):
    """Reads one text with a stack of cells; it has no use for `weights` of fewer bits."""

    def __init__(self, model: RecurrentModel, weights: Weights = "float32") -> None:
        cells = model.cells
        cell = cells[0]
        self.kind = (
            GRU if isinstance(cell, GRUCell) else LSTM if isinstance(cell, LSTMCell) else RNN
        )
        embedding = array(model.token_embedding.weight)
        # What each character adds in the first layer, which the text only looks up.
        first = embedding @ array(cell.input.weight).T + array(cell.input.bias)
        added = model.residual and embedding.shape[1] == cell.state.in_features
        later = [layer.input for layer in cells[1:]]
        self.weights = (
            first,
            embedding if added else embedding[:, :0],
            columns([one.weight for one in later], first.shape[1]),
            np.stack([array(one.bias) for one in later] or [first[0]]),
            columns([layer.state.weight for layer in cells]),
            columns([layer.candidate.weight for layer in cells if isinstance(layer, GRUCell)]),
            *head_of(model),
        )
        starts = np.stack([array(layer.start) for layer in cells])
        self.state = starts.reshape(len(starts), cell.states, -1).copy()
        self.residual = model.residual

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""
        logits = np.empty((1, len(self.weights[-1])), float32)
        work = np.empty((3, self.weights[0].shape[1]), float32)
        read(self.kind, self.residual, idx[0], self.weights, self.state, work, logits[0])
        return logits

    def copy(self) -> "RecurrentReader":
        """Return a copy that shares the weights."""
        other = copy(self)
        other.state = self.state.copy()
        return other


def columns(weights: list[torch.Tensor], width: int = 0) -> Float[ndarray, "L in out"]:
    """Return matrices turned, so that the weights of one input lie together."""
    if not weights:
        return np.empty((0, 0, width), float32)
    return np.ascontiguousarray(np.stack([array(one) for one in weights]).transpose(0, 2, 1))


def head_of(model: Embedded) -> tuple[Float[ndarray, "W V"], Float[ndarray, "V"]]:
    """Return the matrix that makes logits, turned, and its bias."""
    if model.head is None:
        matrix = array(model.token_embedding.weight)
        return matrix.T.copy(), np.zeros(len(matrix), float32)
    return array(model.head.weight).T.copy(), array(model.head.bias)


@kernel
@no_type_check
def add_product(matrix: Array, x: Array, y: Array) -> None:
    """Add x times the matrix, (in, out), to y: four inputs at a time, which read y once."""
    n = x.shape[0]
    whole = n - n % 4
    for i in range(0, whole, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(matrix.shape[1]):
            y[j] += (
                a * matrix[i, j]
                + b * matrix[i + 1, j]
                + c * matrix[i + 2, j]
                + d * matrix[i + 3, j]
            )
    for i in range(whole, n):
        for j in range(matrix.shape[1]):
            y[j] += x[i] * matrix[i, j]


@kernel
@no_type_check
def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^-x)."""
    return ONE / (ONE + np.exp(-x))


@kernel
@no_type_check
def lstm(y: Array, state: Array) -> None:
    """Update a state, (2, H), by what the gates add up to: `charlm.models.recurrent.LSTMCell`."""
    n = state.shape[1]
    for j in range(n):
        forgotten = sigmoid(y[n + j]) * state[1, j]
        state[1, j] = forgotten + sigmoid(y[j]) * np.tanh(y[2 * n + j])
        state[0, j] = sigmoid(y[3 * n + j]) * np.tanh(state[1, j])


@kernel
@no_type_check
def gru(y: Array, state: Array, candidate: Array, reset: Array) -> None:
    """Update a state, (1, H), by what the gates add up to: `charlm.models.recurrent.GRUCell`."""
    n = state.shape[1]
    for j in range(n):
        reset[j] = sigmoid(y[n + j]) * state[0, j]
    add_product(candidate, reset[:n], y[2 * n :])
    for j in range(n):
        state[0, j] += sigmoid(y[j]) * (np.tanh(y[2 * n + j]) - state[0, j])


@kernel
@no_type_check
def read(
    kind: int, residual: bool, idx: Array, weights: Any, state: Array, work: Array, logits: Array
) -> None:
    """Read characters one after another, and write the logits after the last.

    `state` is (layers, states, H), and `work` is room for three vectors.
    """
    first, embedding, inputs, biases, states, candidates, head, head_bias = weights
    y, x, reset = work[0], work[1], work[2]
    n = state.shape[2]
    for t in range(len(idx)):
        for layer in range(state.shape[0]):
            if layer == 0:
                for j in range(y.shape[0]):
                    y[j] = first[idx[t], j]
            else:
                for j in range(y.shape[0]):
                    y[j] = biases[layer - 1, j]
                add_product(inputs[layer - 1], x[:n], y)
            add_product(states[layer], state[layer, 0], y)
            if kind == LSTM:
                lstm(y, state[layer])
            elif kind == GRU:
                gru(y, state[layer], candidates[layer], reset)
            else:
                for j in range(n):
                    state[layer, 0, j] = np.tanh(y[j])
            for j in range(n):
                if layer and residual:
                    x[j] += state[layer, 0, j]
                elif layer == 0 and embedding.shape[1]:
                    x[j] = embedding[idx[t], j] + state[layer, 0, j]
                else:
                    x[j] = state[layer, 0, j]
    for j in range(logits.shape[0]):
        logits[j] = head_bias[j]
    add_product(head, x[:n], logits)
