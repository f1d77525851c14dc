import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.backprop.value import Value

SMALL = st.floats(-2, 2)
POSITIVE = st.floats(0.3, 3)
AWAY_FROM_ZERO = POSITIVE | POSITIVE.map(lambda x: -x)

# Each operation with the numbers for it, the same for values and for tensors.
OPERATIONS = {
    "add": (lambda a, b: a + b, SMALL, SMALL),
    "add a number": (lambda a: a + 3, SMALL),
    "add to a number": (lambda a: 3 + a, SMALL),
    "sub": (lambda a, b: a - b, SMALL, SMALL),
    "sub a number": (lambda a: a - 3, SMALL),
    "sub from a number": (lambda a: 3 - a, SMALL),
    "mul": (lambda a, b: a * b, SMALL, SMALL),
    "mul by a number": (lambda a: a * -1.5, SMALL),
    "mul a number": (lambda a: -1.5 * a, SMALL),
    "div": (lambda a, b: a / b, SMALL, AWAY_FROM_ZERO),
    "div by a number": (lambda a: a / -1.5, SMALL),
    "div a number": (lambda a: -1.5 / a, AWAY_FROM_ZERO),
    "pow": (lambda a, b: a**b, POSITIVE, SMALL),
    "pow of a number": (lambda a: 1.7**a, SMALL),
    "power of 3": (lambda a: a**3, SMALL),
    "power of -2": (lambda a: a**-2, AWAY_FROM_ZERO),
    "power of a half": (lambda a: a**0.5, POSITIVE),
    "neg": (lambda a: -a, SMALL),
    "square": (lambda a: a.square(), SMALL),
    "sqrt": (lambda a: a.sqrt(), POSITIVE),
    "exp": (lambda a: a.exp(), SMALL),
    "log": (lambda a: a.log(), POSITIVE),
    "sin": (lambda a: a.sin(), SMALL),
    "cos": (lambda a: a.cos(), SMALL),
    "tan": (lambda a: a.tan(), st.floats(-1, 1)),
    "tanh": (lambda a: a.tanh(), SMALL),
    "relu": (lambda a: a.relu(), AWAY_FROM_ZERO),
    "an input used twice": (lambda a, b: (a * b + a) * a, SMALL, SMALL),
}


def gradients(function, numbers):
    inputs = [Value(number) for number in numbers]
    result = function(*inputs)
    result.backward()
    return result.data, [value.grad for value in inputs]


def of_torch(function, numbers):
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    result = function(*inputs)
    result.backward()
    return result.item(), [x.grad.item() for x in inputs]


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
@settings(max_examples=15)
def test_an_operation_agrees_with_central_differences(name, data):
    function, *domains = OPERATIONS[name]
    numbers = [data.draw(domain) for domain in domains]

    _, grads = gradients(function, numbers)

    step = 1e-5
    for i, grad in enumerate(grads):
        up, down = (
            function(*(Value(x + sign * step * (i == j)) for j, x in enumerate(numbers))).data
            for sign in (1, -1)
        )
        assert grad == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
@settings(max_examples=15)
def test_an_operation_agrees_with_torch(name, data):
    function, *domains = OPERATIONS[name]
    numbers = [data.draw(domain) for domain in domains]

    result, grads = gradients(function, numbers)

    expected, expected_grads = of_torch(function, numbers)
    assert result == pytest.approx(expected, rel=1e-13, abs=1e-14)
    assert grads == pytest.approx(expected_grads, rel=1e-13, abs=1e-14)


STEPS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: (a * b).tanh(),  # which keeps the numbers small
    "/": lambda a, b: a / (b * b + 1),
    "sin": lambda a, b: (a - 2 * b).sin(),
}


@given(
    numbers=st.lists(SMALL, min_size=1, max_size=3),
    steps=st.lists(st.tuples(st.sampled_from(list(STEPS)), st.integers(0), st.integers(0))),
)
@settings(max_examples=60)
def test_any_graph_agrees_with_torch(numbers, steps):
    def build(*inputs):
        values = list(inputs)
        for name, i, j in steps:
            values.append(STEPS[name](values[i % len(values)], values[j % len(values)]))
        return sum(values)  # so that every input has a gradient

    result, grads = gradients(build, numbers)

    expected, expected_grads = of_torch(build, numbers)
    assert result == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert grads == pytest.approx(expected_grads, rel=1e-10, abs=1e-10)


def test_the_result_moves_with_itself_at_rate_one():
    alone = Value(5)

    alone.backward()

    assert (alone.data, alone.grad) == (5.0, 1.0)
    assert alone.history() == [alone]


def test_both_sides_of_a_division():
    a, b = Value(6), Value(3)

    result = a / b
    result.backward()

    assert (result.data, a.grad, b.grad) == (2, pytest.approx(1 / 3), pytest.approx(-6 / 9))


