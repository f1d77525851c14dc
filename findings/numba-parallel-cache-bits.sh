#!/usr/bin/env bash
# numba 0.68.1: a parallel kernel that a process has just compiled returns other bits than the same
# kernel, on the same machine with the same threads, loaded from numba's cache.
#
# With `parallel=True`, the body of a `prange` loop is compiled and optimised on its own, and the
# process that compiles it runs that code. The cache gets a copy that was linked into the caller
# and optimised once more. Where sums may be reassociated, the second pass can choose another order.
# So the first process to use a kernel differs in the last bits from all later ones. Whether it does
# depends on the kernel and its flags: this sum differs with {"reassoc", "nsz"}, and not with
# {"contract"} or with all flags; larger kernels have differed with {"reassoc", "nsz", "contract"}.
#
# Who meets this: anyone who promises that a program gives the same bits twice, for instance that
# training which is stopped and resumed equals training in one go. Compiling in a process of its own,
# so that whoever computes has loaded its code, is a way round.
#
# Output seen (x86-64 Linux with AVX-512, Python 3.11); each process prints a hash of its result:
#   reassoc: 2 results of 3 processes: 00f18e0f562cd210 f08fa2644d1ce9b0 f08fa2644d1ce9b0
#   contract: 1 results of 3 processes: bc7d27121da65e68 bc7d27121da65e68 bc7d27121da65e68
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numba==0.68.1" "numpy==2.4.6" 2>/dev/null
cat >"$folder/kernels.py" <<'PYTHON'
import hashlib
import sys

import numpy as np
from numba import njit, prange


def norms(x, out):
    for row in prange(x.shape[0]):
        total = np.float32(0)
        for i in range(x.shape[1]):
            total += x[row, i] * x[row, i]
        out[row] = total


flags = {"reassoc": {"reassoc", "nsz"}, "contract": {"contract"}}[sys.argv[1]]
run = njit(parallel=True, cache=True, fastmath=flags)(norms)
x = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
out = np.empty(512, np.float32)
run(x, out)
print(hashlib.sha256(out.tobytes()).hexdigest()[:16])
PYTHON
declare -A count
for flags in reassoc contract; do
    results=()
    for _ in 1 2 3; do
        results+=("$(NUMBA_CACHE_DIR=$folder/$flags "$folder/venv/bin/python" "$folder/kernels.py" $flags)")
    done
    count[$flags]=$(printf '%s\n' "${results[@]}" | sort -u | wc -l)
    echo "$flags: ${count[$flags]} results of 3 processes: ${results[*]}"
    [ "${results[1]}" = "${results[2]}" ] || { echo "the behaviour has changed"; exit 1; }
done
[ "${count[reassoc]}" = 2 ] && [ "${count[contract]}" = 1 ] || { echo "the behaviour has changed"; exit 1; }
