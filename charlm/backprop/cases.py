"""Test cases of each rule: tensors of several sizes, and PyTorch's own form of the rule."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.backprop import recurrence, rules
from charlm.backprop.program import Program, Step
from charlm.backprop.recurrent import GRU_CELL, LSTM_CELL, RNN_CELL
from charlm.models import next_token_loss
from charlm.models.attention import MultiHeadAttention
from charlm.models.mingru import log_positive
from charlm.models.modern import rotary_table
from charlm.models.ngram_embedding import ROWS, ngram_rows
from charlm.models.recurrent import Cell, GRUCell, LSTMCell, RNNCell


@dataclass(frozen=True)
class Case:
    """A rule, PyTorch's own form of it, and inputs for both."""

    rule: rules.Rule
    reference: Callable[..., Any]  # the same function, for autograd to differentiate
    inputs: tuple[Tensor, ...]  # those with a gradient
    constants: tuple[Tensor, ...] = ()  # the inputs after them, without one: ids and tables


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

    def shape(self, letters: str) -> tuple[int, ...]:
        """Return a shape by its letters: `BTC` is (batch, time, channels), `-` a scalar."""
        sizes = {"B": self.batch, "T": self.time, "C": self.channels, "V": self.vocab}
        sizes |= {"H": self.heads, "D": self.head_size, "1": 1, "4": 4}
        return tuple(sizes[letter] for letter in letters.strip("-"))


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


Cases = Callable[[Sizes, Draw], Iterator[Case]]


def _cases(
    rule: rules.Rule, reference: Callable[..., Any], *groups: str, kind: str = "normal"
) -> Cases:
    """Return the cases of a rule: one for each group of shapes, those of ids after a `|`."""

    def cases(s: Sizes, draw: Draw) -> Iterator[Case]:
        for group in groups or ("BTC",):
            shapes, _, of_ids = group.partition("|")
            inputs = tuple(getattr(draw, kind)(*s.shape(shape)) for shape in shapes.split())
            ids = tuple(draw.ids(s.vocab, *s.shape(shape)) for shape in of_ids.split())
            yield Case(rule, reference, inputs, ids)

    return cases


def _over_axes(rule: Callable[..., rules.Rule], name: str) -> Cases:
    def cases(s: Sizes, draw: Draw) -> Iterator[Case]:
        x = draw.normal(s.batch, s.time, s.channels)
        yield Case(rule(), getattr(torch, name), (x,))
        for dim in (0, -1):
            yield Case(rule(dim), lambda x, d=dim: getattr(torch, name)(x, d, keepdim=True), (x,))

    return cases


def _linear(s: Sizes, draw: Draw) -> Iterator[Case]:
    x = draw.normal(s.batch, s.time, s.channels)
    weight, bias = draw.normal(s.vocab, s.channels), draw.normal(s.vocab)
    yield Case(rules.Linear(), F.linear, (x, weight, bias))
    yield Case(rules.Linear(), F.linear, (x, weight))
    yield Case(rules.Linear(), F.linear, (x[0], weight, bias))


