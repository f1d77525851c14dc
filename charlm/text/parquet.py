"""The values of a column of a Parquet file, some rows at a time. It needs the package pyarrow."""

from collections.abc import Iterator
from typing import Any

from charlm.errors import DataError, MachineError, Phrase, Setting
from charlm.text.columns import Column, Value

ROWS = 512  # read at a time; one may hold a whole page of text
_BUFFER = 1 << 20  # bytes of a column that are read at a time


def parquet_values(column: Column, file: Any) -> Iterator[Value]:
    """Yield the value of each row of an open file, which is read by `read`, `seek` and `tell`.

    Raises:
        DataError: The file is damaged, or has no such column, or the column holds no text.
        MachineError: pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        what = "not read: the package pyarrow is missing"
        raise MachineError(column.file, what, "pip install 'charlm[parquet]'") from None
    try:
        # Otherwise it would hold all of the column in a group of rows, which may be the whole file.
        opened = pyarrow.PythonFile(file, mode="r")
        table = parquet.ParquetFile(opened, pre_buffer=False, buffer_size=_BUFFER)
        name = _text_column(column, table.schema_arrow)
        for batch in table.iter_batches(ROWS, columns=[name], use_threads=False):
            yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = f"damaged, or no Parquet file ({str(error).partition('. ')[0]})"
        raise DataError(column.file, what, "get a sound copy") from None


def parquet_names(file: Any) -> list[str]:
    """Return the names of the columns of an open file; empty if it is damaged, or pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet

        file.seek(0)
        names = parquet.read_schema(pyarrow.PythonFile(file, mode="r")).names
    except (ImportError, OSError, ValueError, NotImplementedError):  # as pyarrow raises them
        return []
    return list(map(str, names))


def _text_column(column: Column, schema: Any) -> str:
    """Return the name of the column, or raise DataError if it is not there or holds no text."""
    from pyarrow import types

    field = schema.field(column.place_in(schema.names))
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        what = f"column {field.name!r} holds values of type {field.type}, which are no text"
        raise column.error(what, Phrase("name another {}", Setting("data.column")))
    return str(field.name)
