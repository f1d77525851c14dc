"""The check itself: what it must not let pass. Each mistake here is one that people make."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch

from charlm.backprop import check, rules
from charlm.backprop.cases import CASES, SIZES, Case, Draw, Sizes
from charlm.backprop.check import (
    SMALL_MODELS,
    Difference,
    check_model,
    check_rule,
    check_rules,
    compare,
)
from charlm.backprop.program import Program
from charlm.backprop.rules import rotate, unbroadcast
from charlm.models import build_model
from tests.backprop import recurrent_mistakes

VOCAB = 11


def at_one_size(name):
    """Check a rule in a part of what `check_rule` tries, the worst of which is what counts."""
    return check_rule(name, SIZES[:1], probes=1)


@functools.cache
def found_as_it_is(name):
    return at_one_size(name)


# --- Mistakes that people make --------------------------------------------------------------------


def wrong_gradient(rule, i, change):
    """A backward that is the rule's own but for its i-th gradient."""
    right = rule.backward

    def backward(self, dout, *saved):
        gradients = list(right(self, dout, *saved))
        gradients[i] = change(gradients[i], dout, *saved)
        return tuple(gradients)

    return backward


def swapped(rule, i, j):
    right = rule.backward

    def backward(self, dout, *saved):
        gradients = list(right(self, dout, *saved))
        gradients[i], gradients[j] = gradients[j], gradients[i]
        return tuple(gradients)

    return backward


def gelu_without_the_product_rule(self, dout, x):
    return (dout * (x * math.sqrt(0.5)).erf().add(1) / 2,)


def gelu_by_tanh_over_x(x):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_as_its_approximation(self, dout, x):
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        out = torch.nn.functional.gelu(x, approximate="tanh")
        return torch.autograd.grad(out, (x,), dout)


def dropout_with_a_fresh_mask(self, dout, mask):
    torch.manual_seed(7)
    return (torch.nn.functional.dropout(dout, self.p),)


def embedding_that_overwrites(self, dout, idx, rows):
    dtable = dout.new_zeros(rows, dout.shape[-1])
    dtable[idx.flatten()] = dout.flatten(0, -2)
    return dtable, None


def pick_in_every_column(self, dout, shape, idx):
    return dout[..., None].expand(shape), None


def cross_entropy_without_the_truth(self, dout, wrong, shape):
    belief = torch.where(wrong < 0, wrong + 1, wrong)
    return (belief * (dout / len(wrong))).view(shape), None


def table_scored_once_a_character(self, dout, shape, seen, counts, log_probs, total):
    dx = (log_probs.exp() - counts / counts.sum(1, keepdim=True)) * (dout / total)
    return dx.new_zeros(shape).index_copy_(0, seen, dx), None, None


def table_in_the_rows_of_its_counts(self, dout, shape, seen, counts, log_probs, total):
    dx = (counts.sum(1, keepdim=True) * log_probs.exp() - counts) * (dout / total)
    return dx.new_zeros(shape).index_copy_(0, torch.arange(len(seen)), dx), None, None


def attention_without(part):
    """Attention's backward, spelled out, with one part of it left out."""

    def backward(self, dout, query, key, value, weights, mask, used, out):
        if part == "the causal mask":
            weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
            used = weights if mask is None else weights * mask
        dvalue = (weights if part == "dropout in dvalue" else used).mT @ dout
        if part == "the transpose in dvalue":
            dvalue = used @ dout
        dweights = dout @ value.mT
        if mask is not None and part != "dropout in dweights":
            dweights = dweights * mask
        if part != "the row sum":
            dweights = dweights - (dout * out).sum(-1, keepdim=True)
        dscores = dweights * weights
        if part == "the weights in the softmax":
            dscores = dweights.tril()
        if part != "the scale":
            dscores = dscores / math.sqrt(query.shape[-1])
        dkey = (dscores if part == "the transpose in dkey" else dscores.mT) @ query
        return dscores @ key, dkey, dvalue

    return backward


