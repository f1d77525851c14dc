"""What is done with each stretch of a large text: its symbols are counted, then it is encoded.

A job does one task after another. What it is made of, its tasks and its results can be written as
JSON, since it may be in another process. Each task has a stretch, and may have `count_lines`: see
`read_stretch` for that and for the errors.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from charlm.config import DataConfig
from charlm.storage import machine_errors
from charlm.storage.atomic import flush_file
from charlm.text.escapes import IdWriter
from charlm.text.reading import gathered
from charlm.text.sources import changed_meanwhile
from charlm.text.stretches import Span, read_stretch
from charlm.text.tokenizer import load_tokenizer
from charlm.text.tokens import id_dtype

Result = dict[str, Any]  # of what JSON has
Spans = Sequence[Sequence[Any]]  # a stretch that may have come through JSON

_CHUNK = 1 << 20


class Counting:
    """Counts the symbols of stretches, and hashes their content.

    Args:
        data: The section of a configuration.
        several: Whether the text has several files.
    """

    def __init__(self, data: Mapping[str, Any], several: bool) -> None:
        self.data, self.several = DataConfig.model_validate(data), several

    def __call__(self, stretch: Spans, *, count_lines: bool = False) -> Result:
        """Return how many symbols there are, how many of each kind, and the SHA-256 of the content."""
        digest = hashlib.sha256()
        counts = np.zeros(1, np.int64)  # as long as the largest code so far: short for most texts
        for symbols in gathered(
            read_stretch(
                [Span(*span) for span in stretch],
                self.data,
                self.several,
                digest.update,
                count_lines=count_lines,
            )
        ):
            found = np.bincount(symbols, minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
        codes = np.flatnonzero(counts)
        return {
            "size": int(counts.sum()),
            "sha256": digest.hexdigest(),
            "codes": codes.tolist(),
            "counts": counts[codes].tolist(),
        }


class Encoding:
    """Writes the ids of each stretch into their place in one file, and its escapes into a file beside it.

    Args:
        data: The section of a configuration.
        several: Whether the text has several files.
        tokenizer: A file.
        strange: The characters of the text that the tokenizer lacks.
        ids: The file of ids, which is as long as it will be.
    """

    def __init__(
        self, data: Mapping[str, Any], several: bool, tokenizer: str, strange: str, ids: str
    ) -> None:
        self.data, self.several = DataConfig.model_validate(data), several
        self.tokenizer, self.strange = load_tokenizer(Path(tokenizer)), strange
        self.ids = Path(ids)
        self.width = id_dtype(self.tokenizer.vocab_size).itemsize

    def __call__(
        self,
        stretch: Spans,
        *,
        count_lines: bool = False,
        number: int,
        start: int,
        size: int,
        sha256: str,
        kept: str | None = None,
    ) -> Result:
        """Write the ids of a stretch durably, and return the SHA-256 of what was written.

        Args:
            stretch: What to encode.
            count_lines: See `read_stretch`.
            number: Of the stretch in the text.
            start: The place of its first id.
            size: How many ids it has.
            sha256: Of its content.
            kept: What this returned before a kill: if it still fits, nothing is written.

        Raises DataError if the content has changed.
        """
        rare = escapes_of(self.ids, number) if self.tokenizer.escape is not None else None
        there = rare is None or rare.is_file()
        if kept and there and kept == self._written(start, size, rare):
            return {"sha256": kept}
        content, digest = hashlib.sha256(), hashlib.sha256()
        spans = [Span(*span) for span in stretch]
        with machine_errors(self.ids), ExitStack() as files:
            file = files.enter_context(self.ids.open("r+b"))
            file.seek(start * self.width)
            escapes = files.enter_context(rare.open("wb")) if rare else None
            writer = IdWriter(_Hashed(file, digest.update), self.tokenizer, self.strange, escapes)
            writer.size = start
            table = writer.table()
            for symbols in gathered(
                read_stretch(
                    spans, self.data, self.several, content.update, count_lines=count_lines
                )
            ):
                if writer.size + len(symbols) > start + size:
                    raise changed_meanwhile(spans[0].path)
                writer.write(table.take(symbols))
        if content.hexdigest() != sha256:
            raise changed_meanwhile(spans[0].path)
        with machine_errors(self.ids):
            flush_file(self.ids)
            if rare:
                flush_file(rare)
                digest.update(rare.read_bytes())
        return {"sha256": digest.hexdigest()}

    def _written(self, start: int, size: int, rare: Path | None) -> str:
        """Return the SHA-256 of what stands in the place of a stretch."""
        digest = hashlib.sha256()
        with machine_errors(self.ids):
            hash_ids(self.ids, start * self.width, size * self.width, digest.update)
            if rare:
                digest.update(rare.read_bytes())
        return digest.hexdigest()


JOBS = {"count": Counting, "encode": Encoding}


class _Hashed:
    """A file to write to, whose content is hashed."""

    def __init__(self, file: IO[bytes], update: Callable[[memoryview | bytes], object]) -> None:
        self._file, self._update = file, update

    def write(self, data: memoryview, /) -> None:
        """Write bytes."""
        self._file.write(data)
        self._update(data)


def escapes_of(ids: Path, number: int) -> Path:
    """Return the file beside that of all ids which holds the escapes of one stretch."""
    return ids.with_name(f"escapes-{number}.bin")


def hash_ids(
    path: Path, offset: int, length: int, update: Callable[[memoryview | bytes], object]
) -> None:
    """Pass bytes of a file to the `update` of a hash, or raise OSError."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length and (chunk := file.read(min(length, _CHUNK))):
            update(chunk)
            length -= len(chunk)
