#!/usr/bin/env bash
# PyTorch 2.13.0: a node that joins an elastic launch later makes all of its torchruns fail.
#
# With --nnodes 1:2 and the c10d rendezvous, a second torchrun may join while the first trains alone.
# The first then stops its processes, and both meet in a new round. The joining one reads MASTER_ADDR
# and MASTER_PORT from the keys of that round. But the first wrote them under the keys of its own first
# round, and since it still has its store it does not write them again. So the joining torchrun waits
# until the store's time is up (read_timeout, 60 s) and ends with DistStoreError; the first, which waits
# for the roles of both, does the same, and the training is gone.
#
# Who meets this: anyone who adds a machine to a running job, or starts it again after it was lost; also
# whoever starts machines so slowly that the first round closes without the second (last_call_timeout,
# 30 s). Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for each torchrun: then each round writes its keys.
#
# Output seen (x86-64 Linux, Python 3.11, CPU build):
#   shared store: exit codes 1 and 1, DistStoreError in 2; world sizes 1
#   store not shared: exit codes 0 and 0, DistStoreError in 0; world sizes 1 2 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/worker.py" <<'PYTHON'
import os
import sys
import time

size = os.environ["WORLD_SIZE"]
with open(sys.argv[1], "a") as sizes:
    print(size, file=sizes)
time.sleep(300 if size == "1" else 0)  # alone it works until it is stopped
PYTHON
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

agent() { # its log, the file of sizes, the port
    OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --nnodes 1:2 \
        --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-id later \
        --rdzv-endpoint "127.0.0.1:$3" --local-addr 127.0.0.1 \
        --rdzv-conf last_call_timeout=1,read_timeout=8 "$folder/worker.py" "$2" > "$1" 2>&1
}

both() { # a name, the port: start one, and another when it works; print their exit codes
    first=0 second=0
    agent "$folder/$1.first" "$folder/$1.sizes" "$2" &
    for _ in $(seq 300); do [ -s "$folder/$1.sizes" ] && break; sleep 0.1; done
    agent "$folder/$1.second" "$folder/$1.sizes" "$2" || second=$?
    wait $! || first=$?
    failed=$(grep -l DistStoreError "$folder/$1.first" "$folder/$1.second" | wc -l)
    echo "exit codes $first and $second, DistStoreError in $((failed)); world sizes" $(sort "$folder/$1.sizes")
}

{
    echo "shared store: $(both shared "$port")"
    echo "store not shared: $(TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 both apart $((port + 1)))"
} | tee "$folder/said"
wanted=$'shared store: exit codes 1 and 1, DistStoreError in 2; world sizes 1
store not shared: exit codes 0 and 0, DistStoreError in 0; world sizes 1 2 2'
if [ "$(cat "$folder/said")" != "$wanted" ]; then
    echo "the behaviour has changed" >&2
    exit 1
fi
