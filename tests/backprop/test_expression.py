import math

import pytest

from charlm.backprop.expression import FUNCTIONS, parse
from charlm.errors import UsageError


@pytest.mark.parametrize(
    "expression",
    [
        "a + b",
        "a - b - 2",
        "a * b + 3 * -a",
        "a / b / 4",
        "a ** 2 ** b",
        "-a ** 2",
        "(-a) ** 2",
        "a ** -2",
        "2 ** a",
        "+a - +3",
        "--a",
        " (a + b) * (a - b) ",
        "a\n  + b",
        "1.5e1 * a + 1_000",
        "a",
        "7",
    ],
)
def test_an_expression_is_computed_as_python_does(expression):
    values = {"a": 3.0, "b": 0.5}
    used = {name: number for name, number in values.items() if name in expression}

    result = parse(expression, used)

    assert result.data == pytest.approx(eval(f"({expression})", {}, values), rel=1e-15)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_can_be_called(name):
    result = parse(f"{name}(x)", {"x": 0.7})

    outer = {"square": lambda x: x * x, "relu": lambda x: max(x, 0.0)}
    assert result.data == pytest.approx((outer.get(name) or getattr(math, name))(0.7), rel=1e-15)
    assert result.label == name


def test_a_name_is_one_leaf_however_often_it_is_used():
    result = parse("x*x + x", {"x": 3})
    result.backward()

    (x,) = [value for value in result.history() if not value.made_of]
    assert (x.label, x.data, x.grad) == ("x", 3, 7)


def test_a_name_may_be_that_of_a_function():
    assert parse("exp * exp(exp)", {"exp": 1}).data == pytest.approx(math.e)


def test_a_name_is_the_same_in_all_its_unicode_forms():
    assert parse("ﬁ * \u00b5", {"ﬁ": 2, "\u00b5": 3}).data == 6


def test_an_exponent_written_out_is_no_node_and_other_numbers_are():
    assert [value.label for value in parse("x**2", {"x": 3}).history()] == ["x", "** 2"]
    assert [value.label for value in parse("x**-2", {"x": 3}).history()] == ["x", "** -2"]
    assert [value.label for value in parse("2*x + 2", {"x": 3}).history()] == [
        "2",
        "x",
        "*",
        "2",
        "+",
    ]
    assert [value.label for value in parse("-2 + x", {"x": 3}).history()] == ["-2", "x", "+"]


ALL = "square, sqrt, exp, log, sin, cos, tan, tanh, relu"
NO_ARITHMETIC = f"not arithmetic; use numbers, names, + - * / **, parentheses and {ALL}"
WRITE = "write an expression such as '(a*b + c) * f'"


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        ("", "expression: empty; write one such as '(a*b + c) * f'"),
        (" \n", "expression: empty; write one such as '(a*b + c) * f'"),
        ("a b", f"'a b': invalid syntax at character 3; {WRITE}"),
        ("a +", f"'a +': invalid syntax at the end; {WRITE}"),
        ("a = 3", f"'a = 3': invalid syntax at character 3; {WRITE}"),
        ("(a", f"'(a': '(' was never closed at character 1; {WRITE}"),
        ("a)", f"'a)': unmatched ')' at character 2; {WRITE}"),
        ("2a", f"'2a': invalid decimal literal at character 1; {WRITE}"),
        ("a × 2", f"'a × 2': invalid character '×' (U+00D7) at character 3; {WRITE}"),
        ("a\udcff", "'a\\udcff': not all of it is characters; retype it"),
        ("a < 2", f"'a < 2': {NO_ARITHMETIC}"),
        ("2 + (a or 1)", f"'a or 1': {NO_ARITHMETIC}"),
        ("1or a", f"'1or a': {NO_ARITHMETIC}"),
        ("a // 2", f"'a // 2': {NO_ARITHMETIC}"),
        ("a % 2", f"'a % 2': {NO_ARITHMETIC}"),
        ("not a", f"'not a': {NO_ARITHMETIC}"),
        ("~a", f"'~a': {NO_ARITHMETIC}"),
        ("a.real", f"'a.real': {NO_ARITHMETIC}"),
        ("a[0]", f"'a[0]': {NO_ARITHMETIC}"),
        ("a, a", f"'a, a': {NO_ARITHMETIC}"),
        ("a if a else a", f"'a if a else a': {NO_ARITHMETIC}"),
        ("(lambda: a)()", f"'(lambda: a)()': {NO_ARITHMETIC}"),
        ("[a for a in a]", f"'[a for a in a]': {NO_ARITHMETIC}"),
        ("a.exp()", f"'a.exp()': {NO_ARITHMETIC}"),
        ("'a'", f"\"'a'\": {NO_ARITHMETIC}"),
        ("'\\d'", f"\"'\\\\d'\": {NO_ARITHMETIC}"),
        ("f'{a}'", f"\"f'{{a}}'\": {NO_ARITHMETIC}"),
        ("a * True", f"'True': {NO_ARITHMETIC}"),
        ("a * None", f"'None': {NO_ARITHMETIC}"),
        ("a ** 2j", f"'2j': {NO_ARITHMETIC}"),
        ("a ^ 2", "'a ^ 2': ^ is no operation here; write ** for a power"),
        ("2(a + 1)", "'2(a + 1)': not a function; write * to multiply"),
        ("(a + 1)(a)", "'(a + 1)(a)': not a function; write * to multiply"),
        ("a(2)", "'a(2)': a is a number; write * to multiply with it"),
        ("exp()", "'exp()': exp takes one number; write exp(x)"),
        ("exp(a, a)", "'exp(a, a)': exp takes one number; write exp(x)"),
        ("exp(x=a)", "'exp(x=a)': exp takes one number; write exp(x)"),
        ("exp(*a)", "'exp(*a)': exp takes one number; write exp(x)"),
        (
            "1 + thanh(a)",
            f"'thanh(a)': unknown function 'thanh'; did you mean 'tanh'? there are {ALL}",
        ),
        ("open(a)", f"'open(a)': unknown function 'open'; there are {ALL}"),
        (
            "__import__('os')",
            f"\"__import__('os')\": unknown function '__import__'; there are {ALL}",
        ),
        ("a * 1e999", "'1e999': too large a number; write a smaller one"),
        ("a ** -1e999", "'1e999': too large a number; write a smaller one"),
        (f"a * 1{'0' * 400}", f"'1{'0' * 55} ...': too large a number; write a smaller one"),
    ],
)
def test_what_is_no_arithmetic_is_refused(expression, line):
    with pytest.raises(UsageError) as caught:
        parse(expression, {"a": 1})

    assert caught.value.lines() == [line]


