"""The values of one column of a table: CSV, TSV and JSON Lines, row by row.

A value is text, with its line ends. A row that breaks the rules of its format is refused, with its
line: what a reader makes of it may not be what was meant.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import PurePath
from typing import Any, Literal

from charlm.config import DataConfig
from charlm.errors import DataError, Phrase, Setting, Words, number_of
from charlm.text.records import LONGEST
from charlm.text.sources import Source

Kind = Literal["csv", "tsv", "json", "parquet"]

SUFFIXES: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_PACKED = {".gz", ".bz2", ".xz", ".zst"}
_HEADER = 1 << 16  # characters of a line of names; more is no such line, and csv would refuse it
_MOST_NAMES = 12  # shown in an error

Value = str | None  # None: JSON's null, or a missing one


def table_kind(name: str) -> Kind | None:
    """Return what kind of table a file is by its name, also that of a compressed one."""
    path = PurePath(name)
    if path.suffix.lower() in _PACKED:
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix.lower())


def as_table_or_text(data: DataConfig, source: Source) -> DataConfig:
    """Return how to read another text than the one that `data` is for.

    If no part of it is a table, there is no column, and no header; what a record is stays.
    """
    if data.column is None or any(table_kind(part.label) for part in source.parts):
        return data
    return data.model_copy(update={"column": None, "skip_lines": 0})


class Column:
    """A column of a file.

    Args:
        name: Of the column, or its number from 1.
        file: The name of the file, for errors.
        skip_missing: Whether a row of JSON may lack the column; its value is None then.
    """

    def __init__(self, name: str | int, file: str, skip_missing: bool = False) -> None:
        self.name, self.file, self.skip_missing = name, file, skip_missing

    def values(self, texts: Iterable[str], kind: Kind, skip: int = 0) -> Iterator[Value]:
        """Yield the value of each row of a text in pieces, without its first `skip` lines.

        Raises DataError, with the line, for a column that is not there, a value that is no text, or
        a row that breaks the rules of the format.
        """
        if kind == "json":
            return self._of_json(islice(lines_of(texts, "\n", self.file), skip, None), skip)
        lines = islice(lines_of(texts, "", self.file), skip, None)
        if kind == "tsv":
            return self._of_csv(lines, "\t", skip)
        first = next(lines, "")
        return self._of_csv(chain([first], lines), self._delimiter(first), skip)

    def _delimiter(self, first: str) -> str:
        """Return what separates the values of a CSV file: spreadsheets of some countries write `;`."""
        for delimiter in ",;":
            if self.name in next(csv.reader([first[:_HEADER]], delimiter=delimiter), ()):
                return delimiter
        return ","

    def _of_csv(self, lines: Iterator[str], delimiter: str, skip: int) -> Iterator[Value]:
        place, width = -1, 0
        for line, row in self._csv_rows(lines, delimiter, skip):
            if not row:  # an empty line
                continue
            if place < 0:
                place, width = self.place_in(row, f"line {line}: "), len(row)
                if isinstance(self.name, str):  # these are the names
                    continue
            if len(row) != width:
                what = (
                    f"line {line}: {number_of(len(row), 'column')}, where the first row has {width}"
                )
                raise self.error(what, f"put a value that holds {delimiter!r} into quotes")
            yield row[place]

    def _csv_rows(
        self, lines: Iterator[str], delimiter: str, skip: int
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the first line of each row, counted from 1, and its values."""
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            first = skip + reader.line_num + 1
            before = csv.field_size_limit(LONGEST)  # of the process; 131,072 is the default
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._bad_row(str(error), first, skip + reader.line_num) from None
            finally:
                csv.field_size_limit(before)
            yield first, row

    def _bad_row(self, error: str, first: int, last: int) -> DataError:
        """Return the error for a row, which begins and breaks at these lines."""
        double = 'write "" for a quote inside of quotes'
        if "end of data" in error:
            return self.error(f"line {first}: a quote is never closed", f"close it, or {double}")
        if "limit" in error:
            what = f"line {first}: a value is longer than {LONGEST:,} characters"
            return self.error(what, "close its quote, or leave it out")
        return self.error(f"line {last}: {error}", double)

    def _of_json(self, lines: Iterator[str], skip: int) -> Iterator[Value]:
        first = 0  # the line of the first row that has the column
        for number, line in enumerate(lines, skip + 1):
            if not line.strip():
                continue
            where = f"line {number}: "
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                what = f"{where}no JSON ({str(error).partition(': line ')[0]})"
                raise self.error(what, "write one JSON object a line") from None
            if self._lacks(row):
                if not self.skip_missing:
                    raise self._missing_in_row(row, where, first)
                yield None
                continue
            first = first or number
            yield self._text(self._of_row(row, where), where)

    def _lacks(self, row: Any) -> bool:
        """Tell whether a JSON object or list has no such column."""
        if isinstance(row, dict):
            return str(self.name) not in row  # a name may be a number
        return isinstance(row, list) and isinstance(self.name, int) and self.name > len(row)

    def _missing_in_row(self, row: Any, where: str, first: int) -> DataError:
        """Return the error for a row that lacks the column, which line `first` has; 0: none before."""
        if not first:
            named = isinstance(row, dict)
            return self.missing(list(row), where) if named else self._too_few(row, where)
        what = f"{where}this row has no {self._quoted()}, which line {first} has"
        mend = Phrase("add it, or leave such rows out with {}", Setting("data.missing", "skip"))
        return self.error(what, mend)

    def _of_row(self, row: Any, where: str) -> Any:
        """Return a value of a JSON object, by its name, or of a list, by its number."""
        if isinstance(row, dict):
            return row[str(self.name)]
        if isinstance(row, list) and isinstance(self.name, int):
            return row[self.name - 1]
        if isinstance(row, list):
            mend = Phrase("give its number, such as {}", Setting("data.column", 1))
            raise self.error(f"{where}columns of a list have no names", mend)
        raise self.error(f"{where}holds {_shown(row)}", "write one JSON object a line")

    def _text(self, value: Any, where: str) -> Value:
        """Return a value that is text, or None; refuse another."""
        if value is None or isinstance(value, str):
            return value
        what = f"{where}{self.name!r} holds {_shown(value)}, which is no text"
        raise self.error(what, Phrase("name another {}", _COLUMN))

    def place_in(self, names: list[Any], where: str = "") -> int:
        """Return the place of the column in a row, from 0, or raise DataError."""
        if isinstance(self.name, int):
            if self.name > len(names):
                raise self._too_few(names, where)
            return self.name - 1
        if self.name not in names:
            raise self.missing(names, where)
        if (found := names.count(self.name)) > 1:
            what = f"{where}{found} columns are called {self.name!r}"
            number = Setting("data.column", names.index(self.name) + 1)
            mend = Phrase("give its number: {}, with {} for the names", number, _SKIP)
            raise self.error(what, mend)
        return names.index(self.name)

    def _too_few(self, names: list[Any], where: str) -> DataError:
        """Return the error for a row in which the number of the column is too large."""
        what = f"{where}there is no column {self.name}, only {number_of(len(names), 'column')}"
        return self.error(what, Phrase("lower {}", _COLUMN))

    def _quoted(self) -> str:
        return repr(self.name) if isinstance(self.name, str) else f"column {self.name}"

    def missing(self, names: list[Any], where: str = "") -> DataError:
        """Return the error for a column that is not among those with names."""
        return self.error(f"{where}there is no column {str(self.name)!r}", _choose(names))

    def error(self, what: str, mend: Words) -> DataError:
        """Return an error about the file."""
        return DataError(self.file, what, mend)


