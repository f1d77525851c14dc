#!/usr/bin/env bash
# torch 2.13.0: torch.export.export, and so torch.onnx.export, takes one tensor that is given twice as an
# example for one input. The graph reads the last of its inputs for all of them; nothing says so.
#
# Example inputs only show shapes and types, so one tensor of zeros seems to do for several inputs of one
# shape, such as the keys and the values of an attention layer that has read nothing yet. In the graph of
# a - b, both operands then are b: its result is 0 for whatever a and b it is called with. Equal tensors
# that are different objects are right.
#
# Who meets this: anyone who exports a model with a state, whose first state is the same zeros many times.
# Comparing the graph with the model on the example inputs shows no difference.
#
# Output seen (x86-64 Linux, Python 3.11):
#   examples zeros, zeros of their own  sub(a, b)  3 - 1 = 2.0
#   the same zeros twice                sub(b, b)  3 - 1 = 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
import torch


class Difference(torch.nn.Module):
    def forward(self, a, b):
        return a - b


def graph_of(*examples):
    program = torch.export.export(Difference(), examples)
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")
    result = program.module()(torch.tensor([3.0]), torch.tensor([1.0])).item()
    return f"sub({', '.join(arg.name for arg in node.args)})  3 - 1 = {result}"


zeros = torch.zeros(1)
apart, twice = graph_of(zeros, torch.zeros(1)), graph_of(zeros, zeros)
print("examples zeros, zeros of their own ", apart)
print("the same zeros twice               ", twice)
assert apart == "sub(a, b)  3 - 1 = 2.0", "the behaviour has changed"
assert twice == "sub(b, b)  3 - 1 = 0.0", "the behaviour has changed"
PYTHON
