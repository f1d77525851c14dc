"""The output of charlm score: a line for each text, of JSON, of columns, or of a table to be read."""

import json
import math
import sys
from collections.abc import Iterator
from typing import Any, Literal

from charlm.cli import output
from charlm.cli.escaping import one_word
from charlm.evaluation.each import TextScore
from charlm.text.raw import for_json

_TSV = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


Form = Literal["json", "tsv", "table"]


class Lines:
    """Writes scores to stdout, a line each; above those of a table stands what they are."""

    def __init__(self, form: Form, unit: str, ranked: bool) -> None:
        self.line = {"json": _as_json, "tsv": _as_tsv, "table": _as_row}[form]
        self.unit = unit
        self.out = output.TextOut(unit)
        self._above = _titles(unit, ranked) if form == "table" else ""

    def write(self, scores: Iterator[tuple[int | None, TextScore]]) -> None:
        """Write some scores, each with its rank or None, at once."""
        lines = "".join(self.line(rank, one, self.unit) for rank, one in scores)
        if lines:
            self.out.write(self._above + lines)
            self._above = ""


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


def _titles(unit: str, ranked: bool) -> str:
    rank, each = f"{'rank':>8}  " if ranked else "", f"bits/{output.one(unit)[:4]}"
    return f"{rank}{'nats':>10}  {each:>9}  {output.units(unit):>10}  {'unknown':>7}  text\n"


def _as_row(rank: int | None, one: TextScore, unit: str) -> str:
    place = "" if rank is None else f"{rank:>8}  "
    numbers = f"{one.nats:>10.2f}  {one.bits_per_char:>9.3f}  {one.chars:>10}  {one.unknown:>7}"
    return output.cut(f"{place}{numbers}  {one_word(one.text)}", sys.stdout) + "\n"
