#!/usr/bin/env bash
# PyTorch 2.13.0: three elastic nodes do not survive the loss of the one with rank 0, though two are enough.
#
# With --nnodes 2:3 and the c10d rendezvous, the processes of all nodes meet in a store that the node of
# rank 0 holds, not the one of --rdzv-endpoint. When that node is lost, the others meet again in a new
# round. The one that becomes rank 0 makes a new store. But the third still has the address of the old one,
# and hands it to its processes. So each waits for the other until its time is up, in each start again, and
# when --max-restarts is used up all is gone. With two nodes, one of which is lost, it works.
#
# Who meets this: anyone who trains on three nodes or more and counts on elastic restarts. Set
# TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for each torchrun: then each round has a store and an address of its own.
#
# Output seen (x86-64 Linux, Python 3.11, CPU build):
#   shared store: exit codes 1 and 1; world sizes 3 3 3
#   store not shared: exit codes 0 and 0; world sizes 2 2 3 3 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/worker.py" <<'PYTHON'
import os
import sys
import time
from datetime import timedelta

import torch.distributed as dist

dist.init_process_group("gloo", timeout=timedelta(seconds=15))
with open(sys.argv[1], "a") as started:
    print(os.environ["WORLD_SIZE"], os.environ["RANK"], os.getpid(), file=started)
while os.environ["WORLD_SIZE"] == "3":  # until one is gone
    dist.barrier()
    time.sleep(0.1)
PYTHON
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

agent() { # its address, its log, the list of started workers, the port
    OMP_NUM_THREADS=1 exec "$folder/venv/bin/python" -m torch.distributed.run --nnodes 2:3 \
        --nproc-per-node 1 --max-restarts 2 --rdzv-backend c10d --rdzv-id three --local-addr "$1" \
        --rdzv-endpoint "127.0.0.1:$4" \
        --rdzv-conf last_call_timeout=3,read_timeout=15,keep_alive_interval=1,keep_alive_max_attempt=3 \
        "$folder/worker.py" "$3" > "$2" 2>&1
}

three() { # a name, the port: start three, kill the one with rank 0, and print what becomes of the others
    started="$folder/$1.started"
    touch "$started"
    agent 127.0.0.2 "$folder/$1.endpoint" "$started" "$2" & endpoint=$!
    sleep 2
    agent 127.0.0.3 "$folder/$1.third" "$started" "$2" & third=$!
    agent 127.0.0.1 "$folder/$1.first" "$started" "$2" & first=$! # the lowest address has rank 0
    for _ in $(seq 600); do [ "$(grep -c '^3' "$started")" = 3 ] && break; sleep 0.1; done
    kill -9 "$first" "$(awk '$1 == 3 && $2 == 0 { print $3 }' "$started")"
    one=0 other=0
    wait "$endpoint" || one=$?
    wait "$third" || other=$?
    echo "exit codes $one and $other; world sizes" $(cut -d ' ' -f 1 "$started" | sort)
}

{
    echo "shared store: $(three shared "$port" 2> "$folder/killed")"
    echo "store not shared: $(TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 three apart $((port + 1)) 2> "$folder/killed")"
} | tee "$folder/said"
wanted=$'shared store: exit codes 1 and 1; world sizes 3 3 3
store not shared: exit codes 0 and 0; world sizes 2 2 3 3 3'
if [ "$(cat "$folder/said")" != "$wanted" ]; then
    echo "the behaviour has changed" >&2
    exit 1
fi
