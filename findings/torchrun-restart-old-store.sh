#!/usr/bin/env bash
# PyTorch 2.13.0: processes that torchrun starts again find the keys of those before them in the store.
#
# With --max-restarts, torchrun ends all processes of a group when one of them fails, and starts them
# again. `rendezvous("env://")`, which init_process_group uses too, then connects to the same store at
# the same port. The source says that "we create a new TCPStore for every retry so no need to add
# prefix for each attempt"; but torchrun keeps one server for all attempts. So a key that was set
# before the restart is there after it, and a counter goes on where it was.
#
# Who meets this: anyone who lets processes find each other through the store, or counts arrivals in
# it: after a restart they read the addresses, or the number, of processes that are gone. Give each
# start a name of its own, and prefix keys with it (TORCHELASTIC_RESTART_COUNT, on one machine).
#
# Output seen (x86-64 Linux, Python 3.11, CPU build):
#   start 0: processes that have come: 1
#   start 1: processes that have come: 2
#   start 2: processes that have come: 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/worker.py" <<'PYTHON'
import os
import sys
from datetime import timedelta

from torch.distributed.rendezvous import rendezvous

start = os.environ["TORCHELASTIC_RESTART_COUNT"]
store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=60)))
with open(sys.argv[1], "a") as said:
    print(f"start {start}: processes that have come: {store.add('come', 1)}", file=said)
sys.exit(start != "2")  # the first two starts fail
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --standalone \
    --nproc-per-node 1 --max-restarts 2 "$folder/worker.py" "$folder/said" 2> "$folder/log"
cat "$folder/said"
wanted=$'start 0: processes that have come: 1\nstart 1: processes that have come: 2\nstart 2: processes that have come: 3'
if [ "$(cat "$folder/said")" != "$wanted" ]; then
    echo "the behaviour has changed" >&2
    exit 1
fi