@pytest.mark.parametrize(
    ("expression", "values", "line"),
    [
        ("a / b", {"a": 1, "b": 0}, "'a / b' with 1 and 0: division by zero"),
        ("1 + 1/(a-a)", {"a": 1}, "'1/(a-a)' with 1 and 0: division by zero"),
        ("log(a - 2)", {"a": 1}, "'log(a - 2)' with -1: no real result with a finite slope there"),
        ("log(a)", {"a": 0}, "'log(a)' with 0: no real result with a finite slope there"),
        ("sqrt(a)", {"a": 0}, "'sqrt(a)' with 0: no real result with a finite slope there"),
        ("a**-1", {"a": 0}, "'a**-1' with 0 and -1: no real result with a finite slope there"),
        ("a**b", {"a": -2, "b": 0.5}, "'a**b' with -2 and 0.5: no real result with a finite"),
        ("exp(a)", {"a": 1e3}, "'exp(a)' with 1000: too large for a floating-point number"),
        ("a*a", {"a": 1e200}, "'a*a' with 1e+200 and 1e+200: too large for a floating-point"),
        ("a**9", {"a": 1e99}, "'a**9' with 1e+99 and 9: too large for a floating-point number"),
        ("0/a", {"a": 1e-310}, "'0/a' with 0 and 1e-310: too large for a floating-point number"),
    ],
)
def test_what_mathematics_refuses_names_the_part_and_its_numbers(expression, values, line):
    with pytest.raises(UsageError) as caught:
        parse(expression, values)

    (problem,) = caught.value.lines()
    assert problem.startswith(line)
    assert problem.endswith("; choose other values")


@pytest.mark.parametrize(
    ("expression", "values", "lines"),
    [
        ("a*b", {"a": 1}, ["b: no value given; add b=NUMBER"]),
        ("b*a + c", {}, ["a, b, c: no value given; add a=NUMBER b=NUMBER c=NUMBER"]),
        ("a", {"a": 1, "b": 2}, ["b: not in the expression; use it there or leave it out"]),
        (
            "exp(a)",
            {"a": 1, "exp": 2},
            ["exp: not in the expression; use it there or leave it out"],
        ),
        (
            "A",
            {"a": 1},
            [
                "A: no value given; add A=NUMBER",
                "a: not in the expression; use it there or leave it out",
            ],
        ),
        ("a", {"a": math.inf}, ["a=inf: expected a finite number"]),
        ("a", {"a": math.nan}, ["a=nan: expected a finite number"]),
    ],
)
def test_names_and_values_belong_together(expression, values, lines):
    with pytest.raises(UsageError) as caught:
        parse(expression, values)

    assert caught.value.lines() == lines


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("a" + "+a" * 4_900, "too many operations, nested or in a row; compute a part of it"),
        ("a" + "+a" * 1_500, "too many operations, nested or in a row; compute a part of it"),
        ("-" * 9_000 + "a", "too many operations, nested or in a row; compute a part of it"),
        ("(" * 3_000 + "a" + ")" * 3_000, "too many nested parentheses at character"),
        ("9" * 5_000 + "*a", "Exceeds the limit (4300 digits) for integer string conversion at"),
        ("a" + "+a" * 5_000, "10,001 characters, more than 10,000"),
    ],
)
def test_what_is_too_long_or_too_deep_is_refused(expression, reason):
    with pytest.raises(UsageError) as caught:
        parse(expression, {"a": 1})

    (problem,) = caught.value.lines()
    assert problem.startswith(f"'{expression[:56]} ...': {reason}")
    assert len(problem) < 200
