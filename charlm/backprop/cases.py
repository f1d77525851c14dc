"""Test cases of each rule: tensors of several sizes, and PyTorch's own form of the rule."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.backprop import rules
from charlm.backprop.program import Program, Step
from charlm.models import next_token_loss
from charlm.models.attention import MultiHeadAttention
from charlm.models.modern import rotary_table
from charlm.models.ngram_embedding import ROWS, ngram_rows


@dataclass(frozen=True)
class Case:
    """A rule, PyTorch's own form of it, and inputs for both.

    Args:
        rule: The rule to check.
        reference: The same function, for autograd to differentiate.
        inputs: The inputs with a gradient.
        constants: The inputs after them, without one: ids and tables.
    """

    rule: rules.Rule
    reference: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Sizes of the tensors of a case."""

    batch: int = 2
    time: int = 5
    heads: int = 2
    head_size: int = 4
    vocab: int = 7

    @property
    def channels(self) -> int:
        """C = H * D."""
        return self.heads * self.head_size


SIZES = (
    Sizes(),
    Sizes(time=1),
    Sizes(batch=1, heads=1, vocab=1),
    Sizes(batch=3, time=9, heads=3, head_size=2, vocab=2),
)


class Draw:
    """Random inputs, the same each time."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Draw from N(0, 1)."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def positive(self, *shape: int) -> Tensor:
        """Draw numbers well above zero."""
        return self.normal(*shape).abs() + 0.5

    def off_zero(self, *shape: int) -> Tensor:
        """Draw numbers of both signs away from zero, where a ReLU has its corner."""
        x = self.normal(*shape)
        return x + x.sign() * 0.1

    def ids(self, high: int, *shape: int) -> Tensor:
        """Draw ids below `high`."""
        return torch.randint(high, shape, generator=self.generator)


Cases = Iterator[Case]


def _add(s: Sizes, draw: Draw) -> Cases:
    for a, b in _broadcasts(s):
        yield Case(rules.Add(), torch.add, (draw.normal(*a), draw.normal(*b)))


def _multiply(s: Sizes, draw: Draw) -> Cases:
    for a, b in _broadcasts(s):
        yield Case(rules.Multiply(), torch.mul, (draw.normal(*a), draw.normal(*b)))


def _broadcasts(s: Sizes) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    whole = (s.batch, s.time, s.channels)
    yield whole, whole
    yield whole, (s.time, s.channels)
    yield (s.channels,), whole
    yield (s.batch, s.time, 1), (1, s.channels)
    yield (), whole


def _elementwise(
    rule: rules.Rule, reference: Callable[[Tensor], Tensor], kind: str = "normal"
) -> Callable[[Sizes, Draw], Cases]:
    def cases(s: Sizes, draw: Draw) -> Cases:
        yield Case(rule, reference, (getattr(draw, kind)(s.batch, s.time, s.channels),))

    return cases


def _over_axes(rule: Callable[..., rules.Rule], name: str) -> Callable[[Sizes, Draw], Cases]:
    def cases(s: Sizes, draw: Draw) -> Cases:
        x = draw.normal(s.batch, s.time, s.channels)
        yield Case(rule(), getattr(torch, name), (x,))
        for dim in (0, -1):
            yield Case(rule(dim), lambda x, d=dim: getattr(torch, name)(x, d, keepdim=True), (x,))

    return cases


def _concatenate(s: Sizes, draw: Draw) -> Cases:
    a, b = draw.normal(s.batch, s.time, s.channels), draw.normal(s.batch, s.time, s.vocab)
    yield Case(rules.Concatenate(), lambda a, b: torch.cat([a, b], -1), (a, b))


def _matmul(s: Sizes, draw: Draw) -> Cases:
    left, right = (s.batch, s.time, s.channels), (s.channels, s.vocab)
    yield Case(rules.Matmul(), torch.matmul, (draw.normal(*left), draw.normal(*right)))
    yield Case(rules.Matmul(), torch.matmul, (draw.normal(s.time, s.time), draw.normal(*left)))
    each = (s.batch, s.channels, s.time)
    yield Case(rules.Matmul(), torch.matmul, (draw.normal(*left), draw.normal(*each)))


def _linear(s: Sizes, draw: Draw) -> Cases:
    x = draw.normal(s.batch, s.time, s.channels)
    weight, bias = draw.normal(s.vocab, s.channels), draw.normal(s.vocab)
    yield Case(rules.Linear(), F.linear, (x, weight, bias))
    yield Case(rules.Linear(), F.linear, (x, weight))
    yield Case(rules.Linear(), F.linear, (x[0], weight, bias))


def _embedding(s: Sizes, draw: Draw) -> Cases:
    table, idx = draw.normal(s.vocab, s.channels), draw.ids(s.vocab, s.batch, s.time)
    yield Case(rules.Embedding(), lambda table, idx: F.embedding(idx, table), (table,), (idx,))


def _pick(s: Sizes, draw: Draw) -> Cases:
    def reference(x: Tensor, idx: Tensor) -> Tensor:
        return (x * F.one_hot(idx, s.vocab)).sum(-1)

    yield Case(rules.Pick(), reference, *_predictions(s, draw))


def _cross_entropy(s: Sizes, draw: Draw) -> Cases:
    yield Case(rules.CrossEntropy(), next_token_loss, *_predictions(s, draw))


def _cross_entropy_in_parts(s: Sizes, draw: Draw) -> Cases:
    steps = [
        Step("log_probs", rules.LogSoftmax(), "logits"),
        Step("picked", rules.Pick(), "log_probs targets"),
        Step("mean", rules.Mean(), "picked"),
        Step("loss", rules.Scale(-1.0), "mean"),
    ]
    yield Case(Program("logits targets", steps), next_token_loss, *_predictions(s, draw))


def _table_cross_entropy(s: Sizes, draw: Draw) -> Cases:
    def reference(table: Tensor, idx: Tensor, targets: Tensor) -> Tensor:
        return next_token_loss(F.embedding(idx, table), targets)

    ids = tuple(draw.ids(s.vocab, s.batch, s.time) for _ in range(2))
    yield Case(rules.TableCrossEntropy(), reference, (draw.normal(s.vocab, s.vocab),), ids)


def _predictions(s: Sizes, draw: Draw) -> tuple[tuple[Tensor], tuple[Tensor]]:
    return (draw.normal(s.batch, s.time, s.vocab),), (draw.ids(s.vocab, s.batch, s.time),)


def _causal_average(s: Sizes, draw: Draw) -> Cases:
    def reference(x: Tensor, average: Tensor) -> Tensor:
        return x.cumsum(-2) / torch.arange(1, s.time + 1)[:, None]

    ones = torch.ones(s.time + 2, s.time + 2, dtype=torch.float64).tril()
    x = draw.normal(s.batch, s.time, s.channels)
    yield Case(rules.CausalAverage(), reference, (x,), (ones / ones.sum(1, keepdim=True),))


def _causal_mask(s: Sizes, draw: Draw) -> Cases:
    def reference(x: Tensor) -> Tensor:
        query, key = torch.meshgrid(*[torch.arange(s.time)] * 2, indexing="ij")
        return torch.where(key <= query, x, -math.inf)

    yield Case(rules.CausalMask(), reference, (draw.normal(s.batch, s.time, s.time),))


def _attention(s: Sizes, draw: Draw) -> Cases:
    for dropout in (0.0, 0.3):
        heads = tuple(draw.normal(s.batch, s.heads, s.time, s.head_size) for _ in range(3))
        yield Case(
            rules.Attention(dropout),
            lambda q, k, v, p=dropout: F.scaled_dot_product_attention(q, k, v, None, p, True),
            heads,
        )


def _split_heads(s: Sizes, draw: Draw) -> Cases:
    def reference(qkv: Tensor) -> tuple[Tensor, ...]:
        parts = qkv.chunk(3, dim=-1)
        heads = (torch.unflatten(part, -1, (s.heads, s.head_size)) for part in parts)
        return tuple(torch.stack(part.unbind(2), dim=1) for part in heads)

    yield Case(
        rules.SplitHeads(s.heads), reference, (draw.normal(s.batch, s.time, 3 * s.channels),)
    )


def _merge_heads(s: Sizes, draw: Draw) -> Cases:
    x = draw.normal(s.batch, s.heads, s.time, s.head_size)
    yield Case(rules.MergeHeads(), lambda x: torch.cat(list(x.unbind(1)), dim=-1), (x,))


def _multi_head_attention(s: Sizes, draw: Draw) -> Cases:
    inputs = (
        draw.normal(s.batch, s.time, s.channels),
        draw.normal(3 * s.channels, s.channels),
        draw.normal(s.channels, s.channels),
    )
    for dropout in (0.0, 0.3):
        with torch.device("meta"):  # no weights of its own are drawn: those of the case are used
            module = MultiHeadAttention(s.channels, s.heads, dropout)

        def reference(x: Tensor, qkv: Tensor, out: Tensor, m: nn.Module = module) -> Tensor:
            weights = {"qkv.weight": qkv, "projection.weight": out}
            return torch.func.functional_call(m, weights, (x,))  # type: ignore[no-any-return]

        yield Case(rules.MultiHeadAttention(s.heads, dropout), reference, inputs)


def _layer_norm(s: Sizes, draw: Draw) -> Cases:
    def reference(x: Tensor, gain: Tensor) -> Tensor:
        return F.layer_norm(x, gain.shape, gain)

    inputs = draw.normal(s.batch, s.time, s.channels), draw.normal(s.channels)
    yield Case(rules.LayerNorm(), reference, inputs)


def _rms_norm(s: Sizes, draw: Draw) -> Cases:
    x = draw.normal(s.batch, s.time, s.channels)
    yield Case(rules.RMSNorm(), lambda x: F.rms_norm(x, x.shape[-1:]), (x,))


def _rotary(s: Sizes, draw: Draw) -> Cases:
    def reference(x: Tensor, table: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        turned = torch.complex(u, v) * torch.complex(*table[:, : s.time])
        return torch.cat([turned.real, turned.imag], dim=-1)

    x = draw.normal(s.batch, s.heads, s.time, 2 * s.head_size)
    table = rotary_table(s.time + 2, 2 * s.head_size).double()
    yield Case(rules.Rotary(), reference, (x,), (table,))


def _ngram_embedding(s: Sizes, draw: Draw) -> Cases:
    def reference(table: Tensor, idx: Tensor) -> Tensor:
        rows = ngram_rows(idx, 3, s.vocab)
        return F.embedding(rows[..., 0], table) + F.embedding(rows[..., 1], table)

    table = draw.normal(2 * ROWS, 2)
    yield Case(
        rules.NGramEmbedding(3, s.vocab, dropout=False),
        reference,
        (table,),
        (draw.ids(s.vocab, s.batch, s.time),),
    )


def _token_shift(s: Sizes, draw: Draw) -> Cases:
    def reference(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        rows = [
            torch.cat([x[:, t, :half], x[:, t - 1, half:] * (t > 0)], -1) for t in range(s.time)
        ]
        return torch.stack(rows, dim=1)

    x = draw.normal(s.batch, s.time, 2 * s.channels)
    yield Case(rules.TokenShift(), reference, (x,))


def _residual_sum(s: Sizes, draw: Draw) -> Cases:
    steps = [Step("y", rules.Multiply(), "x w"), Step("x", rules.Add(), "x y")]
    shape = (s.batch, s.time, s.channels)
    inputs = draw.normal(*shape), draw.normal(s.channels)
    yield Case(Program("x w", steps), lambda x, w: x + x * w, inputs)


def _weight_tying(s: Sizes, draw: Draw) -> Cases:
    def reference(table: Tensor, idx: Tensor) -> Tensor:
        return F.embedding(idx, table) @ table.mT

    steps = [
        Step("x", rules.Embedding(), "table idx"),
        Step("logits", rules.Linear(), "x table"),
    ]
    table, idx = draw.normal(s.vocab, s.channels), draw.ids(s.vocab, s.batch, s.time)
    yield Case(Program("table idx", steps), reference, (table,), (idx,))


CASES: dict[str, Callable[[Sizes, Draw], Cases]] = {
    "Add": _add,
    "Multiply": _multiply,
    "Scale": _elementwise(rules.Scale(-3.0), lambda x: -3 * x),
    "Power": _elementwise(rules.Power(-0.5), torch.rsqrt, "positive"),
    "Exp": _elementwise(rules.Exp(), torch.exp),
    "Log": _elementwise(rules.Log(), torch.log, "positive"),
    "ReLU": _elementwise(rules.ReLU(), F.relu, "off_zero"),
    "SquaredReLU": _elementwise(rules.SquaredReLU(), lambda x: F.relu(x) ** 2, "off_zero"),
    "GELU": _elementwise(rules.GELU(), F.gelu),
    "Dropout": _elementwise(rules.Dropout(0.3), lambda x: F.dropout(x, 0.3)),
    "Sum": _over_axes(rules.Sum, "sum"),
    "Mean": _over_axes(rules.Mean, "mean"),
    "Concatenate": _concatenate,
    "Matmul": _matmul,
    "Linear": _linear,
    "Embedding": _embedding,
    "Softmax": _elementwise(rules.Softmax(), lambda x: F.softmax(x, -1)),
    "LogSoftmax": _elementwise(rules.LogSoftmax(), lambda x: F.log_softmax(x, -1)),
    "Pick": _pick,
    "CrossEntropy": _cross_entropy,
    "cross-entropy in parts": _cross_entropy_in_parts,
    "TableCrossEntropy": _table_cross_entropy,
    "CausalAverage": _causal_average,
    "CausalMask": _causal_mask,
    "Attention": _attention,
    "SplitHeads": _split_heads,
    "MergeHeads": _merge_heads,
    "MultiHeadAttention": _multi_head_attention,
    "LayerNorm": _layer_norm,
    "RMSNorm": _rms_norm,
    "Rotary": _rotary,
    "TokenShift": _token_shift,
    "NGramEmbedding": _ngram_embedding,
    "residual sum": _residual_sum,
    "weight tying": _weight_tying,
}
