"""Recurrent layers in training on a CPU: two calls for each character, forward and back.

The products with the input need no state, so one product makes them for all characters. What remains
for each is a product with the state, by torch, and one loop for all gates, compiled by numba. On the
way back the gradient of a matrix is a sum over characters, which one product takes at the end.
`charlm.backprop.recurrence` derives the loops, `charlm.models.recurrent` says what they mean. The
state is in float32; products with it are in the precision of all others.

Time is the first dimension here: the rows of one character lie together.
"""

from collections.abc import Callable
from typing import Any, ClassVar, no_type_check

import torch
from jaxtyping import Float, Int
from numba import prange
from torch import Tensor
from torch.nn import functional as F

from charlm.fused.numbers import ONE, Array, sigmoid, tanh
from charlm.models.kernel import parallel_kernel, share_threads
from charlm.models.onednn import is_faster
from charlm.models.recurrent import (
    Cell,
    GRUCell,
    LSTMCell,
    RNNCell,
    State,
)


class FusedStateful:
    """The forward pass in training of a model with a state: the same function, by the loops of this room.

    The state after the last character has no gradient.
    """

    form: ClassVar[Callable[..., Any]]  # how a layer goes through time: an argument of `go_on`

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position."""
        return self.go_on(idx, self.model.start(idx.shape[0]))[0]

    def go_on(
        self, idx: Int[Tensor, "B T"], state: tuple[State, ...]
    ) -> tuple[Float[Tensor, "B T V"], tuple[State, ...]]:
        """Read on as the model does."""
        share_threads()
        logits, after = self.model.go_on(idx, state, self.form)
        return logits, after


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


class FusedRecurrent(FusedStateful):
    """A stack of cells."""

    form = staticmethod(through_time)


def _room(first: Float[Tensor, "B H"], time: int) -> Float[Tensor, "T1 B H"]:
    """Return room for a tensor of the state before each character and after the last."""
    room = first.new_empty(time + 1, *first.shape)
    room[0] = first
    return room


def _apart(*tensors: Tensor) -> list[tuple[tuple[Tensor, ...], list[Array]]]:
    """Return for each tensor its parts along time, as tensors and as arrays of the same memory."""
    return [(x.unbind(0), list(x.detach().numpy())) for x in tensors]


def _precision() -> torch.dtype:
    """Return the precision of products here."""
    low = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if low else torch.float32


class _Times:
    """Products with a matrix, (G, H), of rows h, (B, H): h weight^T, (B, G)."""

    def __init__(self, weight: Float[Tensor, "G H"], dtype: torch.dtype) -> None:
        self.apart: Callable[[Tensor], Tensor] | None = None  # makes a tensor of its own
        self.across = weight.to(dtype).T
        if dtype != torch.float32:
            self.apart = lambda h: torch.mm(h.to(dtype), self.across)
        elif is_faster():  # see `charlm.models.onednn`
            weight, product = weight.contiguous(), torch.ops.mkldnn._linear_pointwise
            self.apart = lambda h: product(h, weight, None, "none", [], "")

    def add(self, h: Tensor, out: Tensor) -> Tensor:
        """Add the product of `h` to `out`; return it."""
        return out.add_(self.apart(h)) if self.apart else out.addmm_(h, self.across)

    def write(self, h: Tensor, out: Tensor) -> Tensor:
        """Write the product of `h` to `out`; return it."""
        return out.copy_(self.apart(h)) if self.apart else torch.mm(h, self.across, out=out)


def _summed(
    left: Float[Tensor, "T B G"], right: Float[Tensor, "T B H"], dtype: torch.dtype
) -> Float[Tensor, "G H"]:
    """Return the gradient of a matrix from those of its outputs, and its inputs."""
    left, right = left.flatten(0, 1).to(dtype), right.flatten(0, 1).to(dtype)
    return (left.T @ right).float()


class _RNN(torch.autograd.Function):
    """`RNNCell` through time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, (T, B, H), and the last state; x, which is W_x x + b, is overwritten."""
        ctx.dtype, states = _precision(), _room(h, len(x))
        times = _Times(weight, ctx.dtype)
        for x_t, before, after in zip(x.unbind(0), states[:-1], states[1:], strict=True):
            torch.tanh(times.add(before, x_t), out=after)
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
        carried, back = d_h.numpy(), _Times(weight.T, ctx.dtype)
        for t in reversed(range(len(d_out))):
            rnn_back(of_out[t], carried, of_h[t + 1], in_x[t])
            back.write(of_x[t], d_h)
        return d_x, d_h, _summed(d_x, states[:-1], ctx.dtype)


class _LSTM(torch.autograd.Function):
    """`LSTMCell` through time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, c: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, (T, B, H), and the last state; x, which is W_x x + b, is overwritten."""
        ctx.dtype, states, memory = _precision(), _room(h, len(x)), _room(c, len(x))
        gates, of_x = x.detach().view(*x.shape[:2], 4, -1), x.detach().unbind(0)
        (_, in_gates), (of_states, in_states), (_, in_memory) = _apart(gates, states, memory)
        times = _Times(weight, ctx.dtype)
        for t, before in enumerate(of_states[:-1]):
            times.add(before, of_x[t])
            lstm(in_gates[t], in_memory[t], in_memory[t + 1], in_states[t + 1])
        ctx.save_for_backward(gates, states, memory, weight)
        last = states[-1].clone(), memory[-1].clone()
        ctx.mark_non_differentiable(*last)
        return states[1:], *last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, *d_last: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, h, c and the weight."""
        gates, states, memory, weight = ctx.saved_tensors
        d_gates, d_out = torch.empty_like(gates), d_out.contiguous()
        d_h, d_c, d_x = torch.zeros_like(states[0]), torch.zeros_like(states[0]), d_gates.flatten(2)
        (_, of_out), (_, of_gates), (_, of_memory) = _apart(d_out, gates, memory)
        ((_, in_gates),) = _apart(d_gates)
        carried, kept, of_d = d_h.numpy(), d_c.numpy(), d_x.unbind(0)
        back = _Times(weight.T, ctx.dtype)
        for t in reversed(range(len(d_out))):
            of_step = of_gates[t], of_memory[t], of_memory[t + 1]
            lstm_back(of_out[t], carried, *of_step, in_gates[t], kept)
            back.write(of_d[t], d_h)
        return d_x, d_h, d_c, _summed(d_x, states[:-1], ctx.dtype)


