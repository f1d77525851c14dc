"""Every rule against autograd of PyTorch's own form of it, and against finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from charlm.backprop import rules
from charlm.backprop.cases import CASES, Case, Draw, Sizes
from charlm.backprop.check import check_rule, compare
from charlm.backprop.program import Program, Step
from charlm.backprop.recurrence import ThroughTime, TruncatedTime

SHAPES = st.builds(
    Sizes,
    batch=st.integers(1, 3),
    time=st.integers(1, 6),
    heads=st.integers(1, 3),
    head_size=st.integers(1, 4),
    vocab=st.integers(1, 6),
)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8)
@given(sizes=SHAPES)
def test_a_rule_equals_autograd_and_finite_differences(name, sizes):
    difference = check_rule(name, [sizes], probes=3)

    assert difference.autograd <= 1e-10
    assert difference.finite <= 1e-6


@pytest.mark.parametrize(
    ("rule", "reference"), [(rules.Add(), torch.add), (rules.Multiply(), torch.mul)]
)
@settings(max_examples=30)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
def test_what_was_broadcast_is_summed(rule, reference, shapes):
    draw = Draw(0)
    inputs = tuple(draw.normal(*shape) for shape in shapes.input_shapes)

    for difference in compare(Case(rule, reference, inputs), probes=2):
        assert difference.passed


@settings(max_examples=30)
@given(shapes=mutually_broadcastable_shapes(signature="(n,m),(m,p)->(n,p)", max_dims=2, max_side=3))
def test_a_product_of_stacks_of_matrices(shapes):
    draw = Draw(0)
    inputs = tuple(draw.normal(*shape) for shape in shapes.input_shapes)

    for difference in compare(Case(rules.Matmul(), torch.matmul, inputs), probes=2):
        assert difference.passed


def test_linear_is_the_formulas_of_the_notes():
    draw = Draw(0)
    x, w, b, dout = draw.normal(6, 3), draw.normal(3, 4), draw.normal(4), draw.normal(6, 4)

    out, saved = rules.Linear().forward(x, w.T, b)
    dx, dweight, db = rules.Linear().backward(dout, *saved)

    torch.testing.assert_close(out, x @ w + b)
    torch.testing.assert_close(dx, dout @ w.T)
    torch.testing.assert_close(dweight.T, x.T @ dout)
    torch.testing.assert_close(db, dout.sum(0))


def test_a_mean_gives_each_element_one_nth():
    _, saved = rules.Mean().forward(torch.zeros(2, 3))

    (dx,) = rules.Mean().backward(torch.tensor(1.0), *saved)

    torch.testing.assert_close(dx, torch.full((2, 3), 1 / 6))


def test_a_row_that_was_looked_up_twice_gets_the_sum():
    table = torch.zeros(3, 2)
    _, saved = rules.Embedding().forward(table, torch.tensor([[0, 2, 0]]))

    dtable, nothing = rules.Embedding().backward(
        torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]), *saved
    )

    assert dtable.tolist() == [[6, 8], [0, 0], [3, 4]]
    assert nothing is None


def test_cross_entropy_is_softmax_minus_onehot_over_n():
    logits = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]], dtype=torch.float64)
    targets = torch.tensor([[1, 0]])

    loss, saved = rules.CrossEntropy().forward(logits, targets)
    dlogits, _ = rules.CrossEntropy().backward(torch.tensor(1.0), *saved)

    p = 1 / (1 + torch.tensor(2.0, dtype=torch.float64).exp())  # of the 1.0 beside the 3.0
    torch.testing.assert_close(loss, (torch.tensor(2.0).double().log() - p.log()) / 2)
    expected = torch.tensor([[[0.5, 0.5 - 1], [p - 1, 1 - p]]], dtype=torch.float64) / 2
    torch.testing.assert_close(dlogits, expected)


def test_logits_far_apart_neither_overflow_nor_vanish():
    logits = torch.tensor([[[1e4, 0.0], [0.0, -1e4]]])

    loss, saved = rules.CrossEntropy().forward(logits, torch.tensor([[1, 0]]))
    dlogits, _ = rules.CrossEntropy().backward(torch.tensor(1.0), *saved)

    assert loss.item() == 5e3
    assert dlogits.tolist() == [[[0.5, -0.5], [0.0, 0.0]]]


def test_dropout_keeps_its_share_and_scales_it():
    x = torch.ones(10_000)

    out, saved = rules.Dropout(0.25).forward(x)
    (dx,) = rules.Dropout(0.25).backward(x, *saved)

    assert set(out.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(dx, out)


def test_attention_gives_no_gradient_to_what_no_query_saw():
    draw = Draw(0)
    heads = [draw.normal(1, 1, 4, 2) for _ in range(3)]
    _, saved = rules.Attention().forward(*heads)
    dout = draw.normal(1, 1, 4, 2)
    dout[:, :, 2:] = 0  # only positions 0 and 1 are asked for

    for gradient in rules.Attention().backward(dout, *saved):
        assert torch.equal(gradient[:, :, 2:], torch.zeros(1, 1, 2, 2).double())


@pytest.mark.parametrize("name", CASES)
def test_backward_can_be_called_twice(name):
    """What forward saved and the gradient that came in are not written to.

    A program uses up what it saved, to free memory, and so does a cell; the rules in it do not.
    """
    for case in CASES[name](Sizes(), Draw(0)):
        if isinstance(case.rule, Program | ThroughTime | TruncatedTime):
            return
        out, saved = case.rule.forward(*case.inputs, *case.constants)
        dout = tuple(map(torch.ones_like, out)) if isinstance(out, tuple) else torch.ones_like(out)
        before = [x.clone() for x in case.inputs]

        first = case.rule.backward(dout, *saved)
        kept = [None if g is None else g.clone() for g in first]
        second = case.rule.backward(dout, *saved)

        for a, b in zip(kept, second, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
        for a, b in zip(before, case.inputs, strict=True):
            assert torch.equal(a, b)


def fine(inputs, *steps):
    return Program(inputs, [Step(*step) for step in steps])


SOFTMAX = (
    ("e", rules.Exp(), "x"),
    ("total", rules.Sum(-1), "e"),
    ("inverse", rules.Power(-1.0), "total"),
    ("p", rules.Multiply(), "e inverse"),
)
MINUS = rules.Scale(-1.0)

# Each coarse rule beside the same function in finer steps, and what to try both on.
ABSTRACTIONS = {
    "softmax": (rules.Softmax(), fine("x", *SOFTMAX), lambda d: (d.normal(3, 5),)),
    "squared ReLU": (
        rules.SquaredReLU(),
        fine("x", ("y", rules.ReLU(), "x"), ("y", rules.Multiply(), "y y")),
        lambda d: (d.normal(4, 5),),
    ),
    "log-softmax": (
        rules.LogSoftmax(),
        fine(
            "x",
            ("e", rules.Exp(), "x"),
            ("total", rules.Sum(-1), "e"),
            ("log", rules.Log(), "total"),
            ("minus", MINUS, "log"),
            ("out", rules.Add(), "x minus"),
        ),
        lambda d: (d.normal(3, 5),),
    ),
    "cross-entropy": (
        rules.CrossEntropy(),
        fine(
            "x targets",
            *SOFTMAX,
            ("picked", rules.Pick(), "p targets"),
            ("log", rules.Log(), "picked"),
            ("mean", rules.Mean(), "log"),
            ("loss", MINUS, "mean"),
        ),
        lambda d: (d.normal(2, 3, 5), d.ids(5, 2, 3)),
    ),
    "linear": (
        rules.Linear(),
        fine("x w b", ("h", rules.Linear(), "x w"), ("out", rules.Add(), "h b")),
        lambda d: (d.normal(2, 3, 4), d.normal(5, 4), d.normal(5)),
    ),
    "RMSNorm": (
        rules.RMSNorm(),
        fine(
            "x",
            ("square", rules.Multiply(), "x x"),
            ("mean", rules.Mean(-1), "square"),
            ("scale", rules.Power(-0.5), "mean"),
            ("out", rules.Multiply(), "x scale"),
        ),
        lambda d: (d.normal(2, 3, 4),),
    ),
    "attention": (
        rules.Attention(),
        fine(
            "query key_transposed value",
            ("scores", rules.Matmul(), "query key_transposed"),
            ("scores", rules.Scale(0.5), "scores"),  # 1 / sqrt 4
            ("scores", rules.CausalMask(), "scores"),
            ("weights", rules.Softmax(), "scores"),
            ("out", rules.Matmul(), "weights value"),
        ),
        lambda d: (d.normal(2, 3, 5, 4), d.normal(2, 3, 5, 4), d.normal(2, 3, 5, 4)),
    ),
    "multi-head attention": (
        rules.MultiHeadAttention(2),
        fine(
            "x w_qkv w_out",
            ("qkv", rules.Linear(), "x w_qkv"),
            ("q k v", rules.SplitHeads(2), "qkv"),
            ("heads", rules.Attention(), "q k v"),
            ("merged", rules.MergeHeads(), "heads"),
            ("out", rules.Linear(), "merged w_out"),
        ),
        lambda d: (d.normal(2, 3, 4), d.normal(12, 4), d.normal(4, 4)),
    ),
    "LayerNorm": (
        rules.LayerNorm(),
        fine(
            "x gain epsilon",
            ("mean", rules.Mean(-1), "x"),
            ("minus", MINUS, "mean"),
            ("centred", rules.Add(), "x minus"),
            ("square", rules.Multiply(), "centred centred"),
            ("variance", rules.Mean(-1), "square"),
            ("variance", rules.Add(), "variance epsilon"),
            ("scale", rules.Power(-0.5), "variance"),
            ("n", rules.Multiply(), "centred scale"),
            ("out", rules.Multiply(), "n gain"),
        ),
        lambda d: (d.normal(2, 3, 4), d.normal(4)),
    ),
}


@pytest.mark.parametrize("name", ABSTRACTIONS)
def test_the_level_of_abstraction_is_free(name):
    coarse, program, make = ABSTRACTIONS[name]
    inputs = make(Draw(0))
    finer = list(inputs)
    if name == "attention":
        finer[1] = finer[1].mT
    if name == "LayerNorm":
        finer.append(torch.tensor(1e-5).double())

    out, saved = coarse.forward(*inputs)
    fine_out, fine_saved = program.forward(*finer)
    dout = Draw(1).normal(*out.shape)
    gradients = list(coarse.backward(dout, *saved))
    fine_gradients = list(program.backward(dout, *fine_saved))

    torch.testing.assert_close(fine_out, out)
    if name == "attention":
        fine_gradients[1] = fine_gradients[1].mT
    for gradient, fine_gradient in zip(gradients, fine_gradients, strict=False):
        if gradient is not None:
            torch.testing.assert_close(fine_gradient, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_of_small_numbers_in_half_precision_is_pytorchs(dtype):
    x = (Draw(0).normal(64, 16) * 0.01).to(dtype)

    out, saved = rules.RMSNorm().forward(x)
    (dx,) = rules.RMSNorm().backward(torch.ones_like(out), *saved)

    assert out.dtype == dx.dtype == dtype
    torch.testing.assert_close(out, torch.nn.functional.rms_norm(x, (16,)), rtol=1e-2, atol=1e-2)


def test_half_precision_is_summed_in_single():
    dout = torch.full((4000, 1), 1.0, dtype=torch.bfloat16)  # which ends at 256 in bfloat16

    dtable, _ = rules.Embedding().backward(dout, torch.zeros(4000, dtype=torch.int64), 1)

    assert dtable.item() == 4000


@pytest.mark.parametrize(
    ("rule", "shapes"),
    [(rules.Linear(), [(3,), (2, 3), (2,)]), (rules.LayerNorm(), [(4,), (4,)])],
)
def test_a_single_row_needs_no_batch(rule, shapes):
    one = tuple(Draw(0).normal(*shape) for shape in shapes)
    as_batch = (one[0][None], *one[1:])

    out, saved = rule.forward(*one)
    batch_out, batch_saved = rule.forward(*as_batch)
    dout = Draw(1).normal(*out.shape)
    dx, *rest = rule.backward(dout, *saved)
    batch_dx, *batch_rest = rule.backward(dout[None], *batch_saved)

    assert torch.equal(out, batch_out[0])
    for found, expected in zip([dx, *rest], [batch_dx[0], *batch_rest], strict=True):
        torch.testing.assert_close(found, expected)


def test_one_prediction_alone_is_scored():
    loss, saved = rules.CrossEntropy().forward(torch.zeros(4), torch.tensor(1))
    dlogits, _ = rules.CrossEntropy().backward(torch.tensor(1.0), *saved)

    assert loss.item() == pytest.approx(math.log(4))
    assert dlogits.tolist() == [0.25, -0.75, 0.25, 0.25]


@pytest.mark.parametrize("target", [3, 5])
def test_a_target_that_is_no_character_is_refused(target):
    with pytest.raises(IndexError, match="out of bounds"):
        rules.TableCrossEntropy().forward(
            torch.zeros(3, 3), torch.tensor([[0, 1]]), torch.tensor([[target, 0]])
        )


def test_the_zeroth_power_is_flat_at_zero_too():
    out, saved = rules.Power(0.0).forward(torch.zeros(2))

    assert out.tolist() == [1, 1]
    assert rules.Power(0.0).backward(torch.ones(2), *saved)[0].tolist() == [0, 0]
