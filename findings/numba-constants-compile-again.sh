#!/usr/bin/env bash
# numba 0.68.0: a compiled function is compiled once more for each constant that another one passes to it.
#
# Called from Python, a function is compiled once for each combination of types, and 1 and 2 are both int64. Called from
# compiled code with a constant, the argument has the type of that very number: `Literal[int](1)`. So one function that
# takes a mode or a size as a constant is compiled, optimised and cached as often as there are constants, a second each
# for a parallel loop, also if it never uses the number at compile time. A number in a named tuple has the type int64.
#
# Who meets this: whoever passes constants between compiled functions and wonders what takes so long at the first call.
#
# Output seen (Linux, Python 3.11):
#   from Python: int64
#   constants: int64, Literal[int](1), Literal[int](2), Literal[int](3)
#   in a tuple: Step(int64 x 1)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numba==0.68.0" "numpy==2.4.0"
"$folder/venv/bin/python" - <<'PYTHON'
from collections import namedtuple

import numpy as np
from numba import njit

Step = namedtuple("Step", ["size"])


@njit
def add(x, k):
    x[0] += k


@njit
def add_step(x, step):
    x[0] += step.size


@njit
def with_constants(x):
    add(x, 1)
    add(x, 2)
    add(x, 3)


@njit
def with_tuples(x, steps):
    for step in steps:
        add_step(x, step)


def compiled(function):
    return ", ".join(str(signature[1]) for signature in function.signatures)


x = np.zeros(1)
for k in (1, 2, 3):
    add(x, k)
print(f"from Python: {compiled(add)}")
assert compiled(add) == "int64"
with_constants(x)
print(f"constants: {compiled(add)}")
with_tuples(x, (Step(1), Step(2), Step(3)))
print(f"in a tuple: {compiled(add_step)}")
assert compiled(add_step) == "Step(int64 x 1)"
assert len(add.signatures) == 4, "the behaviour has changed"
PYTHON