def _table_cross_entropy(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(table: Tensor, idx: Tensor, targets: Tensor) -> Tensor:
        return next_token_loss(F.embedding(idx, table), targets)

    ids = tuple(draw.ids(s.vocab, s.batch, s.time) for _ in range(2))
    yield Case(rules.TableCrossEntropy(), reference, (draw.normal(s.vocab, s.vocab),), ids)


def _causal_average(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(x: Tensor, average: Tensor) -> Tensor:
        return x.cumsum(-2) / torch.arange(1, s.time + 1)[:, None]

    ones = torch.ones(s.time + 2, s.time + 2, dtype=torch.float64).tril()
    x = draw.normal(s.batch, s.time, s.channels)
    yield Case(rules.CausalAverage(), reference, (x,), (ones / ones.sum(1, keepdim=True),))


def _without_future(x: Tensor) -> Tensor:
    time = torch.arange(x.shape[-1])
    return torch.where(time <= time[:, None], x, -math.inf)


def _attention(s: Sizes, draw: Draw) -> Iterator[Case]:
    for dropout in (0.0, 0.3):
        heads = tuple(draw.normal(*s.shape("BHTD")) for _ in range(3))
        fused = partial(F.scaled_dot_product_attention, dropout_p=dropout, is_causal=True)
        yield Case(rules.Attention(dropout), fused, heads)


def _split_heads(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(qkv: Tensor) -> tuple[Tensor, ...]:
        parts = qkv.chunk(3, dim=-1)
        heads = (torch.unflatten(part, -1, (s.heads, s.head_size)) for part in parts)
        return tuple(torch.stack(part.unbind(2), dim=1) for part in heads)

    qkv = draw.normal(s.batch, s.time, 3 * s.channels)
    yield Case(rules.SplitHeads(s.heads), reference, (qkv,))


def _multi_head_attention(s: Sizes, draw: Draw) -> Iterator[Case]:
    shapes = s.shape("BTC"), (3 * s.channels, s.channels), s.shape("CC")
    inputs = tuple(draw.normal(*shape) for shape in shapes)
    for dropout in (0.0, 0.3):
        with torch.device("meta"):  # draws no weights: those of the case are used
            module = MultiHeadAttention(s.channels, s.heads, dropout)

        def reference(x: Tensor, qkv: Tensor, out: Tensor, m: nn.Module = module) -> Tensor:
            weights = {"qkv.weight": qkv, "projection.weight": out}
            return torch.func.functional_call(m, weights, (x,))  # type: ignore[no-any-return]

        yield Case(rules.MultiHeadAttention(s.heads, dropout), reference, inputs)


def _rotary(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(x: Tensor, table: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        turned = torch.complex(u, v) * torch.complex(*table[:, : s.time])
        return torch.cat([turned.real, turned.imag], dim=-1)

    x = draw.normal(s.batch, s.heads, s.time, 2 * s.head_size)
    table = rotary_table(s.time + 2, 2 * s.head_size).double()
    yield Case(rules.Rotary(), reference, (x,), (table,))


def _ngram_embedding(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(table: Tensor, idx: Tensor) -> Tensor:
        rows = ngram_rows(idx, 3, s.vocab)
        return F.embedding(rows[..., 0], table) + F.embedding(rows[..., 1], table)

    rule = rules.NGramEmbedding(3, s.vocab, dropout=False)
    table, idx = draw.normal(2 * ROWS, 2), draw.ids(s.vocab, s.batch, s.time)
    yield Case(rule, reference, (table,), (idx,))


def _token_shift(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        rows = [
            torch.cat([x[:, t, :half], x[:, t - 1, half:] * (t > 0)], -1) for t in range(s.time)
        ]
        return torch.stack(rows, dim=1)

    x = draw.normal(s.batch, s.time, 2 * s.channels)
    yield Case(rules.TokenShift(), reference, (x,))


def _through_time(
    rule: recurrence.ThroughTime,
    cell: type[Cell],
    matrices: Sequence[str],
    reach: int | None = None,
) -> Cases:
    """Return the cases of a cell through time, as the model has it, or in stretches of `reach`."""

    def cases(s: Sizes, draw: Draw) -> Iterator[Case]:
        hidden = s.channels + 1
        with torch.device("meta"):  # draws no weights: those of the case are used
            module = cell(s.channels, hidden, None)
        names = ("input.weight", "input.bias", *(f"{name}.weight" for name in matrices))
        shapes = [module.get_parameter(name).shape for name in names]
        x = draw.normal(*s.shape("BTC"))
        starts = [draw.normal(hidden) for _ in range(rule.states)]
        cuts: list[Tensor] = []

        def reference(x: Tensor, *rest: Tensor) -> Tensor:
            weights = dict(zip(names, rest[rule.states :], strict=False))
            state = tuple(one.expand(len(x), -1) for one in rest[: rule.states])
            outputs = []
            for t, x_t in enumerate(x.unbind(1)):
                if t and reach and t % reach == 0:
                    cuts.append(torch.stack(state).detach())
                    state = tuple(one.detach() for one in state)
                state = torch.func.functional_call(module, weights, (x_t, state))
                outputs.append(state[0])
            return torch.stack(outputs, dim=1)

        inputs = (x, *starts, *(draw.normal(*shape) for shape in shapes))
        if reach is None:
            yield Case(rule, reference, inputs)
        else:
            reference(*inputs)
            constant = torch.stack(cuts) if cuts else draw.normal(0)
            yield Case(recurrence.TruncatedTime(rule, reach), reference, inputs, (constant,))

    return cases


def _gated_scan(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(z: Tensor, c: Tensor, h: Tensor) -> Tensor:
        # The sum that solves the recurrence: a_t (h + sum of z_s c_s / a_s), a_t = product of 1 - z.
        a = (1 - z).cumprod(1)
        return a * (h + (z * c / a).cumsum(1))

    z = draw.normal(*s.shape("BTC")).sigmoid()
    yield Case(
        recurrence.GatedScan(), reference, (z, draw.normal(*z.shape), draw.normal(s.channels))
    )


def _causal_convolution(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(x: Tensor, weight: Tensor) -> Tensor:
        filters = weight.movedim(-1, 0).movedim(-1, 1)  # (C, 1, k)
        padded = F.pad(x.mT, (len(weight) - 1, 0))
        return F.conv1d(padded, filters, groups=x.shape[-1]).mT

    weight = draw.normal(3, 1, s.channels)
    yield Case(recurrence.CausalConvolution(), reference, (draw.normal(*s.shape("BTC")), weight))


def _side_by_side(s: Sizes, draw: Draw) -> Iterator[Case]:
    def reference(x: Tensor, before: Tensor) -> Tensor:
        rows = [*[before.expand(len(x), -1)] * 2, *x.unbind(1)]
        return torch.stack([torch.cat(rows[t : t + 3], -1) for t in range(s.time)], dim=1)

    inputs = draw.normal(*s.shape("BTC")), draw.normal(s.channels)
    yield Case(recurrence.SideBySide(3), reference, inputs)


_LOSS_IN_PARTS = [
    Step("log_probs", rules.LogSoftmax(), "logits"),
    Step("picked", rules.Pick(), "log_probs targets"),
    Step("mean", rules.Mean(), "picked"),
    Step("loss", rules.Scale(-1.0), "mean"),
]
_RESIDUAL = [Step("y", rules.Multiply(), "x w"), Step("x", rules.Add(), "x y")]
_TIED = [Step("x", rules.Embedding(), "table idx"), Step("logits", rules.Linear(), "x table")]
_BROADCASTS = ("BTC BTC", "BTC TC", "C BTC", "BT1 1C", "- BTC")

CASES: dict[str, Cases] = {
    "Add": _cases(rules.Add(), torch.add, *_BROADCASTS),
    "Multiply": _cases(rules.Multiply(), torch.mul, *_BROADCASTS),
    "Scale": _cases(rules.Scale(-3.0), lambda x: -3 * x),
    "Power": _cases(rules.Power(-0.5), torch.rsqrt, kind="positive"),
    "Exp": _cases(rules.Exp(), torch.exp),
    "Log": _cases(rules.Log(), torch.log, kind="positive"),
    "ReLU": _cases(rules.ReLU(), F.relu, kind="off_zero"),
    "SquaredReLU": _cases(rules.SquaredReLU(), lambda x: F.relu(x) ** 2, kind="off_zero"),
    "GELU": _cases(rules.GELU(), F.gelu),
    "TanhGELU": _cases(rules.TanhGELU(), partial(F.gelu, approximate="tanh")),
    "Dropout": _cases(rules.Dropout(0.3), lambda x: F.dropout(x, 0.3)),
    "Sum": _over_axes(rules.Sum, "sum"),
    "Mean": _over_axes(rules.Mean, "mean"),
    "Concatenate": _cases(rules.Concatenate(), lambda a, b: torch.cat([a, b], -1), "BTC BTV"),
    "Matmul": _cases(rules.Matmul(), torch.matmul, "BTC CV", "TT BTC", "BTC BCT"),
    "Linear": _linear,
    "Embedding": _cases(rules.Embedding(), lambda table, i: F.embedding(i, table), "VC | BT"),
    "Softmax": _cases(rules.Softmax(), lambda x: F.softmax(x, -1)),
    "LogSoftmax": _cases(rules.LogSoftmax(), lambda x: F.log_softmax(x, -1)),
    "Pick": _cases(rules.Pick(), lambda x, i: (x * F.one_hot(i, x.shape[-1])).sum(-1), "BTV | BT"),
    "CrossEntropy": _cases(rules.CrossEntropy(), next_token_loss, "BTV | BT"),
    "cross-entropy in parts": _cases(
        Program("logits targets", _LOSS_IN_PARTS), next_token_loss, "BTV | BT"
    ),
    "TableCrossEntropy": _table_cross_entropy,
    "CausalAverage": _causal_average,
    "CausalMask": _cases(rules.CausalMask(), _without_future, "BTT"),
    "Attention": _attention,
    "SplitHeads": _split_heads,
    "MergeHeads": _cases(
        rules.MergeHeads(), lambda x: torch.cat(list(x.unbind(1)), dim=-1), "BHTD"
    ),
    "MultiHeadAttention": _multi_head_attention,
    "LayerNorm": _cases(
        rules.LayerNorm(), lambda x, gain: F.layer_norm(x, gain.shape, gain), "BTC C"
    ),
    "RMSNorm": _cases(rules.RMSNorm(), lambda x: F.rms_norm(x, x.shape[-1:])),
    "Rotary": _rotary,
    "TokenShift": _token_shift,
    "NGramEmbedding": _ngram_embedding,
    "Tanh": _cases(recurrence.Tanh(), torch.tanh),
    "Sigmoid": _cases(recurrence.Sigmoid(), torch.sigmoid),
    "Positive": _cases(recurrence.Positive(), lambda x: log_positive(x).exp(), kind="off_zero"),
    "Blend": _cases(recurrence.Blend(), torch.lerp, "BTC BTC BTC"),
    "Split": _cases(recurrence.Split((1, 2, 1)), lambda x: x.tensor_split((1, 3), -1), "BT4"),
    "Together": _cases(recurrence.Together(), lambda a, b: (a + 0, b + 0), "BTC BT"),
    "GatedScan": _gated_scan,
    "CausalConvolution": _causal_convolution,
    "SideBySide": _side_by_side,
    "ThroughTime": _through_time(recurrence.ThroughTime(RNN_CELL), RNNCell, ["state"]),
    "TruncatedTime": _through_time(
        recurrence.ThroughTime(LSTM_CELL, 2), LSTMCell, ["state"], reach=2
    ),
    "GRU": _through_time(recurrence.ThroughTime(GRU_CELL), GRUCell, ["state", "candidate"]),
    "LSTM": _through_time(recurrence.ThroughTime(LSTM_CELL, 2), LSTMCell, ["state"]),
    "residual sum": _cases(Program("x w", _RESIDUAL), lambda x, w: x + x * w, "BTC C"),
    "weight tying": _cases(
        Program("table idx", _TIED), lambda table, i: F.embedding(i, table) @ table.mT, "VC | BT"
    ),
}
