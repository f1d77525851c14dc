#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy saves a transposed array with its numbers in the wrong places.
#
# `save` and `save_file` write the memory of an array as it lies, beside the shape of the array. The
# transpose of a matrix shares the matrix's memory, so the file has the new shape over the old order.
# Nothing is raised. The documentation asks for "contiguous and dense" tensors, and a transpose is
# both (column by column). Release 0.7.0 wrote the right numbers, and the PyTorch side of the same
# release refuses such a tensor.
#
# Who meets this: anyone who converts weights between formats that store a linear layer as (in, out)
# and as (out, in). A square matrix loads without complaint, and so does any other.
#
# Output seen (x86-64 Linux, Python 3.11, NumPy 2.4.6):
#   given          [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   0.7.0 returns  [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   0.8.0 returns  [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 0.7.0 0.8.0; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6" "safetensors==$version"
    "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import safetensors
from safetensors.numpy import load, save

given = np.arange(6.0).reshape(2, 3).T
returned = load(save({"weight": given}))["weight"]
wrong = safetensors.__version__ == "0.8.0"
if not wrong:
    print("given         ", given.tolist())
print(safetensors.__version__, "returns ", returned.tolist())
assert returned.shape == given.shape and given.flags.f_contiguous
assert np.array_equal(returned, given) != wrong, "the behaviour has changed"
PYTHON
done
