"""Rules in a row: names, sums of gradients, and what is kept until when."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.backprop import rules
from charlm.backprop.by_hand import program_for
from charlm.backprop.cases import Case, Draw
from charlm.backprop.check import compare
from charlm.backprop.program import Program, Step
from charlm.config import GPTConfig
from charlm.models import build_model


def made(inputs, *steps):
    return Program(inputs, [Step(*step) for step in steps])


def ones_like_result(a_program, *inputs):
    """Return the gradients of the sum of a program's result."""
    out, saved = a_program.forward(*inputs)
    return a_program.backward(torch.ones_like(out), *saved)


def assert_right(a_program, reference, *inputs):
    found = list(compare(Case(a_program, reference, inputs), probes=2))

    assert len(found) == len(inputs)
    assert all(difference.passed for difference in found), found


ADD, MULTIPLY, EXP = rules.Add(), rules.Multiply(), rules.Exp()


def test_a_name_that_is_used_again_belongs_to_the_later_value():
    draw = Draw(0)
    steps = made("x y", ("x", ADD, "x y"), ("x", MULTIPLY, "x y"), ("x", ADD, "x x"))

    assert_right(steps, lambda x, y: 2 * (x + y) * y, draw.normal(2, 3), draw.normal(3))


def test_the_gradient_of_a_later_value_does_not_reach_the_earlier_one():
    x, y = torch.tensor([2.0]), torch.tensor([3.0])

    # The second x is made of y alone: the first was only squared.
    gradients = ones_like_result(
        made("x y", ("z", MULTIPLY, "x x"), ("x", rules.Scale(5.0), "y"), ("out", ADD, "z x")), x, y
    )

    assert [g.item() for g in gradients] == [4, 5]


def test_an_input_whose_name_is_taken_before_it_was_used_gets_none():
    nothing, dy = ones_like_result(
        made("x y", ("x", rules.Scale(5.0), "y"), ("x", ADD, "x y")),
        torch.tensor([2.0]),
        torch.tensor([3.0]),
    )

    assert nothing is None
    assert dy.item() == 6


def test_a_value_that_two_steps_use_gets_the_sum():
    draw = Draw(0)
    steps = made("x w", ("y", MULTIPLY, "x w"), ("z", EXP, "x"), ("out", ADD, "y z"))

    assert_right(steps, lambda x, w: x * w + x.exp(), draw.normal(2, 3), draw.normal(2, 3))


def test_a_value_that_one_step_uses_twice_gets_the_sum():
    draw = Draw(0)

    assert_right(made("y", ("out", MULTIPLY, "y y")), torch.square, draw.normal(2, 3))
    assert_right(made("y", ("out", rules.Matmul(), "y y")), lambda y: y @ y, draw.normal(3, 3))
    (dy,) = ones_like_result(made("y", ("out", ADD, "y y")), torch.zeros(2))
    assert dy.tolist() == [2, 2]


def test_an_input_that_nobody_uses_gets_none():
    x, unused = torch.ones(2), torch.ones(3)

    dx, nothing = ones_like_result(made("x unused", ("out", EXP, "x")), x, unused)

    assert torch.equal(dx, x.exp())
    assert nothing is None


def test_a_constant_gets_none():
    table, idx = torch.eye(3), torch.tensor([[0, 2]])

    dtable, nothing = ones_like_result(
        made("table idx", ("x", rules.Embedding(), "table idx")), table, idx
    )

    assert dtable.sum(1).tolist() == [3, 0, 3]
    assert nothing is None


def test_a_step_may_have_several_results():
    qkv = Draw(0).normal(2, 3, 12)
    heads = ("query key value", rules.SplitHeads(2), "qkv")

    def split(qkv):
        parts = qkv.unflatten(-1, (3, 2, 2)).unbind(2)
        return tuple(part.transpose(1, 2) for part in parts)

    def product(qkv):
        query, key, value = split(qkv)
        return query * key * value

    steps = heads, ("out", MULTIPLY, "query key"), ("out", MULTIPLY, "out value")
    assert_right(made("qkv", *steps), product, qkv)
    assert_right(made("qkv", heads), split, qkv)  # the last step may, too
    assert_right(
        made("x", ("x", rules.Scale(2.0), "x"), ("q k v", heads[1], "x")),
        lambda x: split(2 * x),
        qkv,
    )


