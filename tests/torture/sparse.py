"""Train on a file of ids larger than any memory; print how much memory it took.

`python -m tests.torture.sparse FOLDER` trains on 100 GiB of ids there, then only reads, to see
whether that adds up. The file has holes instead of zeros, so it takes no disk.
"""

import json
import sys
import threading
from pathlib import Path

GIB = 1 << 30
SIZE = 100 * GIB
ALLOWED = 256 << 20  # bytes above what the imports took
READS = 20_000  # of windows, once training is over
GROWTH = 2 << 20  # bytes that these may add


def resident() -> int:
    """Return this process's memory in bytes: its own and that of files it maps."""
    fields = ("RssAnon:", "RssFile:")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(fields))


def main(folder: Path) -> None:
    """Train a little, and print the figures as JSON."""
    import resource

    import numpy as np
    import torch
    import torch._dynamo  # optimizers import it when first used

    from charlm.config import load_config
    from charlm.lifecycle.begin import create_run, prepare_text
    from charlm.models import build_model
    from charlm.text import Corpus
    from charlm.text.batches import window_starts
    from charlm.text.tokens import Split, TokenFile
    from charlm.training import Job, TrainingLoop
    from tests.torture.trials import begin

    torch.set_num_threads(1)
    assert torch._dynamo
    run = begin(folder, "modern, muon")
    config = load_config(str(folder / "config.yaml"), [f"data.source={folder / 'text.txt'}"])
    text = prepare_text(config, lambda *_: None, lambda *_: None)
    run.mkdir()
    prepared = create_run(config, run, text, lambda *_: None)
    path = folder / "ids.bin"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(SIZE - 4)
        file.write(bytes([1, 2, 3, 4]))
    tokens = TokenFile(path, np.dtype("u1"), SIZE)
    assert tokens.read(SIZE - 5, 5).tolist() == [0, 1, 2, 3, 4]
    train, rest = Split(tokens, 0, SIZE - 1000), Split(tokens, SIZE - 1000, SIZE)
    corpus = Corpus({"train": train, "val": rest, "test": Split(tokens, SIZE, SIZE)}, {})
    model = build_model(prepared.config.model, prepared.tokenizer.vocab_size, 0)

    baseline = peak = resident()
    resource.setrlimit(resource.RLIMIT_DATA, (_data() + ALLOWED, resource.RLIM_INFINITY))
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    job = Job(prepared.config, prepared.run, corpus, prepared.tokenizer, model)
    loop = TrainingLoop(job)
    steps = [record for record in loop.records() if record.kind == "train"]
    firsts = [
        int(first)
        for step in range(len(steps))
        for first in window_starts(0, step, 4, loop.learner.batches.windows)
    ]
    done.set()
    watcher.join()
    loop.learner.batches.get(len(steps))
    before = resident()
    for step in range(READS // 4):  # four windows in each
        loop.learner.batches.get(step)
    figures = {
        "bytes": path.stat().st_size,
        "disk_bytes": 512 * path.stat().st_blocks,
        "steps": len(steps),
        "beyond_4_gib": sum(first > 1 << 32 for first in firsts),
        "windows": len(firsts),
        "above_baseline_bytes": peak - baseline,
        "growth_bytes": resident() - before,
    }
    print(json.dumps(figures))


def _data() -> int:
    """Return the process's data segments in bytes, as RLIMIT_DATA counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
