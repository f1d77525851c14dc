"""Encoding a text and drawing batches from it."""

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benches.common import AsJson, Corpus, Rounds, in_turn, loop_of, ratio, report, seconds, text_of


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