@pytest.mark.parametrize(
    ("function", "grad"),
    [
        (lambda a: a + a, 2),
        (lambda a: a - a, 0),
        (lambda a: a * a, 6),
        (lambda a: a / a, 0),
        (lambda a: (a + 1) * (a * 2), 14),  # a diamond: 4a + 2
        (lambda a: a**a, 27 * (1 + math.log(3))),
    ],
)
def test_a_value_used_twice_gathers_both_gradients(function, grad):
    a = Value(3)

    function(a).backward()

    assert a.grad == pytest.approx(grad, rel=1e-14)


def test_a_value_in_the_middle_is_complete_before_it_is_handed_on():
    a = Value(2)
    b = a * 3
    result = b + b * b  # b is met once directly and once through its square

    result.backward()

    assert (b.grad, a.grad) == (1 + 2 * 6, 3 * 13)


def test_results_that_share_leaves_add_up_and_those_in_between_do_not():
    a, b = Value(2), Value(5)
    shared = a * b
    first, second = shared + a, shared * 3

    first.backward()
    assert (a.grad, b.grad, shared.grad) == (6, 2, 1)

    second.backward()
    assert (a.grad, b.grad) == (6 + 15, 2 + 6)
    assert shared.grad == 3


def test_a_leaf_set_to_zero_starts_anew():
    a = Value(2)
    result = a * a

    for _ in range(2):
        a.grad = 0.0
        result.backward()

    assert a.grad == 4


def test_history_has_each_value_once_and_inputs_before_results():
    a, b = Value(1), Value(2)
    product = a * b
    result = product + product * a

    history = result.history()

    assert len(history) == len(set(map(id, history))) == 5
    places = {id(value): place for place, value in enumerate(history)}
    for value in history:
        assert all(places[id(parent)] < places[id(value)] for parent, _ in value.made_of)
    assert history[-1] is result


def test_ten_thousand_additions_do_not_exhaust_the_stack():
    a = Value(1)
    result = a
    for _ in range(10_000):
        result = result + a

    result.backward()

    assert (result.data, a.grad) == (10_001, 10_001)


def test_doubling_sixty_times_takes_sixty_steps():
    a = Value(1)
    result = a
    for _ in range(60):  # 2^60 paths
        result = result + result

    result.backward()

    assert a.grad == 2**60


@pytest.mark.parametrize("base", [-2, 0, 0.0, 3])
def test_to_the_power_of_zero_is_one_and_flat(base):
    a = Value(base)

    result = a**0
    result.backward()

    assert (result.data, a.grad) == (1, 0)


@pytest.mark.parametrize(("exponent", "grad"), [(1, 1), (2, 0), (3, 0), (2.5, 0)])
def test_powers_of_zero(exponent, grad):
    a = Value(0)

    result = a**exponent
    result.backward()

    assert (result.data, a.grad) == (0, grad)


def test_a_plain_exponent_is_no_value_of_its_own():
    a = Value(3)

    assert len((a**2).history()) == 2
    assert len((a ** Value(2)).history()) == 3


def test_relu_is_flat_at_zero():
    a = Value(0)

    a.relu().backward()

    assert a.grad == 0


@pytest.mark.parametrize(
    ("function", "number", "error"),
    [
        (lambda a: a / 0, 1, ZeroDivisionError),
        (lambda a: 1 / a, 0, ZeroDivisionError),
        (lambda a: a.log(), 0, ValueError),
        (lambda a: a.log(), -1, ValueError),
        (lambda a: a.sqrt(), -1, ValueError),
        (lambda a: a.sqrt(), 0, ZeroDivisionError),  # vertical there
        (lambda a: a**-1, 0, ValueError),
        (lambda a: a**0.5, 0, ValueError),  # vertical there
        (lambda a: a**0.5, -2, ValueError),
        (lambda a: (-2) ** a, 2, ValueError),
        (lambda a: a.exp(), 1000, OverflowError),
        (lambda a: a.square(), 1e200, OverflowError),
    ],
)
def test_what_has_no_value_or_no_slope_is_an_error(function, number, error):
    with pytest.raises(error):
        function(Value(number))


def test_operations_leave_their_inputs_alone():
    a, b = Value(2, label="a"), Value(3, label="b")

    a += b

    assert (a.label, a.made_of[0][0].label, b.data) == ("+", "a", 3)


def test_a_value_shows_its_number_and_gradient():
    a = Value(2.5)

    a.backward()

    assert repr(a) == "Value(data=2.5, grad=1)"


@pytest.mark.parametrize("other", ["x", None, 1j])
def test_what_is_no_number_is_refused(other):
    with pytest.raises(TypeError, match="expected a number or a Value, got "):
        Value(1) + other
