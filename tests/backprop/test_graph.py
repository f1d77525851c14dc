import re
import shutil
import subprocess

import pytest

from charlm.backprop.expression import parse
from charlm.backprop.graph import as_dot, as_records, as_text
from charlm.backprop.value import Value


def drawn(expression: str, **values: float) -> str:
    result = parse(expression, values)
    result.backward()
    return as_text(result)


def long_sum(terms: int) -> Value:
    x = Value(1, label="x")
    result = x
    for _ in range(terms - 1):
        result = result + x
    result.backward()
    return result


def test_a_tree_follows_the_chain_rule_line_by_line():
    assert drawn("(a*b + c) * f", a=2, b=-3, c=10, f=-2) == "\n".join(
        [
            "             data   local × above = share   grad",
            "*              -8                              1",
            "├─ +            4      -2 ×     1 =    -2     -2",
            "│  ├─ *        -6       1 ×    -2 =    -2     -2",
            "│  │  ├─ a      2      -3 ×    -2 =     6      6",
            "│  │  └─ b     -3       2 ×    -2 =    -4     -4",
            "│  └─ c        10       1 ×    -2 =    -2     -2",
            "└─ f           -2       4 ×     1 =     4      4",
            "",
            "local: derivative of the parent line by this one; above: gradient of the parent",
            "grad: the sum of a value's shares, which is the derivative of the top line by it",
        ]
    )


def test_decimal_points_stand_in_one_line_and_zero_has_no_sign():
    assert drawn("exp(x) - 0.125 * relu(y)", x=-7, y=-3).splitlines()[:7] == [
        "                      data          local ×  above =        share           grad",
        "-              0.000911882                                           1",
        "├─ exp         0.000911882    1           ×  1     =  1              1",
        "│  └─ x       -7              0.000911882 ×  1     =  0.000911882    0.000911882",
        "└─ *           0             -1           ×  1     = -1             -1",
        "   ├─ 0.125    0.125          0           × -1     =  0              0",
        "   └─ relu     0              0.125       × -1     = -0.125         -0.125",
    ]


def test_a_value_used_again_is_referred_to_and_its_shares_add_up():
    lines = drawn("a*a + a", a=3).splitlines()[1:6]

    assert [line.split() for line in lines] == [
        ["+", "12", "1"],
        ["├─", "*", "9", "1", "×", "1", "=", "1", "1"],
        ["│", "├─", "a", "3", "3", "×", "1", "=", "3", "7"],
        ["│", "└─", "a", "(above)", "3", "×", "1", "=", "3"],
        ["└─", "a", "(above)", "1", "×", "1", "=", "1"],
    ]


def test_values_of_one_label_are_told_apart_by_numbers():
    a, b = Value(2, label="a"), Value(3, label="b")
    product, other = a * b, a * a
    result = (product + product) * (other + other)
    result.backward()

    titles = [line[:18].rstrip() for line in as_text(result).splitlines()[1:-3]]

    assert titles == [
        "*",
        "├─ +",
        "│  ├─ * #1",
        "│  │  ├─ a",
        "│  │  └─ b",
        "│  └─ * #1 (above)",
        "└─ +",
        "   ├─ * #2",
        "   │  ├─ a (above)",
        "   │  └─ a (above)",
        "   └─ * #2 (above)",
    ]


def test_a_value_without_a_label_shows_its_number():
    result = Value(2.5) * Value(4)
    result.backward()

    assert [line.split()[:3] for line in as_text(result).splitlines()[2:4]] == [
        ["├─", "2.5", "2.5"],
        ["└─", "4", "4"],
    ]


def test_sixty_doublings_are_sixty_lines():
    result = Value(1, label="x")
    for _ in range(60):  # 2^60 paths
        result = result + result
    result.backward()

    assert len(as_text(result).splitlines()) < 150


def test_a_sum_of_three_thousand_terms_goes_on_at_the_left():
    lines = as_text(long_sum(3_000)).splitlines()

    assert len(lines) < 7_000
    assert max(map(len, lines)) < 150
    assert sum("(below)" in line for line in lines) == 149
    for number in range(1, 150):  # each promise is kept
        assert sum(line.startswith(f"+ #{number} ") for line in lines) == 1
    grads = [line.split()[-1] for line in lines if re.search(r"─ x +1 ", line)]
    assert grads == ["3000"]


def test_what_was_promised_below_may_come_beside_instead():
    x = Value(2, label="x")
    product = deep = x * x
    for _ in range(19):  # as far to the right as the tree goes
        deep = deep.sin()
    result = deep + product * 3
    result.backward()

    lines = as_text(result).splitlines()

    assert [line.lstrip("│ ").split("   ")[0] for line in lines[21:]] == [
        "└─ * #1 (below)",
        "└─ *",
        "├─ * #1",
        "├─ x",
        "└─ x (above)",
        "└─ 3",
        "",
        *lines[-2:],
    ]


def test_records_name_each_value_once_inputs_first():
    result = parse("a*a + 2", {"a": 3})
    result.backward()

    assert as_records(result) == {
        "nodes": [
            {"id": 0, "label": "a", "data": 3.0, "grad": 6.0},
            {"id": 1, "label": "*", "data": 9.0, "grad": 1.0},
            {"id": 2, "label": "2", "data": 2.0, "grad": 1.0},
            {"id": 3, "label": "+", "data": 11.0, "grad": 1.0},
        ],
        "edges": [
            {"from": 0, "to": 1, "local": 3.0},
            {"from": 0, "to": 1, "local": 3.0},
            {"from": 1, "to": 3, "local": 1.0},
            {"from": 2, "to": 3, "local": 1.0},
        ],
    }


def test_a_drawing_has_the_nodes_and_edges_of_the_graph():
    result = parse("a*b", {"a": 2, "b": -3})
    result.backward()

    assert as_dot(result).source.splitlines() == [
        "digraph {",
        "\tgraph [rankdir=LR]",
        "\tnode [shape=record]",
        '\t0 [label="{ a | data 2 | grad -3 }"]',
        '\t1 [label="{ b | data -3 | grad 2 }"]',
        '\t2 [label="{ * | data -6 | grad 1 }"]',
        '\t0 -> 2 [label="× -3"]',
        '\t1 -> 2 [label="× 2"]',
        "}",
    ]


def test_a_drawing_of_three_thousand_terms_has_them_all():
    assert as_dot(long_sum(3_000)).source.count("->") == 2 * 2_999


@pytest.mark.skipif(not shutil.which("dot"), reason="needs Graphviz")
def test_signs_in_a_label_are_drawn_as_they_are():
    label = '<{a|b}> \\n "c"'
    result = Value(1, label=label)

    done = subprocess.run(
        ["dot", "-Tplain"], input=as_dot(result).source.encode(), capture_output=True, timeout=200
    )

    assert (done.returncode, done.stderr) == (0, b"")
    svg = as_dot(result).pipe("svg").decode()
    assert "&lt;{a|b}&gt; \\n &quot;c&quot;" in svg.replace("&#160;", " ")
