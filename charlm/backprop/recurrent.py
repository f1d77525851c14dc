"""Models that read one character after another, without autograd: their cells and their programs.

Read them beside `charlm.models.mlp`, `recurrent` and `mingru`, whose names they use.
"""

from charlm.backprop.by_hand import LOSS, Steps, dropped, embedded_with_positions, mlp
from charlm.backprop.program import Program, Step
from charlm.backprop.recurrence import (
    Blend,
    CausalConvolution,
    GatedScan,
    Positive,
    SideBySide,
    Sigmoid,
    Split,
    Tanh,
    ThroughTime,
    Together,
)
from charlm.backprop.rules import (
    Add,
    CausalAverage,
    Embedding,
    Linear,
    Multiply,
    RMSNorm,
    SquaredReLU,
)
from charlm.models.bow import BowModel
from charlm.models.mingru import MinGRU
from charlm.models.mlp import MLPModel
from charlm.models.recurrent import Embedded, RecurrentModel

RNN_CELL = Program(
    "x h input bias state",
    [
        Step("new", Linear(), "x input bias"),
        Step("old", Linear(), "h state"),
        Step("h", Add(), "new old"),
        Step("h", Tanh(), "h"),
    ],
)
GRU_CELL = Program(
    "x h input bias state candidate",
    [
        Step("new", Linear(), "x input bias"),
        Step("of_gates of_candidate", Split((2, 1)), "new"),
        Step("old", Linear(), "h state"),
        Step("gates", Add(), "of_gates old"),
        Step("gates", Sigmoid(), "gates"),
        Step("update reset", Split((1, 1)), "gates"),
        Step("kept", Multiply(), "reset h"),
        Step("kept", Linear(), "kept candidate"),
        Step("new", Add(), "of_candidate kept"),
        Step("new", Tanh(), "new"),
        Step("h", Blend(), "h new update"),
    ],
)
LSTM_CELL = Program(
    "x h c input bias state",
    [
        Step("new", Linear(), "x input bias"),
        Step("old", Linear(), "h state"),
        Step("gates", Add(), "new old"),
        Step("write forget content read", Split((1, 1, 1, 1)), "gates"),
        Step("forget", Sigmoid(), "forget"),
        Step("c", Multiply(), "forget c"),
        Step("write", Sigmoid(), "write"),
        Step("content", Tanh(), "content"),
        Step("written", Multiply(), "write content"),
        Step("c", Add(), "c written"),
        Step("squashed", Tanh(), "c"),
        Step("read", Sigmoid(), "read"),
        Step("h", Multiply(), "read squashed"),
        Step("h c", Together(), "h c"),
    ],
)


def bow_steps(model: BowModel) -> Steps:
    """The mean of the past, and one hidden layer over it."""
    yield from embedded_with_positions()
    yield Step("mean", CausalAverage(), "x averaging")
    yield Step("x", Add(), "x mean")
    yield Step("thought", Linear(), "x expand.weight expand.bias")
    yield Step("thought", Tanh(), "thought")
    yield Step("thought", Linear(), "thought contract.weight contract.bias")
    yield Step("x", Add(), "x thought")
    yield Step("logits", Linear(), "x head.weight head.bias")
    yield LOSS


def mlp_steps(model: MLPModel) -> Steps:
    """One hidden layer over the last few characters."""
    yield Step("x", Embedding(), "token_embedding.weight idx")
    yield Step("x", SideBySide(model.context), "x before")
    yield Step("x", Linear(), "x hidden.weight hidden.bias")
    yield Step("x", Tanh(), "x")
    yield from dropped("x", model.dropout.p)
    yield Step("logits", Linear(), "x head.weight head.bias")
    yield LOSS


def rnn_steps(model: RecurrentModel) -> Steps:
    """A stack of tanh cells."""
    return _stack(model, ThroughTime(RNN_CELL), "state")


def gru_steps(model: RecurrentModel) -> Steps:
    """A stack of gated recurrent units."""
    return _stack(model, ThroughTime(GRU_CELL), "state candidate")


def lstm_steps(model: RecurrentModel) -> Steps:
    """A stack of long short-term memories."""
    return _stack(model, ThroughTime(LSTM_CELL, states=2), "state")


def mingru_steps(model: MinGRU) -> Steps:
    """A stack of minGRU blocks."""
    p = model.dropout.p
    yield Step("x", Embedding(), "token_embedding.weight idx")
    yield Step("x", RMSNorm(), "x")
    for i in range(len(model.blocks)):
        b = f"blocks.{i}"
        yield Step("n", RMSNorm(), "x")
        yield Step("n", CausalConvolution(), f"n {b}.convolution")
        yield Step("n", Linear(), f"n {b}.input.weight {b}.input.bias")
        yield Step("gate candidate", Split((1, 1)), "n")
        yield Step("gate", Sigmoid(), "gate")
        yield Step("candidate", Positive(), "candidate")
        yield Step("start", Positive(), f"{b}.start")
        yield Step("states", GatedScan(), "gate candidate start")
        yield Step("states", Linear(), f"states {b}.projection.weight")
        yield from dropped("states", p)
        yield Step("x", Add(), "x states")
        yield Step("n", RMSNorm(), "x")
        yield from mlp(b, SquaredReLU(), p)
    yield Step("x", RMSNorm(), "x")
    yield from _head(model)


def _stack(model: RecurrentModel, through_time: ThroughTime, matrices: str) -> Steps:
    yield Step("x", Embedding(), "token_embedding.weight idx")
    width = model.token_embedding.embedding_dim
    for i, layer in enumerate(model.cells):
        names = " ".join(f"layers.{i}.{name}.weight" for name in matrices.split())
        weights = f"layers.{i}.input.weight layers.{i}.input.bias {names}"
        first = f"layers.{i}.start"
        if through_time.states > 1:
            yield Step("h c", Split((1, 1)), first)
            first = "h c"
        added = model.residual and width == layer.state.in_features
        out, width = "out" if added else "x", layer.state.in_features
        yield Step(out, through_time, f"x {first} {weights}")
        yield from dropped(out, model.dropout.p)
        if added:
            yield Step("x", Add(), "x out")
    yield from _head(model)


def _head(model: Embedded) -> Steps:
    """Yield the step to logits; if the head is tied, the two gradients of its matrix add."""
    matrix = "token_embedding.weight" if model.head is None else "head.weight head.bias"
    yield Step("logits", Linear(), f"x {matrix}")
    yield LOSS
