"""A text to train on, as Python has it: a string, a path, or any number of records."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from charlm.errors import DataError, UsageError

Text = str | Path | Iterable[str]


@contextmanager
def as_source(text: Text | None) -> Iterator[list[str]]:
    """Give the changes of a configuration that read a text, as KEY=VALUE.

    A string is the text itself, and a path names its file or folder. Anything else is a list of
    records. A string and records are written to a temporary file, which is there while the context is: a run
    has its own copy. None: the text that the configuration names.

    Raises:
        UsageError: A record is no string.
        DataError: There is no record.
    """
    if text is None or isinstance(text, Path):
        yield [] if text is None else [f"data.source={text}"]
        return
    with tempfile.TemporaryDirectory(prefix="charlm-") as folder:
        if isinstance(text, str):
            path = Path(folder) / "text"
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            yield [f"data.source={path}"]
            return
        path = Path(folder) / "records.jsonl"
        _write_records(text, path)
        yield [
            f"data.source={path}",
            "data.column=text",
            "data.records=lines",
        ]


def _write_records(records: Iterable[str], path: Path) -> None:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, record in enumerate(records, 1):
            if not isinstance(record, str):
                what = f"record {count} is {type(record).__name__}, not a string"
                raise UsageError("text", what, "give strings, or a path")
            file.write(json.dumps({"text": record}) + "\n")
    if not count:
        raise DataError("text", "has no records", "give at least three")
