"""Recurrent layers in training on a CPU: two calls for each character, forward and back.

The products with the input need no state, so one product makes them for all characters. What remains
for each is a product with the state, by torch, and one loop for all gates, compiled by numba. On the
way back the gradient of a matrix is a sum over characters, which one product takes at the end.
`charlm.backprop.recurrence` derives the loops, `charlm.models.recurrent` says what they mean. The
state and its products are in float32, also where other products are in bfloat16: calls with `out` are.

Time is the first dimension here: the rows of one character lie together.
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from numba import prange
from torch import Tensor
from torch.nn import functional as F

from charlm.fused.numbers import ONE, Array, sigmoid, tanh
from charlm.models.kernel import parallel_kernel, share_threads
from charlm.models.recurrent import (
    Cell,
    GRUCell,
    LSTMCell,
    RecurrentModel,
    RNNCell,
    State,
)


class FusedRecurrent:
    """A recurrent model's forward pass in training: the same function, by the loops here.

    The state after the last character has no gradient.
    """

    def __init__(self, model: RecurrentModel) -> None:
        self.model = model

    def __call__(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position."""
        return self.go_on(idx, self.model.start(idx.shape[0]))[0]

    def go_on(
        self, idx: Int[Tensor, "B T"], state: tuple[State, ...]
    ) -> tuple[Float[Tensor, "B T V"], tuple[State, ...]]:
        """Read on as `RecurrentModel.go_on` does."""
        share_threads()
        return self.model.go_on(idx, state, through_time)


def through_time(
    cell: Cell, x: Float[Tensor, "B T C"], state: State
) -> tuple[Float[Tensor, "B T H"], State]:
    """Apply a cell to one character after another, as `charlm.models.recurrent.through_time` does."""
    x = x.transpose(0, 1).contiguous()
    weight, bias = cell.input.weight, cell.input.bias
    if isinstance(cell, GRUCell):
        two = 2 * state[0].shape[1]
        gates = F.linear(x, weight[:two], bias[:two]).float()
        candidates = F.linear(x, weight[two:], bias[two:]).float()
        of_state = cell.state.weight, cell.candidate.weight
        run = _GRU.apply(gates, candidates, *state, *of_state)  # type: ignore[no-untyped-call]
    else:
        form = _LSTM if isinstance(cell, LSTMCell) else _RNN
        assert isinstance(cell, LSTMCell | RNNCell), type(cell)
        of_input = F.linear(x, weight, bias).float()
        run = form.apply(of_input, *state, cell.state.weight)  # type: ignore[no-untyped-call]
    out, *last = run
    return out.transpose(0, 1), tuple(last)


def _room(first: Float[Tensor, "B H"], time: int) -> Float[Tensor, "T1 B H"]:
    """Return room for a tensor of the state before each character and after the last."""
    room = first.new_empty(time + 1, *first.shape)
    room[0] = first
    return room


def _apart(*tensors: Tensor) -> list[tuple[tuple[Tensor, ...], list[Array]]]:
    """Return for each tensor its parts along time, as tensors and as arrays of the same memory."""
    return [(x.unbind(0), list(x.detach().numpy())) for x in tensors]


def _product(left: Float[Tensor, "T B G"], right: Float[Tensor, "T B H"]) -> Float[Tensor, "G H"]:
    """Return the gradient of a matrix from those of its outputs, and its inputs."""
    return left.flatten(0, 1).T @ right.flatten(0, 1)