class _GRU(torch.autograd.Function):
    """`GRUCell` through time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, candidates: Tensor, h: Tensor, weight: Tensor, of_reset: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the outputs, (T, B, H), and the last state.

        x and `candidates`, which are W_x x + b of the gates and of the candidate, are overwritten.
        """
        ctx.dtype, states = _precision(), _room(h, len(x))
        reset = states.new_empty(states[1:].shape)  # the state times its reset gate
        gates, of_x = x.detach().view(*x.shape[:2], 2, -1), x.detach().unbind(0)
        (_, in_gates), (of_states, in_states) = _apart(gates, states)
        (of_reset_h, in_reset), (of_new, in_new) = _apart(reset, candidates.detach())
        times, through = _Times(weight, ctx.dtype), _Times(of_reset, ctx.dtype)
        for t, before in enumerate(of_states[:-1]):
            times.add(before, of_x[t])
            gru_gates(in_gates[t], in_states[t], in_reset[t])
            through.add(of_reset_h[t], of_new[t])
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
        carried, of_kept, of_d = d_h.numpy(), d_reset.numpy(), d_x.unbind(0)
        back, through = _Times(weight.T, ctx.dtype), _Times(of_reset.T, ctx.dtype)
        for t in reversed(range(len(d_out))):
            before = of_states[t]
            gru_back(of_out[t], carried, in_gates[t], in_new[t], before)
            through.write(of_new[t], d_reset)
            gru_gates_back(of_kept, carried, in_gates[t], before)
            back.add(of_d[t], d_h)
        found = _summed(d_x, states[:-1], ctx.dtype), _summed(candidates, reset, ctx.dtype)
        return d_x, candidates, d_h, *found


# --- Loops over the rows of one character ---------------------------------------------------------
# One loop for each gate: the compiler knows that arrays are apart, but not parts of one array, and it
# would not use vector instructions where a loop writes one part and reads or writes another.


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
            gates[b, 0, j] = sigmoid(gates[b, 0, j])
        for j in range(h.shape[1]):
            gates[b, 1, j] = sigmoid(gates[b, 1, j])
        for j in range(h.shape[1]):
            gates[b, 2, j] = tanh(gates[b, 2, j])
        for j in range(h.shape[1]):
            gates[b, 3, j] = sigmoid(gates[b, 3, j])
        for j in range(h.shape[1]):
            c[b, j] = gates[b, 1, j] * before[b, j] + gates[b, 0, j] * gates[b, 2, j]
            h[b, j] = gates[b, 3, j] * tanh(c[b, j])


@parallel_kernel
@no_type_check
def lstm_back(
    d_out: Array, d_h: Array, gates: Array, before: Array, c: Array, d_gates: Array, d_c: Array
) -> None:
    """Write the gradients of the gates; replace the gradient of c by that of the c before."""
    for b in prange(d_out.shape[0]):
        for j in range(d_out.shape[1]):
            squashed, d = tanh(c[b, j]), d_out[b, j] + d_h[b, j]
            d_c[b, j] += d * gates[b, 3, j] * (ONE - squashed * squashed)
            d_gates[b, 3, j] = d * squashed * gates[b, 3, j] * (ONE - gates[b, 3, j])
        for j in range(d_out.shape[1]):
            write = gates[b, 0, j]
            d_gates[b, 0, j] = d_c[b, j] * gates[b, 2, j] * write * (ONE - write)
        for j in range(d_out.shape[1]):
            forget = gates[b, 1, j]
            d_gates[b, 1, j] = d_c[b, j] * before[b, j] * forget * (ONE - forget)
        for j in range(d_out.shape[1]):
            content = gates[b, 2, j]
            d_gates[b, 2, j] = d_c[b, j] * gates[b, 0, j] * (ONE - content * content)
        for j in range(d_out.shape[1]):
            d_c[b, j] *= gates[b, 1, j]


@parallel_kernel
@no_type_check
def gru_gates(gates: Array, h: Array, reset: Array) -> None:
    """Put the gates, (B, 2, H), through their function; write the state times its reset gate."""
    for b in prange(h.shape[0]):
        for j in range(h.shape[1]):
            gates[b, 0, j] = sigmoid(gates[b, 0, j])
        for j in range(h.shape[1]):
            gates[b, 1, j] = sigmoid(gates[b, 1, j])
        for j in range(h.shape[1]):
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
