#!/usr/bin/env bash
# PyTorch 2.13.0: nn.Module.to("meta") unties tied weights; to(dtype) and to(other devices) keep them.
#
# A language model often uses one matrix as embedding and as output head. Moving a module replaces the
# data of each parameter in place, so both names still mean one parameter. A meta tensor cannot take
# the place of another tensor's data, so each name gets a parameter of its own, and the tie is gone.
#
# Who meets this: anyone who moves a model to "meta" to free its memory and then counts parameters, or
# who fills it again with to_empty() and loads a state dict: the head then trains apart from the table.
#
# Output seen (x86-64 Linux, Python 3.11, CPU build):
#   built         tied, 650 parameters
#   to(float64)   tied, 650 parameters
#   to("meta")    two parameters, 1300 parameters
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(65, 10)
        self.head = nn.Linear(10, 65, bias=False)
        self.head.weight = self.embedding.weight


def described(model):
    tied = model.head.weight is model.embedding.weight
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{'tied' if tied else 'two parameters'}, {count} parameters"


seen = [described(Tied()), described(Tied().to(torch.float64)), described(Tied().to("meta"))]
for name, line in zip(("built", "to(float64)", 'to("meta")'), seen, strict=True):
    print(f"{name:<13} {line}")
assert seen == ["tied, 650 parameters"] * 2 + ["two parameters, 1300 parameters"], "the behaviour has changed"
PYTHON