_COLUMN, _SKIP = Setting("data.column"), Setting("data.skip_lines", 1)


def names_of(texts: Iterable[str], kind: Kind, file: str) -> list[str]:
    """Return the names of the columns of a table that is no Parquet file; empty if it seems to have none.

    They are in the first line, or the first object of JSON. Raises the errors of `Column.values`.
    """
    lines = lines_of(texts, "\n" if kind == "json" else "", file)
    first = next(filter(str.strip, lines), "")[:_HEADER]
    if kind == "json":
        try:
            row = json.loads(first)
        except (ValueError, RecursionError):
            return []
        return list(row) if isinstance(row, dict) else []
    tabs = kind == "tsv"
    delimiter = "\t" if tabs else max(",;", key=first.count)
    names = next(csv.reader([first.rstrip("\r\n")], delimiter=delimiter), [])
    return names if len(names) > 1 or tabs else []


def lines_of(texts: Iterable[str], newline: str, file: str) -> Iterator[str]:
    r"""Yield the lines of a text in pieces, with their ends.

    newline: What ends a line: `\n`, or if empty, also `\r` and `\r\n`.

    Raises DataError for a line that is too long to hold in memory.
    """
    waiting: list[str] = []  # the beginning of a line
    length = 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if "\n" in text or ("\r" in text and not newline):
            lines = io.StringIO("".join(waiting), newline=newline).readlines()
            # A line that ends with \r may go on with \n.
            rest = "" if lines[-1].endswith("\n") else lines.pop()
            waiting, length = [rest], len(rest)
            yield from lines
        if length > LONGEST:
            what = f"a line is longer than {LONGEST:,} characters"
            raise DataError(file, what, "check that it is a table of lines")
    yield from io.StringIO("".join(waiting), newline=newline)


def _choose(names: list[Any]) -> Words:
    """Say which columns there are."""
    return Phrase("set {} to one of {}", _COLUMN, listed(names))


def listed(names: list[Any]) -> str:
    """Return the first names of columns, quoted, and how many more there are."""
    shown = ", ".join(map(_shown, names[:_MOST_NAMES]))
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return f"{shown}{more}"


def _shown(value: Any) -> str:
    """Quote a value for an error, as JSON, not too long."""
    quoted = json.dumps(value, ensure_ascii=False)
    return quoted if len(quoted) <= 40 else quoted[:37] + "..."
