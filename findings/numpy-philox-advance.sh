#!/usr/bin/env bash
# NumPy 2.4.6: Philox.advance(1) skips four draws, not one, and drops the draws that are left over.
#
# The documentation of `advance` says "Number of draws to advance the RNG". PCG64 does that: after
# `advance(1)` it goes on at its second word. Philox computes four 64-bit words from each value of
# its counter, and `advance` adds to the counter. So word n of a stream is not at `advance(n)`:
# it is word n % 4 after `advance(n // 4)`. Even `advance(0)` moves on, by what is left of a block.
#
# Who meets this: anyone who computes batch k of a training run from (seed, k) with a counter-based
# generator. Reading the stream in pieces repeats nothing and looks random, and is another stream.
#
# Output seen (x86-64 Linux, Python 3.11):
#   PCG64  advance(1) goes on at word 1
#   Philox advance(1) goes on at word 4
#   Philox one draw, then advance(0) goes on at word 4
#   Philox one draw, then advance(1) goes on at word 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
from numpy.random import PCG64, Philox


def goes_on_at(kind, drawn, delta):
    stream = kind(1).random_raw(16).tolist()
    generator = kind(1)
    for _ in range(drawn):
        generator.random_raw()
    return stream.index(generator.advance(delta).random_raw())


seen = [goes_on_at(PCG64, 0, 1), goes_on_at(Philox, 0, 1), goes_on_at(Philox, 1, 0), goes_on_at(Philox, 1, 1)]
print(f"PCG64  advance(1) goes on at word {seen[0]}")
print(f"Philox advance(1) goes on at word {seen[1]}")
print(f"Philox one draw, then advance(0) goes on at word {seen[2]}")
print(f"Philox one draw, then advance(1) goes on at word {seen[3]}")
assert seen == [1, 4, 4, 8], "the behaviour has changed"
PYTHON