class _RNN(torch.autograd.Function):
    """`RNNCell` through time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, (T, B, H), and the last state; x, which is W_x x + b, is overwritten."""
        states = _room(h, len(x))
        for x_t, before, after in zip(x.unbind(0), states[:-1], states[1:], strict=True):
            torch.addmm(x_t, before, weight.T, out=after).tanh_()
        ctx.save_for_backward(states, weight)
        ctx.mark_non_differentiable(last := states[-1].clone())
        return states[1:], last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_last: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, h and the weight."""
        states, weight = ctx.saved_tensors
        d_out = d_out.contiguous()
        d_h, d_x = torch.zeros_like(states[0]), torch.empty_like(d_out)
        (_, of_out), (_, of_h), (of_x, in_x) = _apart(d_out, states, d_x)
        carried = d_h.numpy()
        for t in reversed(range(len(d_out))):
            rnn_back(of_out[t], carried, of_h[t + 1], in_x[t])
            torch.mm(of_x[t], weight, out=d_h)
        return d_x, d_h, _product(d_x, states[:-1])


class _LSTM(torch.autograd.Function):
    """`LSTMCell` through time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, c: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, (T, B, H), and the last state; x, which is W_x x + b, is overwritten."""
        states, memory = _room(h, len(x)), _room(c, len(x))
        gates = x.detach().view(*x.shape[:2], 4, -1)
        (_, in_gates), (of_states, in_states), (_, in_memory) = _apart(gates, states, memory)
        across = weight.T
        for t, before in enumerate(of_states[:-1]):
            torch.addmm(x[t], before, across, out=x[t])
            lstm(in_gates[t], in_memory[t], in_memory[t + 1], in_states[t + 1])
        ctx.save_for_backward(gates, states, memory, weight)
        last = states[-1].clone(), memory[-1].clone()
        ctx.mark_non_differentiable(*last)
        return states[1:], *last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, *d_last: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, h, c and the weight; the gates are overwritten by theirs."""
        gates, states, memory, weight = ctx.saved_tensors
        d_x, d_out = gates.flatten(2), d_out.contiguous()
        d_h, d_c = torch.zeros_like(states[0]), torch.zeros_like(states[0])
        (_, of_out), (_, in_gates), (_, of_memory) = _apart(d_out, gates, memory)
        carried, kept = d_h.numpy(), d_c.numpy()
        for t in reversed(range(len(d_out))):
            lstm_back(of_out[t], carried, in_gates[t], of_memory[t], of_memory[t + 1], kept)
            torch.mm(d_x[t], weight, out=d_h)
        return d_x, d_h, d_c, _product(d_x, states[:-1])