def split_heads_with_query_and_key_mixed_up(self, dout):
    query, key, value = dout
    return (torch.stack([d.transpose(1, 2) for d in (key, query, value)], dim=2).flatten(-3),)


def split_heads_joined_as_they_lie(self, dout):
    joined = torch.stack(dout, dim=2)  # (B, H, 3, T, D) taken for (B, T, 3, H, D)
    batch, heads, _, time, size = joined.shape
    return (joined.reshape(batch, time, 3 * heads * size),)


def merge_heads_cut_as_they_lie(self, dout, n_head):
    batch, time, channels = dout.shape
    return (dout.reshape(batch, n_head, time, channels // n_head),)


def layer_norm_without(part):
    def backward(self, dout, normalised, scale, gain):
        dn = dout if part == "the gain" else dout * gain
        dx = dn
        if part != "the mean":
            dx = dx - dn.mean(-1, keepdim=True)
        if part != "the component along n":
            dx = dx - normalised * (dn * normalised).mean(-1, keepdim=True)
        if part != "the scale":
            dx = dx * scale
        return dx, (dout * normalised).flatten(0, -2).sum(0)

    return backward


def rms_norm_without(part):
    def backward(self, dout, out, scale):
        along = (dout * out).sum(-1, keepdim=True)
        if part != "the mean":
            along = along / out.shape[-1]
        dx = dout if part == "the component along out" else dout - out * along
        return (dx if part == "the scale" else dx * scale,)

    return backward


def rotary_turned_the_same_way(self, dout, table):
    return rotate(dout, table), None


def rotary_not_turned(self, dout, table):
    return dout, None


def token_shift_further_on(self, dout):
    return (token_shift(dout),)


def token_shift_back_in_a_ring(self, dout):
    own, before = dout.chunk(2, dim=-1)
    return (torch.cat([own, before.roll(-1, dims=-2)], dim=-1),)


def program_that(add):
    """Program's backward, but for what happens to a name that waits already."""

    def backward(self, dout, saved):
        waiting = {self.steps[-1].outputs[0]: dout}
        for step in reversed(self.steps):
            (result,) = (waiting.pop(name) for name in step.outputs)
            gradients = step.rule.backward(result, *saved.pop())
            for name, gradient in zip(step.inputs, gradients, strict=True):
                if gradient is not None:
                    waiting[name] = add(waiting.get(name), gradient)
        return tuple(waiting.get(name) for name in self.inputs)

    return backward


def program_that_leaves_names_behind(self, dout, saved):
    waiting = {self.steps[-1].outputs[0]: dout}
    for step in reversed(self.steps):
        result = waiting[step.outputs[0]]  # and so an older value of that name gets it too
        gradients = step.rule.backward(result, *saved.pop())
        for name, gradient in zip(step.inputs, gradients, strict=True):
            if gradient is not None:
                waiting[name] = waiting[name] + gradient if name in waiting else gradient
    return tuple(waiting.get(name) for name in self.inputs)


R = rules
latest = program_that(lambda waiting, gradient: gradient)
earliest = program_that(lambda waiting, gradient: gradient if waiting is None else waiting)

# The mistake in words: where it shows, whose backward it is, and the backward.
MISTAKES = {
    "add: broadcast not summed": ("Add", R.Add, lambda s, dout, a, b: (dout, dout)),
    "add: broadcast averaged": (
        "Add",
        R.Add,
        lambda s, dout, a, b: tuple(
            unbroadcast(dout, shape) * (shape.numel() / dout.numel()) for shape in (a, b)
        ),
    ),
    "multiply: each by itself": (
        "Multiply",
        R.Multiply,
        lambda s, dout, a, b: (unbroadcast(dout * a, a.shape), unbroadcast(dout * b, b.shape)),
    ),
    "multiply: broadcast not summed": (
        "Multiply",
        R.Multiply,
        lambda s, dout, a, b: (dout * b, dout * a),
    ),
    "scale: the factor forgotten": ("Scale", R.Scale, lambda s, dout: (dout,)),
    "scale: divided by the factor": ("Scale", R.Scale, lambda s, dout: (dout / s.factor,)),
    "power: without the exponent": (
        "Power",
        R.Power,
        lambda s, dout, x: (dout * x ** (s.exponent - 1),),
    ),
    "power: the exponent not lowered": (
        "Power",
        R.Power,
        lambda s, dout, x: (dout * s.exponent * x**s.exponent,),
    ),
    "exp: the input for the output": ("Exp", R.Exp, lambda s, dout, out: (dout * out.log(),)),
    "log: multiplied": ("Log", R.Log, lambda s, dout, x: (dout * x,)),
    "relu: everything passes": ("ReLU", R.ReLU, lambda s, dout, positive: (dout,)),
    "relu: the other half passes": ("ReLU", R.ReLU, lambda s, dout, positive: (dout * ~positive,)),
    "squared relu: without the 2": (
        "SquaredReLU",
        R.SquaredReLU,
        lambda s, dout, positive: (dout * positive,),
    ),
    "squared relu: the slope of a plain one": (
        "SquaredReLU",
        R.SquaredReLU,
        lambda s, dout, positive: (2 * dout * (positive > 0),),
    ),
    "gelu: without the product rule": ("GELU", R.GELU, gelu_without_the_product_rule),
    "gelu: of the tanh approximation": ("GELU", R.GELU, gelu_as_its_approximation),
    "gelu by tanh: without the product rule": (
        "TanhGELU",
        R.TanhGELU,
        lambda s, dout, x: (dout * gelu_by_tanh_over_x(x),),
    ),
    "gelu by tanh: of the exact one": ("TanhGELU", R.TanhGELU, R.GELU().backward.__func__),
    "dropout: without its mask": ("Dropout", R.Dropout, lambda s, dout, mask: (dout,)),
    "dropout: with a fresh mask": ("Dropout", R.Dropout, dropout_with_a_fresh_mask),
    "dropout: what was kept not scaled up": (
        "Dropout",
        R.Dropout,
        lambda s, dout, mask: (dout * (mask > 0),),
    ),
    "sum: divided by N": (
        "Sum",
        R.Sum,
        lambda s, dout, shape: ((dout * dout.numel() / shape.numel()).expand(shape),),
    ),
    "sum: not spread": ("Sum", R.Sum, lambda s, dout, shape: (dout,)),
    "mean: without 1/N": ("Mean", R.Mean, lambda s, dout, shape: (dout.expand(shape),)),
    "mean: over an axis, divided by all": (
        "Mean",
        R.Mean,
        lambda s, dout, shape: ((dout / shape.numel()).expand(shape),),
    ),
    "concatenate: cut from the wrong end": (
        "Concatenate",
        R.Concatenate,
        lambda s, dout, a, b: (dout[..., b:], dout[..., :b]),
    ),
    "matmul: dA without the transpose": (
        "Matmul",
        R.Matmul,
        wrong_gradient(R.Matmul, 0, lambda da, dout, a, b: unbroadcast(dout @ b, a.shape)),
    ),
    "matmul: dB without the transpose": (
        "Matmul",
        R.Matmul,
        wrong_gradient(R.Matmul, 1, lambda db, dout, a, b: unbroadcast(a @ dout, b.shape)),
    ),
    "matmul: a shared matrix not summed": (
        "Matmul",
        R.Matmul,
        lambda s, dout, a, b: (dout @ b.mT, a.mT @ dout),
    ),
    "linear: db not summed over the batch": (
        "Linear",
        R.Linear,
        wrong_gradient(
            R.Linear, -1, lambda g, dout, x, w, bias: dout.flatten(0, -2)[0] if bias else g
        ),
    ),
    "linear: db averaged over the batch": (
        "Linear",
        R.Linear,
        wrong_gradient(
            R.Linear, -1, lambda g, dout, x, w, bias: dout.flatten(0, -2).mean(0) if bias else g
        ),
    ),
    "linear: dweight transposed": (
        "Linear",
        R.Linear,
        wrong_gradient(R.Linear, 1, lambda g, dout, x, w, bias: g.mT.reshape(g.shape)),
    ),
    "linear: dweight from the first window": (
        "Linear",
        R.Linear,
        wrong_gradient(R.Linear, 1, lambda g, dout, x, w, bias: dout[0].mT @ x[0]),
    ),
    "embedding: overwrites instead of adding": (
        "Embedding",
        R.Embedding,
        embedding_that_overwrites,
    ),
    "softmax: without the weighted mean": (
        "Softmax",
        R.Softmax,
        lambda s, dout, p: (p * dout,),
    ),
    "softmax: the mean not weighted": (
        "Softmax",
        R.Softmax,
        lambda s, dout, p: (p * (dout - dout.mean(-1, keepdim=True)),),
    ),
    "softmax: without its own p": (
        "Softmax",
        R.Softmax,
        lambda s, dout, p: (dout - (dout * p).sum(-1, keepdim=True),),
    ),
    "log-softmax: dout not summed": (
        "LogSoftmax",
        R.LogSoftmax,
        lambda s, dout, out: (dout - out.exp() * dout,),
    ),
    "log-softmax: log p for p": (
        "LogSoftmax",
        R.LogSoftmax,
        lambda s, dout, out: (dout - out * dout.sum(-1, keepdim=True),),
    ),
    "pick: the whole row": ("Pick", R.Pick, pick_in_every_column),
    "cross-entropy: without 1/N": (
        "CrossEntropy",
        R.CrossEntropy,
        lambda s, dout, wrong, shape: ((wrong * dout).view(shape), None),
    ),
    "cross-entropy: with the sign turned": (
        "CrossEntropy",
        R.CrossEntropy,
        wrong_gradient(R.CrossEntropy, 0, lambda g, *_: -g),
    ),
    "cross-entropy: without the truth": (
        "CrossEntropy",
        R.CrossEntropy,
        cross_entropy_without_the_truth,
    ),
    "cross-entropy: dout forgotten": (
        "CrossEntropy",
        R.CrossEntropy,
        lambda s, dout, wrong, shape: ((wrong / len(wrong)).view(shape), None),
    ),
    "cross-entropy in parts: minus lost": (
        "cross-entropy in parts",
        R.Scale,
        lambda s, dout: (dout,),
    ),
    "cross-entropy in parts: 1/N lost": (
        "cross-entropy in parts",
        R.Mean,
        lambda s, dout, shape: (dout.expand(shape),),
    ),
    "table cross-entropy: each character counts once": (
        "TableCrossEntropy",
        R.TableCrossEntropy,
        table_scored_once_a_character,
    ),
    "table cross-entropy: in the wrong rows": (
        "TableCrossEntropy",
        R.TableCrossEntropy,
        table_in_the_rows_of_its_counts,
    ),
    "table cross-entropy: without 1/N": (
        "TableCrossEntropy",
        R.TableCrossEntropy,
        wrong_gradient(R.TableCrossEntropy, 0, lambda g, dout, *saved: g * saved[-1]),
    ),
    "causal average: without the transpose": (
        "CausalAverage",
        R.CausalAverage,
        lambda s, dout, average: (average @ dout, None),
    ),
    "causal mask: lets gradients through": (
        "CausalMask",
        R.CausalMask,
        lambda s, dout, seen: (dout,),
    ),
    "causal mask: hides the present": (
        "CausalMask",
        R.CausalMask,
        lambda s, dout, seen: (dout * seen.tril(-1),),
    ),
    "attention: without the scale": ("Attention", R.Attention, attention_without("the scale")),
    "attention: dkey not transposed": (
        "Attention",
        R.Attention,
        attention_without("the transpose in dkey"),
    ),
    "attention: dvalue not transposed": (
        "Attention",
        R.Attention,
        attention_without("the transpose in dvalue"),
    ),
    "attention: lets the future through": (
        "Attention",
        R.Attention,
        attention_without("the causal mask"),
    ),
    "attention: without the row sum": ("Attention", R.Attention, attention_without("the row sum")),
    "attention: without the softmax's weights": (
        "Attention",
        R.Attention,
        attention_without("the weights in the softmax"),
    ),
    "attention: dropout forgotten in dvalue": (
        "Attention",
        R.Attention,
        attention_without("dropout in dvalue"),
    ),
    "attention: dropout forgotten in dweights": (
        "Attention",
        R.Attention,
        attention_without("dropout in dweights"),
    ),
    "attention: query and key mixed up": ("Attention", R.Attention, swapped(R.Attention, 0, 1)),
    "split heads: query and key mixed up": (
        "SplitHeads",
        R.SplitHeads,
        split_heads_with_query_and_key_mixed_up,
    ),
    "split heads: heads taken for positions": (
        "SplitHeads",
        R.SplitHeads,
        split_heads_joined_as_they_lie,
    ),
    "merge heads: heads taken for positions": (
        "MergeHeads",
        R.MergeHeads,
        merge_heads_cut_as_they_lie,
    ),
    "multi-head attention: the projection's transposed": (
        "MultiHeadAttention",
        R.MultiHeadAttention,
        wrong_gradient(R.MultiHeadAttention, 2, lambda g, *_: g.mT),
    ),
    "multi-head attention: its attention is wrong": (
        "MultiHeadAttention",
        R.Attention,
        attention_without("the scale"),
    ),
    "multi-head attention: its heads are mixed up": (
        "MultiHeadAttention",
        R.MergeHeads,
        merge_heads_cut_as_they_lie,
    ),
    "layer norm: forgets the mean": ("LayerNorm", R.LayerNorm, layer_norm_without("the mean")),
    "layer norm: forgets the component along n": (
        "LayerNorm",
        R.LayerNorm,
        layer_norm_without("the component along n"),
    ),
    "layer norm: forgets the gain": ("LayerNorm", R.LayerNorm, layer_norm_without("the gain")),
    "layer norm: forgets the scale": ("LayerNorm", R.LayerNorm, layer_norm_without("the scale")),
    "layer norm: gain not summed": (
        "LayerNorm",
        R.LayerNorm,
        wrong_gradient(R.LayerNorm, 1, lambda g, dout, n, scale, gain: dout * n),
    ),
    "layer norm: gain without n": (
        "LayerNorm",
        R.LayerNorm,
        wrong_gradient(R.LayerNorm, 1, lambda g, dout, *_: dout.flatten(0, -2).sum(0)),
    ),
    "rms norm: forgets the component along out": (
        "RMSNorm",
        R.RMSNorm,
        rms_norm_without("the component along out"),
    ),
    "rms norm: a sum for the mean": ("RMSNorm", R.RMSNorm, rms_norm_without("the mean")),
    "rms norm: forgets the scale": ("RMSNorm", R.RMSNorm, rms_norm_without("the scale")),
    "rms norm: with the mean of a layer norm": (
        "RMSNorm",
        R.RMSNorm,
        lambda s, dout, out, scale: layer_norm_without("")(s, dout, out, scale, 1.0)[:1],
    ),
    "rotary: turned the same way": ("Rotary", R.Rotary, rotary_turned_the_same_way),
    "rotary: not turned": ("Rotary", R.Rotary, rotary_not_turned),
    "n-gram embedding: the longest alone": (
        "NGramEmbedding",
        R.NGramEmbedding,
        lambda s, dout, rows, kept, count: (
            torch.zeros(count, dout.shape[-1], dtype=dout.dtype).index_add_(
                0, rows[..., -1], dout.flatten(0, 1)
            ),
            None,
        ),
    ),
    "token shift: on instead of back": ("TokenShift", R.TokenShift, token_shift_further_on),
    "token shift: the last gets the first's": (
        "TokenShift",
        R.TokenShift,
        token_shift_back_in_a_ring,
    ),
    "token shift: not moved": ("TokenShift", R.TokenShift, lambda s, dout: (dout,)),
    "residual: the branch overwrites the path": ("residual sum", Program, latest),
    "residual: the path overwrites the branch": ("residual sum", Program, earliest),
    "residual: a name's older value gets what was the newer's": (
        "residual sum",
        Program,
        program_that_leaves_names_behind,
    ),
    "weight tying: only the last use counts": ("weight tying", Program, earliest),
    "weight tying: only the first use counts": ("weight tying", Program, latest),
}


MISTAKES |= recurrent_mistakes.MISTAKES


def test_each_rule_has_its_mistake():
    assert {name for name, _, _ in MISTAKES.values()} == set(CASES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake, monkeypatch):
    name, rule, backward = MISTAKES[mistake]
    assert found_as_it_is(name).passed

    monkeypatch.setattr(rule, "backward", backward)

    found = at_one_size(name)
    assert not found.passed
    assert found.autograd > 1e-4  # by far
    assert found.finite > 1e-4


def test_the_spelled_out_backwards_are_right_with_nothing_left_out(monkeypatch):
    """So that what is noticed above is what is named there."""
    monkeypatch.setattr(rules.Attention, "backward", attention_without(""))
    monkeypatch.setattr(rules.LayerNorm, "backward", layer_norm_without(""))
    monkeypatch.setattr(rules.RMSNorm, "backward", rms_norm_without(""))
    monkeypatch.setattr(
        Program, "backward", program_that(lambda waiting, g: g if waiting is None else waiting + g)
    )

    for name in ("Attention", "LayerNorm", "RMSNorm", "residual sum", "weight tying"):
        assert check_rule(name, probes=1).passed


# --- Every gradient of every rule -----------------------------------------------------------------


class Changed:
    """A rule with one of its gradients, or its output, changed."""

    def __init__(self, rule, i=0, gradient=None, output=None):
        self.rule, self.i, self.gradient, self.output = rule, i, gradient, output

    def forward(self, *inputs):
        out, saved = self.rule.forward(*inputs)
        return self.output(out) if self.output else out, saved

    def backward(self, dout, *saved):
        gradients = list(self.rule.backward(dout, *saved))
        if self.gradient:
            gradients[self.i] = self.gradient(gradients[self.i])
        return tuple(gradients)


def nudged(gradient):
    """Move the largest element by a millionth of it."""
    place = gradient.abs().argmax()
    changed = gradient.flatten().clone()
    changed[place] *= 1 + 1e-6
    return changed.view(gradient.shape)


def no_number(gradient):
    changed = gradient.flatten().clone()
    changed[0] = math.nan
    return changed.view(gradient.shape)


def refuse(_):
    raise RuntimeError("shapes do not fit")


CHANGES = {
    "negated": torch.neg,
    "doubled": lambda gradient: 2 * gradient,
    "nudged in one element": nudged,
    "zero": torch.zeros_like,
    "not there": lambda gradient: None,
    "of a wrong shape": lambda gradient: gradient[None],
    "not a number": no_number,
    "refused by torch": refuse,
}
INFINITE = ("not there", "of a wrong shape", "refused by torch")


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_that_is_changed_is_noticed(name):
    for case in CASES[name](Sizes(), Draw(0)):
        for (change, do), i in itertools.product(CHANGES.items(), range(len(case.inputs))):
            changed = replace(case, rule=Changed(case.rule, i, do))

            found = list(compare(changed, probes=0))  # one direction, across all elements

            assert not found[i].passed, change
            if change in INFINITE:
                assert (found[i].autograd, found[i].finite) == (math.inf, math.inf), change
                assert found[i].reason, change
            elif change == "nudged in one element":
                assert found[i].autograd < 1e-5  # the smallest mistake that can be made here
            else:
                assert not found[i].autograd < 1e-3, change
                assert not found[i].finite < 1e-3, change  # each witness would do alone
            if change != "refused by torch":  # then nobody knows whose fault it was
                assert all(d.passed for n, d in enumerate(found) if n != i), change


def stretched(out):
    return tuple(map(stretched, out)) if isinstance(out, tuple) else out * 1.001


def shifted(out):
    return tuple(map(shifted, out)) if isinstance(out, tuple) else out + 0.001


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_forward_is_noticed_although_its_backward_is_right(name):
    for case in CASES[name](Sizes(), Draw(0)):
        for found in compare(replace(case, rule=Changed(case.rule, output=stretched)), probes=0):
            assert found.autograd > 1e-5
            assert found.finite > 1e-6
        for found in compare(replace(case, rule=Changed(case.rule, output=shifted)), probes=0):
            assert found.autograd > 1e-5  # what no difference between two outputs shows
            assert found.finite <= 1e-6


class SlopeOfOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.exp()

    @staticmethod
    def backward(ctx, dout):
        return dout


def test_finite_differences_notice_a_mistake_that_autograd_shares():
    class Exp(rules.Exp):
        def backward(self, dout, out):
            return (dout,)

    (found,) = compare(Case(Exp(), SlopeOfOne.apply, (Draw(0).normal(3),)))

    assert found.autograd == 0
    assert found.finite > 0.1


@pytest.mark.parametrize("difference", [(1e-9, 0.0), (0.0, 1e-5), (math.nan, 0.0), (0.0, math.nan)])
def test_both_witnesses_must_agree(difference):
    assert not Difference(*difference).passed


def test_the_worst_over_all_inputs_and_sizes_is_what_counts(monkeypatch):
    found = iter([(0.0, 1e-9), (1e-11, 0.0), (0.0, 0.0), (math.nan, 1e-12)])
    monkeypatch.setattr(check, "compare", lambda case, probes: [Difference(*next(found))])
    monkeypatch.setitem(CASES, "made up", lambda sizes, draw: [None] * sizes.batch)

    assert check_rule("made up", [Sizes(batch=2), Sizes(batch=1)]) == Difference(1e-11, 1e-9)
    assert check_rule("made up", [Sizes(batch=1)]) == Difference(math.inf, 1e-12)


def test_every_rule_is_checked_once_under_its_name(monkeypatch):
    monkeypatch.setattr(check, "check_rule", lambda name: Difference(float(len(name)), 0.0))

    assert dict(check_rules()) == {name: Difference(float(len(name)), 0.0) for name in CASES}
    written = {
        name for name, x in vars(rules).items() if getattr(x, "__module__", "") == rules.__name__
    }
    assert {name for name in written if hasattr(vars(rules)[name], "backward")} <= {*CASES, "Rule"}


# --- Whole models ---------------------------------------------------------------------------------


def small(title):
    return build_model(SMALL_MODELS[title], VOCAB)


# A rule whose backward is turned around, and the weights that no gradient reaches through it.
DOWNSTREAM = [
    ("bigram", rules.TableCrossEntropy, set()),
    ("averaging", rules.CausalAverage, {"head.weight", "head.bias"}),
    ("attention", rules.Attention, {"head.weight", "head.bias"}),
    (
        "multihead",
        rules.Attention,
        {"attention.projection.weight", "head.weight", "head.bias"},
    ),
    ("multihead", rules.CrossEntropy, set()),
    ("gpt (gpt2)", rules.GELU, {"blocks.1.mlp.contract.weight", "final_norm.weight"}),
    (
        "gpt (gpt2)",
        rules.MergeHeads,
        {
            "blocks.1.attention.projection.weight",
            "blocks.1.mlp_norm.weight",
            "blocks.1.mlp.expand.weight",
            "blocks.1.mlp.contract.weight",
            "final_norm.weight",
        },
    ),
    ("gpt (modern)", rules.SquaredReLU, {"blocks.1.mlp.contract.weight", "head.weight"}),
    (
        "gpt (modern)",
        rules.Rotary,
        {
            "blocks.1.attention.projection.weight",
            "blocks.1.mlp.expand.weight",
            "blocks.1.mlp.contract.weight",
            "head.weight",
        },
    ),
    ("gpt (modern)", rules.RMSNorm, {"head.weight"}),
]


@pytest.mark.parametrize(
    ("title", "rule", "downstream"), DOWNSTREAM, ids=[f"{t}-{r.__name__}" for t, r, _ in DOWNSTREAM]
)
def test_a_wrong_rule_shows_in_exactly_the_weights_before_it(title, rule, downstream, monkeypatch):
    right = rule.backward

    def backward(self, dout, *saved):
        return tuple(g if g is None else -g for g in right(self, dout, *saved))

    monkeypatch.setattr(rule, "backward", backward)
    model = small(title)

    passed = {name for name, found in check_model(model, probes=0) if found.passed}

    assert passed == downstream


@pytest.mark.parametrize("title", SMALL_MODELS)
def test_every_weight_of_a_model_is_checked_in_its_order(title):
    model = small(title)

    found = list(check_model(model, windows=1, length=2, probes=1))

    assert [name for name, _ in found] == [name for name, _ in model.named_parameters()]
    assert all(difference.passed for _, difference in found)


@pytest.mark.parametrize("title", SMALL_MODELS)
def test_no_zero_is_left_for_a_mistake_to_hide_behind(title):
    model = small(title)

    list(check_model(model, probes=0))

    for parameter in model.parameters():
        assert parameter.dtype == torch.float64
        assert (parameter != 0).all()


def test_dropout_is_on_while_a_model_is_checked(monkeypatch):
    monkeypatch.setattr(rules.Dropout, "backward", lambda self, dout, mask: (dout,))

    found = dict(check_model(small("gpt (gpt2)").eval(), probes=0))

    assert not found["token_embedding.weight"].passed
    assert found["final_norm.weight"].passed


# --- Numbers at random, the same each time --------------------------------------------------------


def test_a_draw_is_the_same_each_time():
    def numbers(seed):
        draw = Draw(seed)
        drawn = draw.normal(3), draw.positive(3), draw.off_zero(3), draw.ids(10**6, 3).double()
        return torch.stack(drawn)

    assert torch.equal(numbers(1), numbers(1))
    assert not torch.equal(numbers(1), numbers(2))
    assert len(numbers(1).unique()) == 12  # and goes on


def test_a_draw_keeps_its_distance():
    draw = Draw(0)

    assert draw.positive(1000).min() >= 0.5
    x = draw.off_zero(1000)
    assert x.abs().min() >= 0.1
    assert x.min() < 0 < x.max()
    assert set(draw.ids(3, 100).tolist()) == {0, 1, 2}
    assert draw.normal(2, 3).dtype == torch.float64


@pytest.mark.parametrize("name", CASES)
def test_checking_a_rule_leaves_torchs_random_numbers_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()

    first = check_rule(name, probes=0)

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert check_rule(name, probes=0) == first


@pytest.mark.parametrize("title", SMALL_MODELS)
def test_checking_a_model_leaves_torchs_random_numbers_alone(title):
    model = small(title)
    torch.manual_seed(5)
    before = torch.get_rng_state()

    first = list(check_model(model, windows=1, length=2, probes=0))

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert list(check_model(small(title), windows=1, length=2, probes=0)) == first
