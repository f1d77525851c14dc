#!/usr/bin/env bash
# numba 0.68.0: a compiled function cannot read a field named `view`, of whatever type of object.
#
# A named tuple is the usual way to hand the state of a program to compiled functions, and its fields may have any
# name. But numba searches the code of each function for attributes named `view` before it knows any types, because
# `array.view` takes only NumPy's own dtypes there. It refuses such an attribute of everything else too, with advice that
# fits none of these: to wrap the tuple in `np.<dtype>()`.
#
# Who meets this: whoever compiles code with named tuples or classes whose field is a view of something. Any other name works.
#
# Output seen (Linux, Python 3.11):
#   seen: 5
#   view: TypingError: 'view' can only be called on NumPy dtypes, try wrapping the variable 'state' with 'np.<dtype>()'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numba==0.68.0" "numpy==2.4.0"
"$folder/venv/bin/python" - <<'PYTHON'
from collections import namedtuple

import numpy as np
from numba import njit
from numba.core.errors import TypingError

Seen, View = namedtuple("Seen", ["seen"]), namedtuple("View", ["view"])


@njit
def first_seen(state):
    return state.seen[0]


@njit
def first_view(state):
    return state.view[0]


print(f"seen: {first_seen(Seen(np.arange(5, 8)))}")
try:
    first_view(View(np.arange(5, 8)))
except TypingError as error:
    said = next(line for line in str(error).splitlines() if "view" in line)
    print(f"view: {type(error).__name__}: {said}")
    assert "wrapping the variable 'state'" in said, "the message has changed"
else:
    raise SystemExit("the behaviour has changed")
PYTHON