class _GRU(torch.autograd.Function):
    """`GRUCell` through time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, candidates: Tensor, h: Tensor, weight: Tensor, of_reset: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the outputs, (T, B, H), and the last state.

        x and `candidates`, which are W_x x + b of the gates and of the candidate, are overwritten.
        """
        states = _room(h, len(x))
        reset = states.new_empty(states[1:].shape)  # the state times its reset gate
        gates = x.detach().view(*x.shape[:2], 2, -1)
        (_, in_gates), (of_states, in_states) = _apart(gates, states)
        (of_reset_h, in_reset), (of_new, in_new) = _apart(reset, candidates.detach())
        across, through = weight.T, of_reset.T
        for t, before in enumerate(of_states[:-1]):
            torch.addmm(x[t], before, across, out=x[t])
            gru_gates(in_gates[t], in_states[t], in_reset[t])
            torch.addmm(of_new[t], of_reset_h[t], through, out=of_new[t])
            gru(in_gates[t], in_new[t], in_states[t], in_states[t + 1])
        ctx.save_for_backward(gates, candidates, states, reset, weight, of_reset)
        ctx.mark_non_differentiable(last := states[-1].clone())
        return states[1:], last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_last: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of all inputs; gates and candidates are overwritten by theirs."""
        gates, candidates, states, reset, weight, of_reset = ctx.saved_tensors
        d_x, d_out = gates.flatten(2), d_out.contiguous()
        d_h, d_reset = torch.zeros_like(states[0]), torch.zeros_like(states[0])
        (_, of_out), (_, in_gates), (_, of_states) = _apart(d_out, gates, states)
        ((of_new, in_new),) = _apart(candidates)
        carried, back = d_h.numpy(), d_reset.numpy()
        for t in reversed(range(len(d_out))):
            before = of_states[t]
            gru_back(of_out[t], carried, in_gates[t], in_new[t], before)
            torch.mm(of_new[t], of_reset, out=d_reset)
            gru_gates_back(back, carried, in_gates[t], before)
            d_h.addmm_(d_x[t], weight)
        found = _product(d_x, states[:-1]), _product(candidates, reset)
        return d_x, candidates, d_h, *found


# --- Loops over the rows of one character ---------------------------------------------------------


@parallel_kernel
@no_type_check
def rnn_back(d_out: Array, d_h: Array, h: Array, d_x: Array) -> None:
    """Go back through h = tanh(x): its slope is 1 - h^2."""
    for b in prange(h.shape[0]):
        for j in range(h.shape[1]):
            d_x[b, j] = (d_out[b, j] + d_h[b, j]) * (ONE - h[b, j] * h[b, j])


@parallel_kernel
@no_type_check
def lstm(gates: Array, before: Array, c: Array, h: Array) -> None:
    """Put the gates, (B, 4, H), through their functions; write the next c and h."""
    for b in prange(h.shape[0]):
        for j in range(h.shape[1]):
            write, forget = sigmoid(gates[b, 0, j]), sigmoid(gates[b, 1, j])
            content, read = tanh(gates[b, 2, j]), sigmoid(gates[b, 3, j])
            gates[b, 0, j], gates[b, 1, j] = write, forget
            gates[b, 2, j], gates[b, 3, j] = content, read
            memory = forget * before[b, j] + write * content
            c[b, j] = memory
            h[b, j] = read * tanh(memory)


@parallel_kernel
@no_type_check
def lstm_back(d_out: Array, d_h: Array, gates: Array, before: Array, c: Array, d_c: Array) -> None:
    """Replace the gates by their gradients, and the gradient of c by that of the c before."""
    for b in prange(d_out.shape[0]):
        for j in range(d_out.shape[1]):
            write, forget = gates[b, 0, j], gates[b, 1, j]
            content, read = gates[b, 2, j], gates[b, 3, j]
            d, squashed = d_out[b, j] + d_h[b, j], tanh(c[b, j])
            d_memory = d_c[b, j] + d * read * (ONE - squashed * squashed)
            gates[b, 0, j] = d_memory * content * write * (ONE - write)
            gates[b, 1, j] = d_memory * before[b, j] * forget * (ONE - forget)
            gates[b, 2, j] = d_memory * write * (ONE - content * content)
            gates[b, 3, j] = d * squashed * read * (ONE - read)
            d_c[b, j] = d_memory * forget


@parallel_kernel
@no_type_check
def gru_gates(gates: Array, h: Array, reset: Array) -> None:
    """Put the gates, (B, 2, H), through their function; write the state times its reset gate."""
    for b in prange(h.shape[0]):
        for j in range(h.shape[1]):
            gates[b, 0, j] = sigmoid(gates[b, 0, j])
            gates[b, 1, j] = sigmoid(gates[b, 1, j])
            reset[b, j] = gates[b, 1, j] * h[b, j]


@parallel_kernel
@no_type_check
def gru(gates: Array, candidate: Array, before: Array, h: Array) -> None:
    """Put the candidate through its function; write the next state."""
    for b in prange(h.shape[0]):
        for j in range(h.shape[1]):
            new = tanh(candidate[b, j])
            candidate[b, j] = new
            h[b, j] = before[b, j] + gates[b, 0, j] * (new - before[b, j])


@parallel_kernel
@no_type_check
def gru_back(d_out: Array, d_h: Array, gates: Array, candidate: Array, before: Array) -> None:
    """Replace the update gate and the candidate by their gradients, and d_h by what goes past them."""
    for b in prange(d_out.shape[0]):
        for j in range(d_out.shape[1]):
            d, update, new = d_out[b, j] + d_h[b, j], gates[b, 0, j], candidate[b, j]
            gates[b, 0, j] = d * (new - before[b, j]) * update * (ONE - update)
            candidate[b, j] = d * update * (ONE - new * new)
            d_h[b, j] = d * (ONE - update)


@parallel_kernel
@no_type_check
def gru_gates_back(d_reset: Array, d_h: Array, gates: Array, before: Array) -> None:
    """Replace the reset gate by its gradient; add what came back through it to d_h."""
    for b in prange(before.shape[0]):
        for j in range(before.shape[1]):
            reset, d = gates[b, 1, j], d_reset[b, j]
            gates[b, 1, j] = d * before[b, j] * reset * (ONE - reset)
            d_h[b, j] += d * reset
