"""Runs side by side, and what a text is worth without training."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charlm.config import changed, read_config
from charlm.evaluation import comparison
from charlm.evaluation.baselines import climb
from charlm.evaluation.ladder import Ladder
from charlm.evaluation.protocols import Name
from charlm.evaluation.score import Score
from charlm.library.overrides import as_changes
from charlm.library.run import Run, open_run
from charlm.library.texts import Text, as_source
from charlm.text import encode_corpus, open_source, scan_text
from charlm.text.parts import check_scored


@dataclass(frozen=True)
class Compared:
    """A run and its score; `text` is equal for runs whose scores can be compared."""

    run: Run
    step: int
    score: Score
    text: tuple[object, ...]


def compare(
    runs: Iterable[str | Path | Run],
    protocol: Name = "windows",
    *,
    split: str = "val",
    block_size: int | None = None,
    device: str = "auto",
) -> list[Compared]:
    """Score runs by one protocol, each at its best checkpoint; the best comes first.

    >>> for one in charlm.compare(["runs/gpt", "runs/bigram"]):
    ...     print(one.run.path, one.score.loss_nats)

    Args:
        runs: Runs, or their folders.
        protocol: `windows`, `sliding`, `stream` or `adaptive`; runs that do not support it are left out.
        split: `val` or `test`.
        block_size: Characters in a window. None: the most that all support.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UsageError: No run supports the protocol.
        CheckpointError, DataError: A run has no sound checkpoint, or no such part of a text.
    """
    rows = [comparison.open_run(open_run(run).folder, split, device) for run in runs]
    comparison.join_units(rows)
    length = block_size or comparison.common_length([row.saved.model for row in rows])
    comparison.cut(rows, [protocol], length)
    comparison.score(rows, device)
    ranked = sorted(
        (row for row in rows if protocol in row.scores), key=lambda row: row.loss(protocol)
    )
    return [
        Compared(Run(row.saved.run), row.saved.step, row.scores[protocol], row.text)
        for row in ranked
    ]


def baselines(text: Text, *, block_size: int | None = None, **data: Any) -> Ladder:
    """Score the end of a text by n-grams and compressors, which need no training.

    >>> charlm.baselines("to be or not to be " * 99).loss_nats("unigram")

    Args:
        text: The text, the path of a file or folder, or records.
        block_size: Score n-grams in windows of this length; None: with all context.
        data: Keys of the section `data` of a configuration, such as `val_fraction=0.2`.

    Raises:
        UsageError: A key is wrong.
        DataError: The text cannot be read, or is too short.
    """
    with as_source(text) as source, tempfile.TemporaryDirectory(prefix="charlm-") as scratch:
        whole = read_config(b"model: {type: bigram}", "")
        read = changed(whole, [*source, *as_changes({"data": data})], "baselines").data
        found = open_source(read.source)
        scan = scan_text(found, read)
        check_scored(scan.size, scan.bounds(read), read)
        tokenizer = scan.tokenizer(read)
        corpus = encode_corpus(found, read, scan, tokenizer, Path(scratch) / "tokens")
        parts = corpus.splits
        return climb(parts["train"], parts["val"], tokenizer, block_size=block_size)
