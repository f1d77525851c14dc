"""The output of charlm novelty: tables, which a terminal's width shortens, and JSON."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from charlm.cli import output
from charlm.cli.escaping import one_word
from charlm.errors import number_of
from charlm.evaluation.novelty import LONG, QUANTILES, Measured, Novelty
from charlm.text.raw import for_json

HELD_OUT = "held-out part"
EXAMPLES = 6  # in a table; in JSON, of each row

Numbers = npt.NDArray[np.int64]
Cells = list[str]


class Row(NamedTuple):
    """Texts to measure, and what they are."""

    name: str
    texts: Sequence[str]
    facts: dict[str, Any]  # for JSON


class Shown:
    """What was measured, as tables, remarks or JSON."""

    def __init__(self, rows: Sequence[Row], measured: Measured, unit: str) -> None:
        self.rows = list(zip(rows, measured.sets, strict=True))
        self.candidates, self.unit = measured.candidates, unit
        self.of_records = measured.candidates is not None

    def tables(self) -> Iterator[list[str]]:
        """Yield the lines of each table."""
        spans = [_titles("copied span", most=True)]
        spans += [_numbers(one.spans, most=True) for _, one in self.rows]
        first = [["", "texts", "in training", "repeats", *_titles("distance")]]
        first += [
            [
                one_word(row.name),
                f"{len(one.texts):,}",
                _found(one),
                _percent(one.repeats),
                *_numbers(one.distances),
            ]
            for row, one in self.rows
        ]
        if not self.of_records:
            first = [
                [*cells[:2], cells[3], *more] for cells, more in zip(first, spans, strict=True)
            ]
        yield _aligned(first)
        if any(one.copied for _, one in self.rows):
            if self.of_records:
                names = [["", "long texts"]]
                names += [[one_word(row.name), f"{len(one.long):,}"] for row, one in self.rows]
                yield _aligned([a + b for a, b in zip(names, spans, strict=True)])
            yield self._spans()
        if examples := self._examples():
            yield examples

    def _spans(self) -> list[str]:
        """Return the longest span of each row."""
        cells = [["", "the longest copied span"]]
        for row, one in self.rows:
            cells.append([one_word(row.name), one_word(one.longest_span(self.unit))])
        return list(output.aligned(cells, right=(), shorten=(1, 0)))

    def _examples(self) -> list[str]:
        """Return new samples that are close to a training record."""
        drawn = [(row, one) for row, one in self.rows if row.name != HELD_OUT]
        each = max(1, EXAMPLES // max(1, len(drawn)))
        cells = [
            [
                one_word(example.text),
                one_word(example.nearest),
                str(example.distance),
                one_word(row.name),
            ]
            for row, one in drawn
            for example in one.examples(each)
        ]
        titles = ["new", "nearest in training", "distance", ""]
        if not cells:
            return []
        return list(output.aligned([titles, *cells], right=(2,), shorten=((0, 1), 3)))

    def remarks(self) -> Iterator[str]:
        """Yield what one must know to read the tables."""
        symbols = output.units(self.unit)
        if self.candidates is not None:
            compared, of = self.candidates.compared, self.candidates.of
            records = number_of(of, "training record")
            yield f"in training: share of texts that are one of the {records}"
            among = "them" if compared == of else f"{compared:,} of them, spread evenly"
            yield f"distance: {symbols} to change to get the nearest of {among}; mean and quantiles"
        if any(one.copied for _, one in self.rows):
            of_long = f" of more than {LONG} {symbols}" if self.candidates is not None else ""
            yield f"copied span: the most {symbols} in a row of a text{of_long} that also stand in training"

    def as_json(self) -> dict[str, Any]:
        """Return all that was measured."""
        records = self.candidates and {
            "records": self.candidates.of,
            "compared": self.candidates.compared,
        }
        return {"training": records, "rows": [self._row(*pair) for pair in self.rows]}

    def _row(self, row: Row, one: Novelty) -> dict[str, Any]:
        found = {"texts": len(one.texts), **row.facts, "repeats": one.repeats}
        if self.of_records:
            found["in_training"] = None if one.found is None else float(one.found.mean())
            found["distance"] = _summary(one.distances)
            found["examples"] = [
                {
                    **for_json("text", e.text),
                    **for_json("nearest", e.nearest),
                    "distance": e.distance,
                }
                for e in one.examples(EXAMPLES)
            ]
        found["long_texts"] = len(one.long)
        found["copied_span"] = _summary(one.spans)
        return found | for_json("longest_span", one.longest_span(self.unit))


def _summary(numbers: Numbers | None) -> dict[str, float] | None:
    """Return the mean, the quantiles and the largest of some numbers; None for none."""
    if numbers is None:
        return None
    at = np.quantile(numbers, QUANTILES, method="inverted_cdf").tolist()
    names = [f"q{100 * q:.0f}" for q in QUANTILES]
    return {
        "mean": float(numbers.mean()),
        **dict(zip(names, at, strict=True)),
        "most": int(numbers.max()),
    }


def _titles(name: str, most: bool = False) -> Cells:
    """Return the titles of the cells of `_numbers`."""
    return [name, *(f"{100 * q:.0f} %" for q in QUANTILES), *(["most"] if most else [])]


def _numbers(numbers: Numbers | None, most: bool = False) -> Cells:
    """Return a mean, quantiles and perhaps the largest of some numbers."""
    summary = _summary(numbers)
    if summary is None:
        return ["-"] * (1 + len(QUANTILES) + most)
    mean, *others = summary.values()
    return [f"{mean:.2f}", *(f"{n:,.0f}" for n in (others if most else others[:-1]))]


def _found(one: Novelty) -> str:
    return "-" if one.found is None else _percent(float(one.found.mean()))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _aligned(rows: Sequence[Cells]) -> list[str]:
    return list(output.aligned(rows, right=range(1, len(rows[0])), shorten=(0,)))