def test_a_program_is_a_rule_and_stands_in_another():
    cube = made("x", ("y", MULTIPLY, "x x"), ("y", MULTIPLY, "x y"))
    inner = made("a b", ("y", ADD, "a b"), ("y", cube, "y"))
    outer = made("x w", ("y", inner, "x w"), ("y", inner, "y x"))
    draw = Draw(0)

    assert isinstance(cube, rules.Rule)
    assert_right(
        outer, lambda x, w: ((x + w) ** 3 + x) ** 3, draw.normal(2, 3) / 2, draw.normal(3) / 2
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_inputs_is_refused(count):
    with pytest.raises(ValueError, match=r"argument 2 is (shorter|longer)"):
        made("x y", ("out", ADD, "x y")).forward(*[torch.ones(1)] * count)


def test_a_wrong_number_of_gradients_or_results_is_refused():
    x = torch.ones(1, 1, 6)
    two_names = made("qkv", ("query key", rules.SplitHeads(1), "qkv"))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        two_names.forward(x)

    heads = made("qkv", ("query key value", rules.SplitHeads(1), "qkv"))
    (query, key, _), saved = heads.forward(x)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        heads.backward((query, key), *saved)


VARIABLES = st.sampled_from("abc")
STEPS = st.lists(
    st.tuples(
        VARIABLES,
        st.sampled_from(["add", "multiply", "scale", "square"]),
        VARIABLES,
        VARIABLES,
    ),
    min_size=1,
    max_size=8,
)


def run(program, values):
    """Do in plain Python what a program says, with the same names."""
    values = dict(values)
    for name, operation, left, right in program:
        a, b = values[left], values[right]
        values[name] = {"add": a + b, "multiply": a * b, "scale": a * 0.5, "square": a * a}[
            operation
        ]
    return values[name]


def as_steps(program):
    for name, operation, left, right in program:
        if operation == "scale":
            yield name, rules.Scale(0.5), left
        elif operation == "square":
            yield name, MULTIPLY, f"{left} {left}"
        else:
            yield name, {"add": ADD, "multiply": MULTIPLY}[operation], f"{left} {right}"


def without_idle_steps(program):
    """Keep only the steps that the result depends on."""
    kept, asked_for = [], {program[-1][0]}
    for step in reversed(program):
        name, operation, left, right = step
        if name in asked_for:
            asked_for.remove(name)
            asked_for |= {left} if operation in ("scale", "square") else {left, right}
            kept.append(step)
    return kept[::-1]


@settings(max_examples=150)
@given(program=STEPS)
def test_any_program_has_the_gradients_of_autograd(program):
    program = without_idle_steps(program)
    values = {name: Draw(i).positive(2).requires_grad_() for i, name in enumerate("abc")}
    out = run(program, values)
    expected = torch.autograd.grad(out.sum(), tuple(values.values()), allow_unused=True)

    with torch.no_grad():
        gradients = ones_like_result(made("a b c", *as_steps(program)), *values.values())

    for gradient, truth in zip(gradients, expected, strict=True):
        if truth is None:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-12)


def test_what_was_saved_is_used_up():
    steps = made("x", ("y", EXP, "x"), ("y", EXP, "y"))
    out, saved = steps.forward(torch.zeros(1))
    assert len(saved[0]) == 2

    steps.backward(out, *saved)

    assert saved == ([],)
    with pytest.raises(IndexError):
        steps.backward(out, *saved)


def test_the_memory_of_a_step_serves_those_before_it():
    kept = []  # whether what the last step saved was still there when the first one's turn came

    class First:
        def forward(self, x):
            return x + 1, ()

        def backward(self, dout):
            kept.append(last() is not None)
            return (dout,)

    class Last:
        def forward(self, x):
            nonlocal last
            large = x.clone()
            last = weakref.ref(large)
            return x + 1, (large,)

        def backward(self, dout, large):
            kept.append(last() is not None)
            return (dout,)

    last = None
    steps = made("x", ("x", First(), "x"), ("x", rules.Scale(2.0), "x"), ("x", Last(), "x"))
    out, saved = steps.forward(torch.zeros(1))
    steps.backward(torch.ones_like(out), *saved)

    assert kept == [True, False]


def test_forward_keeps_only_what_rules_ask_for():
    x = torch.zeros(1)
    steps = made("x", ("y", ADD, "x x"), ("y", rules.Scale(2.0), "y"), ("y", EXP, "y"))

    out, (saved,) = steps.forward(x)

    assert saved == [(x.shape, x.shape), (), (out,)]


def test_a_step_says_what_it_does():
    assert str(Step("x", rules.Add(), "x y")) == "x = Add(x, y)"
    assert str(Step("a b", rules.SplitHeads(4), "qkv")) == "a, b = SplitHeads(qkv, n_head=4)"
    assert str(Step("y", rules.Scale(-1.0), "x")) == "y = Scale(x, factor=-1.0)"
    assert str(Step("y", rules.Mean(), "x")) == "y = Mean(x)"  # a default goes without saying
    assert str(Step("y", rules.Mean(0), "x")) == "y = Mean(x, dim=0)"


def test_a_program_is_its_steps_in_order():
    steps = [Step("x", ADD, "x y"), Step("x", EXP, "x")]

    assert list(Program("x y", steps)) == steps
    assert str(Program("x y", steps * 5)).splitlines()[-2:] == [
        " 9  x = Add(x, y)",
        "10  x = Exp(x)",
    ]


