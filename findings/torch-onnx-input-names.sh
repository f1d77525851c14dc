#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2: torch.onnx.export(input_names=["view"]) can write an invalid graph.
#
# A name of an input is put into the graph as it is, without a look at the names that the exporter itself
# gives to values: those are the names of torch's operations (view, add, slice, mean, ...), with numbers
# where one is used twice. If both meet, the graph has two values of one name. The export succeeds; ONNX's
# checker and ONNX Runtime refuse the file. A name with a dot or a capital letter is safe.
#
# Who meets this: anyone who names an input after what it is (view, mean, index, where, split, ...), for a
# model that happens to use the operation of that name.
#
# Output seen (x86-64 Linux, Python 3.11, onnx 1.23.2):
#   input seen   valid
#   input view   Graph must be in single static assignment (SSA) form, however 'view' has been used ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" \
    "onnx==1.23.2" "onnxscript==0.7.2"
cd "$folder"
venv/bin/python -W ignore - 2>/dev/null <<'PYTHON'
import onnx
import torch


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.view(-1) + 1


def verdict(name):
    example = (torch.zeros(2, 3),)
    program = torch.onnx.export(Flat().eval(), example, input_names=[name], verbose=False)
    try:
        onnx.checker.check_model(program.model_proto)
    except onnx.checker.ValidationError as error:
        return str(error).partition(" as output names")[0] + " ..."
    return "valid"


print("input seen  ", verdict("seen"))
print("input view  ", found := verdict("view"))
assert verdict("seen") == "valid", "the behaviour has changed"
assert "single static assignment" in found, "the behaviour has changed"
PYTHON
