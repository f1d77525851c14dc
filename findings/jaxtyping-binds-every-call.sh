#!/usr/bin/env bash
# jaxtyping 0.3.11: its import hook slows every function, also those without an array in their signature.
#
# `install_import_hook(package, "beartype.beartype")` puts two layers around each function of a package. beartype's
# costs next to nothing. jaxtyping's binds the arguments to the signature by `inspect`, in every call, so that a
# dimension has one size in all of them; it does so where no parameter names a dimension, too. One would expect
# a function of plain types to get beartype's layer only.
#
# Who meets this: test suites that check shapes with `pytest --jaxtyping-packages`. For packages without shapes,
# `beartype.claw.beartype_packages` checks the same types.
#
# Output seen (Linux, Python 3.11):
#   a call of a function of two integers: 17 times as long with jaxtyping's hook as with beartype alone
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jaxtyping==0.3.11" "beartype==0.23.1"
cd "$folder"
printf 'def add(a: int, b: int) -> int:\n    return a + b\n' >plain.py
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

from beartype import beartype
from jaxtyping import install_import_hook

sys.path.insert(0, ".")
import plain

alone = beartype(plain.add)
del sys.modules["plain"]
with install_import_hook("plain", "beartype.beartype"):
    from plain import add as hooked


def seconds(call):
    took = []
    for _ in range(20):
        since = time.process_time()
        for _ in range(2_000):
            call(1, 2)
        took.append(time.process_time() - since)
    return min(took)


times = seconds(hooked) / seconds(alone)
print(f"a call of a function of two integers: {times:.0f} times as long with jaxtyping's hook as with beartype alone")
assert times > 5, "the behaviour has changed"
PYTHON