PRINTED = {
    "gpt2": """\
 1  x = Embedding(token_embedding.weight, idx)
 2  position = Embedding(position_embedding.weight, positions)
 3  x = Add(x, position)
 4  n = LayerNorm(x, blocks.0.attention_norm.weight)
 5  gathered = MultiHeadAttention(n, blocks.0.attention.qkv.weight, \
blocks.0.attention.projection.weight, n_head=2)
 6  x = Add(x, gathered)
 7  n = LayerNorm(x, blocks.0.mlp_norm.weight)
 8  hidden = Linear(n, blocks.0.mlp.expand.weight)
 9  hidden = GELU(hidden)
10  thought = Linear(hidden, blocks.0.mlp.contract.weight)
11  x = Add(x, thought)
12  x = LayerNorm(x, final_norm.weight)
13  logits = Linear(x, token_embedding.weight)
14  loss = CrossEntropy(logits, targets)""",
    "modern": """\
 1  x = Embedding(token_embedding.weight, idx)
 2  x = RMSNorm(x)
 3  n = RMSNorm(x)
 4  n = TokenShift(n)
 5  qkv = Linear(n, blocks.0.attention.qkv.weight)
 6  query, key, value = SplitHeads(qkv, n_head=2)
 7  query = RMSNorm(query)
 8  query = Rotary(query, blocks.0.attention.rotary)
 9  key = RMSNorm(key)
10  key = Rotary(key, blocks.0.attention.rotary)
11  gathered = Attention(query, key, value)
12  gathered = MergeHeads(gathered)
13  gathered = Linear(gathered, blocks.0.attention.projection.weight)
14  x = Add(x, gathered)
15  n = RMSNorm(x)
16  n = TokenShift(n)
17  hidden = Linear(n, blocks.0.mlp.expand.weight)
18  hidden = SquaredReLU(hidden)
19  thought = Linear(hidden, blocks.0.mlp.contract.weight)
20  x = Add(x, thought)
21  x = RMSNorm(x)
22  logits = Linear(x, head.weight)
23  loss = CrossEntropy(logits, targets)""",
}


def gpt(style, **named):
    config = {"block_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 4, **named}
    return build_model(GPTConfig(type="gpt", style=style, **config), 5)


@pytest.mark.parametrize("style", PRINTED)
def test_the_program_of_a_model_reads_as_its_lesson(style):
    assert str(program_for(gpt(style))) == PRINTED[style]


@pytest.mark.parametrize(("style", "per_layer"), [("gpt2", 8), ("modern", 18)])
def test_each_layer_adds_its_steps(style, per_layer):
    one, three = (len(list(program_for(gpt(style, n_layer=n)))) for n in (1, 3))

    assert three == one + 2 * per_layer


@pytest.mark.parametrize("style", PRINTED)
def test_dropout_adds_a_step_after_the_embedding_and_after_each_branch(style):
    lines = str(program_for(gpt(style, dropout=0.1))).splitlines()

    steps = [line[4:] for line in lines]
    dropped = [f"{name} = Dropout({name}, p=0.1)" for name in ("x", "gathered", "thought")]
    assert [step for step in steps if " = Dropout(" in step] == dropped
    (attention,) = [step for step in steps if "Attention(" in step]
    assert attention.endswith(", dropout=0.1)")
    assert len(steps) == len(PRINTED[style].splitlines()) + 3


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([("y", rules.Exp(), "z")], r"y = Exp\(z\): nothing before it makes z"),
        ([("y", rules.Exp(), "x"), ("z", rules.Log(), "x")], "y: made, but nothing uses it"),
        (
            [("y", rules.Exp(), "x"), ("y", rules.Log(), "x"), ("z", rules.Exp(), "y")],
            r"y = Log\(x\): nothing uses y before it is made again",
        ),
        (
            [("q k v", rules.SplitHeads(1), "x"), ("y", rules.Add(), "q v")],
            "k: made, but nothing uses it",
        ),
    ],
)
def test_a_loose_end_is_refused_when_the_program_is_made(steps, reason):
    with pytest.raises(ValueError, match=reason):
        made("x", *steps)


def test_a_step_that_only_makes_ids_hands_no_gradient_on():
    class Likeliest:
        def forward(self, x):
            return x.argmax(-1), ()

        def backward(self, dout):
            raise AssertionError("there is no gradient of ids")

    x, table = Draw(0).normal(2, 3), Draw(1).normal(3, 4)
    a_program = made("x table", ("idx", Likeliest(), "x"), ("y", rules.Embedding(), "table idx"))

    dx, dtable = ones_like_result(a_program, x, table)

    assert dx is None
    assert dtable.sum() == 8


def test_a_program_needs_a_step():
    with pytest.raises(ValueError, match="a program needs a step"):
        made("x")
