"""Encoding a text and drawing batches from it."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benches.common import (
    AsJson,
    Corpus,
    Rounds,
    in_turn,
    loop_of,
    ratio,
    report,
    seconds,
    text_of,
    write_text,
)


def data(corpus: Corpus = "python-docs", rounds: Rounds = 7, as_json: AsJson = False) -> None:
    """Time encoding and batches against nanoGPT's: a list of look-ups, slices of a memory map."""
    import torch

    from charlm.text import Batches, CharTokenizer

    text = text_of(corpus)
    tokenizer = CharTokenizer(text)
    numbers = {character: i for i, character in enumerate(sorted(set(text)))}
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        loop = loop_of(Path(scratch) / "run", "gpt", corpus)
        batches: Batches = loop.learner.batches
        path = Path(scratch) / "train.bin"
        tokenizer.encode(text).astype(np.uint16).tofile(path)
        size, length = batches.batch_size, batches.block_size

        def nanogpt_batch() -> None:
            ids = np.memmap(path, dtype=np.uint16, mode="r")
            starts = torch.randint(len(ids) - length, (size,)).tolist()
            for shift in (0, 1):
                rows = [ids[i + shift : i + shift + length].astype(np.int64) for i in starts]
                torch.stack([torch.from_numpy(row) for row in rows])

        times = in_turn(
            {
                "encode": lambda: seconds(lambda: tokenizer.encode(text)),
                "encode by look-ups": lambda: seconds(lambda: [numbers[c] for c in text]),
                "batches": lambda: seconds(lambda: [batches.get(i) for i in range(200)]),
                "batches of slices": lambda: seconds(lambda: [nanogpt_batch() for _ in range(200)]),
            },
            rounds,
        )
    chars = {"encode": len(text), "batches": 200 * size * length}
    figures = {}
    for name, count in chars.items():
        own, theirs = (values for key, values in times.items() if key.startswith(name))
        figures[f"{name} (million characters/s)"] = count / statistics.median(own) / 1e6
        figures[f"{name}: ratio of time to nanoGPT's way"] = ratio(own, theirs)
    report(figures, as_json)


def large(
    gib: Annotated[float, typer.Option(min=0.25, help="Size of the text.")] = 5.0,
    rounds: Rounds = 2,
    as_json: AsJson = False,
) -> None:
    """Time the encoding of a large text by one process, and by one on each core, in turn.

    The ids have to be the same bytes.
    """
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        folder = Path(scratch)
        write_text(folder / "text.txt", round(gib * 1024))
        counts = {"1 process": 1, f"{len(cores)} processes": len(cores)}
        times: dict[str, list[float]] = {name: [] for name in counts}
        hashes = set()
        for i in range(rounds):  # without one to warm up: the text has just been written
            for name in list(counts)[:: 1 if i % 2 else -1]:
                os.sync()
                seconds_taken, sha256 = _encoded(folder, cores[: counts[name]])
                times[name].append(seconds_taken)
                hashes.add(sha256)
    one, several = counts
    report(
        {f"{name} (s)": statistics.median(times[name]) for name in counts}
        | {f"{several}, times as fast": ratio(times[one], times[several])}
        | {"equal ids": str(len(hashes) == 1)},
        as_json,
    )


def _encoded(folder: Path, cores: list[int]) -> tuple[float, str]:
    """Count and encode text.txt on these cores; return the seconds and the SHA-256 of the ids."""
    program = (
        "import os, sys, time; from pathlib import Path; os.sched_setaffinity(0, map(int, sys.argv[1:])); "
        "from charlm.config import DataConfig; from charlm.storage import read_manifest; "
        "from charlm.text import encode_corpus, open_source, scan_text; "
        "began = time.perf_counter(); data = DataConfig(source='text.txt'); source = open_source(data.source); "
        "scan = scan_text(source, data); ids = Path('ids'); "
        "encode_corpus(source, data, scan, scan.tokenizer(data), ids); "
        "print(time.perf_counter() - began, read_manifest(ids)['files']['ids.bin']['sha256'])"
    )
    command = [sys.executable, "-c", program, *map(str, cores)]
    out = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    shutil.rmtree(folder / "ids")
    taken, sha256 = out.split()
    return float(taken), sha256
