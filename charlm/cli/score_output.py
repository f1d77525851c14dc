"""The output of charlm score: a line for each text, of JSON or of columns."""

import json
import math
from collections.abc import Iterator
from typing import Any

from charlm.cli import output
from charlm.evaluation.each import TextScore
from charlm.text.raw import for_json

_TSV = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Lines:
    """Writes scores to stdout, a line each."""

    def __init__(self, tsv: bool, unit: str) -> None:
        self.line = _as_tsv if tsv else _as_json
        self.unit = unit
        self.out = output.TextOut(unit)

    def write(self, scores: Iterator[tuple[int | None, TextScore]]) -> None:
        """Write some scores, each with its rank or None, at once."""
        self.out.write("".join(self.line(rank, one, self.unit) for rank, one in scores))


def _as_json(rank: int | None, one: TextScore, unit: str) -> str:
    fields: dict[str, Any] = {} if rank is None else {"rank": rank}
    fields["nats"] = _number(one.nats)
    fields[f"bits_per_{unit.removesuffix('s')}"] = _number(one.bits_per_char)
    fields["chars"], fields["unknown"] = one.chars, one.unknown
    return json.dumps(fields | for_json("text", one.text)) + "\n"


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None  # JSON has no infinity


def _as_tsv(rank: int | None, one: TextScore, unit: str) -> str:
    place = "" if rank is None else f"{rank}\t"
    numbers = f"{one.nats:.6f}\t{one.bits_per_char:.6f}\t{one.chars}\t{one.unknown}"
    return f"{place}{numbers}\t{one.text.translate(_TSV)}\n"
