"""The log of a run as a table for other programs: one row for each step, numbers only.

pandas reads it as it is, and so do the importers of Weights & Biases and trackio: a column `step`, and
one for each metric.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from charlm.errors import CheckpointError
from charlm.runs.metrics import read_metrics

# What a record of a kind holds, and the columns of these numbers.
OF_KINDS = {
    "train": {
        "loss_nats": "train_loss_nats",
        "learning_rate": "learning_rate",
        "grad_norm": "grad_norm",
        "chars_per_second": "chars_per_second",
    },
    "eval": {"loss_nats": "val_loss_nats"},
}
COLUMNS = ("step", "seconds", *(name for names in OF_KINDS.values() for name in names.values()))

Format = Literal["csv", "jsonl"]
Row = dict[str, Any]


@runtime_checkable
class Writable(Protocol):
    """An open text file."""

    def write(self, text: str, /) -> object:
        """Write a text."""


def rows(log: Path) -> Iterator[Row]:
    """Yield the steps of a metrics.jsonl in order, with an evaluation in the row of its step.

    `seconds` is the wall time of the run when all numbers of a row were known. Raises CheckpointError
    if the log is damaged.
    """
    row: Row = {}
    for number, record in enumerate(read_metrics(log), 1):
        try:
            names = OF_KINDS.get(record["kind"], {})
            found = {name: record[key] for key, name in names.items() if key in record}
            if not found:
                continue
            if row and row["step"] != record["step"]:
                yield row
                row = {}
            row |= {"step": record["step"], "seconds": record["seconds"], **found}
        except (KeyError, TypeError) as error:
            what = f"not a record of charlm ({type(error).__name__}: {error})"
            raise CheckpointError(f"{log}:{number}", what, "restore it") from None
    if row:
        yield row


def export(log: Path, form: Format, out: Writable) -> int:
    """Write the steps of a metrics.jsonl to a file, and return how many there are.

    As CSV with a header, or as JSON Lines; a number that a step does not have is left empty, or out.
    """
    count = 0
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    if form == "csv":
        writer.writeheader()
    for row in rows(log):
        count += 1
        if form == "csv":
            writer.writerow(row)
        else:
            ordered = {name: row[name] for name in COLUMNS if name in row}
            out.write(json.dumps(ordered) + "\n")
    return count
