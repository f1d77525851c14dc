#!/usr/bin/env bash
# PyTorch 2.13.0 with GNU's OpenMP: beside one busy process, small parallel operations take ten times as long.
#
# A thread that has finished its part of an operation waits for the others by spinning, by default for
# 300,000 turns: some 15 ms on CPUs with a slow `pause`. With as many threads as cores and one other
# busy process, the thread that the others wait for is often the one that has no core, and the spinning
# ones keep the scheduler from giving it theirs. One would expect the loss of one core in two; a
# training step of a small GPT took 1.3 to 8 s instead of 0.09. With GOMP_SPINCOUNT=0 or
# OMP_WAIT_POLICY=PASSIVE threads sleep instead, which costs a third of the speed on free cores.
#
# Who meets this: anyone who trains on a CPU beside a browser, a build or another run, with the Linux
# wheels from PyPI, whose torch brings libgomp with it. The variable is read when torch is loaded.
#
# Output seen (x86-64 Linux, two cores with other programs besides, Python 3.11, CPU build):
#   spinning (default)       376.4 ms a pass
#   GOMP_SPINCOUNT=0         5.0 ms a pass
set -euo pipefail
folder=$(mktemp -d)
busy=""
trap '[ -z "$busy" ] || kill "$busy"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/pass.py" <<'PYTHON'
import os
import time
from statistics import median

cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
import torch

x = torch.randn(768, 256)
taken = []
ends = time.perf_counter() + 8
while len(taken) < 3 or time.perf_counter() < ends:
    started = time.perf_counter()
    for _ in range(100):
        torch.nn.functional.gelu(x)
    taken.append(time.perf_counter() - started)
print(round(1000 * median(taken), 1))
PYTHON
first=$(python3 -c 'import os; print(",".join(map(str, sorted(os.sched_getaffinity(0))[:2])))')
taskset --cpu-list "$first" sh -c 'while :; do :; done' &
busy=$!
unset OMP_WAIT_POLICY GOMP_SPINCOUNT OMP_NUM_THREADS
spun=$("$folder/venv/bin/python" "$folder/pass.py")
slept=$(GOMP_SPINCOUNT=0 "$folder/venv/bin/python" "$folder/pass.py")
printf '%-24s %s ms a pass\n' "spinning (default)" "$spun" "GOMP_SPINCOUNT=0" "$slept"
python3 -c "assert $spun > 3 * $slept, 'the behaviour has changed'"
