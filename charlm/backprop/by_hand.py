"""Whole models without autograd: a program for each, in the order of its derivation.

Each program does with rules what the model's `forward` does with modules, and then computes the
loss. Read them beside the lessons: the names and the weights are the models' own.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.backprop.program import Program, Step
from charlm.backprop.rules import (
    GELU,
    Add,
    Attention,
    CausalAverage,
    Concatenate,
    CrossEntropy,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    MergeHeads,
    MultiHeadAttention,
    NGramEmbedding,
    RMSNorm,
    Rotary,
    Rule,
    SplitHeads,
    SquaredReLU,
    TableCrossEntropy,
    TanhGELU,
    TokenShift,
)
from charlm.errors import UsageError
from charlm.models import GPT2, LanguageModel, ModernGPT, MultiHeadModel
from charlm.models.attention import MultiHeadAttention as Heads
from charlm.models.registry import Kind, kind_of

Steps = Iterator[Step]
LOSS = Step("loss", CrossEntropy(), "logits targets")


def bigram_steps(model: LanguageModel) -> Steps:
    """Lesson 1: one table. `Embedding` and `CrossEntropy` as one rule, which is much faster."""
    yield Step("loss", TableCrossEntropy(), "table.weight idx targets")


def averaging_steps(model: LanguageModel) -> Steps:
    """Lesson 2: the mean of the past."""
    yield Step("x", Embedding(), "token_embedding.weight idx")
    yield Step("mean", CausalAverage(), "x averaging")
    yield Step("x", Concatenate(), "x mean")
    yield Step("logits", Linear(), "x head.weight head.bias")
    yield LOSS


def attention_steps(model: LanguageModel) -> Steps:
    """Lesson 3: one head."""
    yield from embedded_with_positions()
    yield Step("query", Linear(), "x attention.query.weight")
    yield Step("key", Linear(), "x attention.key.weight")
    yield Step("value", Linear(), "x attention.value.weight")
    yield Step("gathered", Attention(), "query key value")
    yield Step("x", Add(), "x gathered")
    yield Step("logits", Linear(), "x head.weight head.bias")
    yield LOSS


def multihead_steps(model: MultiHeadModel) -> Steps:
    """Lesson 4: many heads."""
    yield from embedded_with_positions()
    weights = "attention.qkv.weight attention.projection.weight"
    yield Step("gathered", MultiHeadAttention(_n_head(model)), f"x {weights}")
    yield Step("x", Add(), "x gathered")
    yield Step("logits", Linear(), "x head.weight head.bias")
    yield LOSS


def gpt2_steps(model: GPT2) -> Steps:
    """Lesson 5: a GPT in the style of GPT-2; the table serves at both ends."""
    p, bias = model.dropout.p, model.bias
    activation = TanhGELU() if model.gelu == "tanh" else GELU()
    yield from embedded_with_positions()
    yield from dropped("x", p)
    for i in range(len(model.blocks)):
        b = f"blocks.{i}"
        yield from _layer_norm("n", f"{b}.attention_norm", bias)
        yield from _multihead(f"{b}.attention", _n_head(model), p, bias)
        yield from dropped("gathered", p)
        yield Step("x", Add(), "x gathered")
        yield from _layer_norm("n", f"{b}.mlp_norm", bias)
        yield from mlp(b, activation, p, bias)
    yield from _layer_norm("x", "final_norm", bias)
    # Tied, the table gets two gradients, which add.
    head = "token_embedding" if model.head is None else "head"
    yield Step("logits", Linear(), f"x {head}.weight")
    yield LOSS


def modern_steps(model: ModernGPT) -> Steps:
    """Lesson 6: the modern style."""
    p, n_head = model.dropout.p, _n_head(model)
    yield Step("x", Embedding(), "token_embedding.weight idx")
    if grams := model.ngram_embedding:
        longest, vocab_size, sparse = grams.longest, grams.vocab_size, grams.sparse
        rule = NGramEmbedding(longest, vocab_size, lambda: grams.numbering, sparse=sparse)
        yield Step("grams", rule, "ngram_embedding.table.weight idx")
        yield Step("x", Add(), "x grams")
    yield Step("x", RMSNorm(), "x")
    yield from dropped("x", p)
    for i in range(len(model.blocks)):
        b = f"blocks.{i}"
        yield Step("n", RMSNorm(), "x")
        yield from _shifted(model)
        yield Step("qkv", Linear(), f"n {b}.attention.qkv.weight")
        yield Step("query key value", SplitHeads(n_head), "qkv")
        for name in ("query", "key"):
            yield Step(name, RMSNorm(), name)
            yield Step(name, Rotary(), f"{name} {b}.attention.rotary")
        yield Step("gathered", Attention(p), "query key value")
        yield Step("gathered", MergeHeads(), "gathered")
        yield Step("gathered", Linear(), f"gathered {b}.attention.projection.weight")
        yield from dropped("gathered", p)
        yield Step("x", Add(), "x gathered")
        yield Step("n", RMSNorm(), "x")
        yield from _shifted(model)
        yield from mlp(b, SquaredReLU(), p)
    yield Step("x", RMSNorm(), "x")
    yield Step("logits", Linear(), "x head.weight")
    yield LOSS


def _n_head(model: LanguageModel) -> int:
    return next(part.n_head for part in model.modules() if isinstance(part, Heads))


def embedded_with_positions() -> Steps:
    """Yield the steps that embed characters and their places."""
    yield Step("x", Embedding(), "token_embedding.weight idx")
    yield Step("position", Embedding(), "position_embedding.weight positions")
    yield Step("x", Add(), "x position")


def _shifted(model: ModernGPT) -> Steps:
    if model.shift:
        yield Step("n", TokenShift(), "n")


def _layer_norm(out: str, norm: str, bias: bool) -> Steps:
    yield Step(out, LayerNorm(), f"x {norm}.weight")
    if bias:
        yield Step(out, Add(), f"{out} {norm}.bias")


def _multihead(layer: str, n_head: int, p: float, bias: bool) -> Steps:
    """`MultiHeadAttention`; with biases, in its parts."""
    if not bias:
        weights = f"{layer}.qkv.weight {layer}.projection.weight"
        yield Step("gathered", MultiHeadAttention(n_head, p), f"n {weights}")
        return
    yield Step("qkv", Linear(), f"n {_weights(f'{layer}.qkv', bias)}")
    yield Step("query key value", SplitHeads(n_head), "qkv")
    yield Step("gathered", Attention(p), "query key value")
    yield Step("gathered", MergeHeads(), "gathered")
    yield Step("gathered", Linear(), f"gathered {_weights(f'{layer}.projection', bias)}")


def _weights(layer: str, bias: bool) -> str:
    return f"{layer}.weight {layer}.bias" if bias else f"{layer}.weight"


def mlp(block: str, activation: Rule, p: float, bias: bool = False) -> Steps:
    """Yield the steps of an MLP on `n`, added to `x`."""
    yield Step("hidden", Linear(), f"n {_weights(f'{block}.mlp.expand', bias)}")
    yield Step("hidden", activation, "hidden")
    yield Step("thought", Linear(), f"hidden {_weights(f'{block}.mlp.contract', bias)}")
    yield from dropped("thought", p)
    yield Step("x", Add(), "x thought")


def dropped(name: str, p: float) -> Steps:
    """Yield a step of dropout, if there is any."""
    if p:
        yield Step(name, Dropout(p), name)


def check_derived(kind: Kind, name: str) -> None:
    """Raise UsageError for a kind of model without gradients by hand."""
    if kind.by_hand is None:
        what = f"model {name!r} has no gradients by hand"
        raise UsageError("train.gradients", what, "leave it autograd")


def program_for(model: LanguageModel) -> Program:
    """Return the steps from a model's weights, ids and targets to its mean loss in nats."""
    kind = kind_of(model)
    check_derived(kind, type(model).__name__)
    tensors = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    steps = kind.find("by_hand")(model)
    return Program(" ".join([*tensors, "idx", "positions", "targets"]), steps)


class ByHand:
    """The loss of a model on its device, and its gradient without a graph, like `loss.backward()`.

    Dropout is always active, whatever the mode of the model.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.program = program_for(model)
        self.parameters, self.constants = list(model.parameters()), list(model.buffers())
        self.positions = torch.arange(model.block_size, device=self.parameters[0].device)

    @torch.no_grad()
    def __call__(
        self, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], share: float = 1.0
    ) -> Float[Tensor, ""]:
        """Add the gradient of `share` times the mean loss to every weight's `grad`.

        `share` is the part of the whole batch that these windows are. Returns that share of the
        mean loss, in nats.
        """
        inputs = idx, self.positions[: idx.shape[1]], targets
        loss: Tensor
        loss, saved = self.program.forward(*self.parameters, *self.constants, *inputs)
        # The base case is d loss / d loss = 1, times the share of these windows.
        gradients = self.program.backward(torch.full_like(loss, share), *saved)
        for parameter, gradient in zip(self.parameters, gradients, strict=False):
            gradient = gradient.to(parameter.dtype)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss * share
