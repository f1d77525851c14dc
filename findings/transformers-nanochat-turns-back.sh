#!/usr/bin/env bash
# transformers 5.24.0: NanoChatForCausalLM turns queries and keys the other way round than Llama.
#
# Rotary positions turn each pair (x[i], x[i + D/2]) of a head by an angle that grows with the position.
# Nearly all models of this library share one helper for it. NanoChat's helper has the same name and the
# same arguments, but the angle has the opposite sign. A model that is trained with it learns just as well.
# Weights from elsewhere load without a word, and their attention is wrong. If the two halves of each
# head's rows of the query and key matrices change places, both agree.
#
# Who meets this: anyone who writes the weights of a GPT with RMSNorm, normalised queries and keys, and
# squared ReLU (NanoChat is the only class for these) in that form.
#
# Output seen (x86-64 Linux, Python 3.11, torch 2.13.0, CPU):
#   a score at a distance of 3, head of one pair     Llama 0.141  NanoChat -0.141
#   queries of Llama, and of NanoChat                differ
#   the same with the halves of each head swapped    equal
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "transformers==5.24.0" "torch==2.13.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama
from transformers.models.nanochat.modeling_nanochat import apply_rotary_pos_emb as nanochat

size, time = 8, 6
speeds = 10_000.0 ** (-torch.arange(size // 2) * 2 / size)
angles = torch.outer(torch.arange(time), speeds).repeat(1, 2)[None]
cos, sin = angles.cos(), angles.sin()


def swapped(x):
    return torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)


# A query (1, 0) at position 3 and a key (0, 1) at position 0: the score is minus or plus the sine.
query, key = torch.zeros(2, 1, 1, time, 2)
query[..., 3, 0], key[..., 0, 1] = 1, 1
pair = angles[..., ::4]  # of the fastest pair
scores = {}
for name, turn in (("Llama", llama), ("NanoChat", nanochat)):
    q, k = turn(query, key, pair.cos(), pair.sin())
    scores[name] = float(q[0, 0, 3] @ k[0, 0, 0])
told = "  ".join(f"{name} {score:.3f}" for name, score in scores.items())
print(f"a score at a distance of 3, head of one pair     {told}")

x = torch.randn(1, 2, time, size, generator=torch.Generator().manual_seed(0))
ours, theirs = llama(x, x, cos, sin)[0], nanochat(x, x, cos, sin)[0]
turned = swapped(nanochat(swapped(x), swapped(x), cos, sin)[0])
differ, equal = not torch.allclose(ours, theirs, atol=0.1), torch.allclose(ours, turned, atol=1e-6)
print(f"queries of Llama, and of NanoChat                {'differ' if differ else 'equal'}")
print(f"the same with the halves of each head swapped    {'equal' if equal else 'differ'}")
assert differ and equal, "the behaviour has changed"
PYTHON
