"""A text to train on, as Python has it: a string, a path, or any number of records."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from charlm.errors import CharlmError, DataError, Phrase, Problem, Setting, UsageError, Words

TEXT = "text"  # the parameter
Text = str | Path | Iterable[str]


@contextmanager
def as_source(text: Text | None) -> Iterator[list[str]]:
    """Give the changes of a configuration that read a text, as KEY=VALUE.

    A string is the text itself, and a path names its file or folder. Anything else is a list of
    records. A string and records are written to a temporary file, which is there while the context is: a run
    has its own copy, and errors that would name the file name the `text`. None: the text that the
    configuration names.

    Raises:
        UsageError: A record is no string, or a string names a file.
        DataError: There is no record.
    """
    if text is None or isinstance(text, Path):
        yield [] if text is None else [f"data.source={text}"]
        return
    if isinstance(text, str):
        _refuse_a_name(text)
    with tempfile.TemporaryDirectory(prefix="charlm-") as folder:
        path = Path(folder) / ("text" if isinstance(text, str) else "records.jsonl")
        changes = [f"data.source={path}"]
        if isinstance(text, str):
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            _write_records(text, path)
            changes += ["data.column=text", "data.records=lines"]
        try:
            yield changes
        except CharlmError as error:
            raise _naming_the_text(error, str(path)) from None


def _refuse_a_name(text: str) -> None:
    """Raise UsageError for a string that is the path of a file."""
    with suppress(OSError, ValueError):  # too long for a path, or with a NUL
        if Path(text).is_file():
            what = "a string is the text itself, and this one names a file"
            raise UsageError(Setting(TEXT, text), what, f"give pathlib.Path({text!r})")


def _naming_the_text(error: CharlmError, path: str) -> CharlmError:
    """Return an error that names the caller's text instead of a file of ours."""

    def named(words: Words) -> Words:
        if isinstance(words, Setting):
            return replace(words, value=TEXT) if words.value == path else words
        if isinstance(words, Phrase):
            return Phrase(words.template.replace(path, TEXT), *map(named, words.parts))
        return str(words).replace(path, TEXT)

    return type(error).of(
        *(Problem(named(one.where), named(one.what), named(one.mend)) for one in error.problems)
    )


def _write_records(records: Iterable[str], path: Path) -> None:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, record in enumerate(records, 1):
            if not isinstance(record, str):
                what = f"record {count} is {type(record).__name__}, not a string"
                raise UsageError(TEXT, what, "give strings, or a path")
            file.write(json.dumps({"text": record}) + "\n")
    if not count:
        raise DataError(TEXT, "has no records", "give at least three")
