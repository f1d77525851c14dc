"""metrics.jsonl: one JSON record per line, each training step once."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from charlm.errors import CheckpointError, MachineError, Phrase, Setting, Words, number_of
from charlm.storage.atomic import flush_folder, open_to_append, own_file
from charlm.storage.json_file import parse_object
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.regular import open_regular

BUFFERED = 1 << 13  # bytes of records to collect before a write
MAX_WAITING = 1 << 20  # bytes of records in memory before they are flushed
MAX_LINE = 1 << 26  # bytes of a record: a sample may be long

_AGAIN = Phrase("{} does this part again", Setting("resume", True))


class MetricsLog:
    """Append records to metrics.jsonl; a resumed run first removes those of steps it will repeat.

    Records stay in memory until they are known to be on the disk, so none is lost while the disk is
    temporarily full.

    The first `keep` bytes stay: the checkpoint that training resumes from refers to them. Raises the
    errors of `check_length`.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        with machine_errors(path):
            check_length(path, keep)
            self.file = open_to_append(path, keep)
            flush_folder(path.parent)  # it may be new there
        self.durable = keep  # bytes that are certainly on the disk
        self.waiting = bytearray()  # the bytes after them
        self.written = 0  # how many of these were handed to the system

    @property
    def length(self) -> int:
        """Bytes of all records."""
        return self.durable + len(self.waiting)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line; if the disk refuses, a later call writes it."""
        self.waiting += json.dumps(record).encode() + b"\n"
        if len(self.waiting) - self.written >= BUFFERED:
            with contextlib.suppress(OSError):
                self._write()
        if len(self.waiting) > MAX_WAITING:
            with contextlib.suppress(MachineError):
                self.flush()

    def flush(self) -> int:
        """Put all records on the disk; return the length of the file in bytes.

        MachineError if the disk or its permissions refuse; the next call tries again.
        """
        with machine_errors(self.path):
            self._write()
            try:
                os.fsync(self.file.fileno())
            except OSError:
                self.written = 0  # write again: data may be lost, and a second fsync may hide it
                raise
        self.durable += len(self.waiting)
        self.waiting.clear()
        self.written = 0
        return self.durable

    def cut(self, length: int) -> None:
        """Forget the records after `length` bytes; MachineError if the disk refuses."""
        del self.waiting[max(0, length - self.durable) :]
        self.durable = min(self.durable, length)
        self.written = min(self.written, len(self.waiting))
        with machine_errors(self.path):
            self._truncate()

    def close(self) -> None:
        """Write the rest if the disk permits (no checkpoint needs it), and close the file."""
        if not self.file.closed:
            with contextlib.suppress(OSError), self.file:
                self._write()

    def _write(self) -> None:
        """Hand the waiting records to the system."""
        self._truncate()  # a write may have stopped midway
        while self.written < len(self.waiting):
            self.written += self.file.write(self.waiting[self.written :])

    def _truncate(self) -> None:
        """Cut off what is not known to be written, in a file with no other name."""
        length = self.durable + self.written
        self.file = own_file(self.file, self.path, length)
        self.file.truncate(length)


class NoLog(MetricsLog):
    """Keeps nothing: the log of a process that does not write."""

    def __init__(self) -> None:
        pass

    def append(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def cut(self, length: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def check_length(path: Path, keep: int) -> None:
    """Check that a metrics.jsonl has the first `keep` bytes, which a checkpoint refers to.

    Raises:
        CheckpointError: It is shorter, no record ends there, or it is not a regular file.
        MachineError: The disk or its permissions refuse.
    """
    end = b""
    with machine_errors(path):
        if keep and not is_gone(path):
            with open_regular(path) as file:
                file.seek(keep - 1)
                end = file.read(1)
    if keep and end != b"\n":
        what = "not as its checkpoint says" if end else "shorter than its checkpoint says"
        raise CheckpointError(path, what, "restore it or start a new run")


def check_records(path: Path, keep: int) -> Words:
    """Read every record of a metrics.jsonl, check that each step occurs once, and describe it.

    Raise CheckpointError if it is damaged. A checkpoint refers to the first `keep` bytes; resuming
    repeats the steps after them.
    """
    lines = steps = last = read = 0
    try:
        for line in _lines(path):
            if not line.endswith(b"\n"):
                told = "{}; its last record is cut short: {} does it again"
                return Phrase(told, number_of(steps, "step"), Setting("resume", True))
            record = parse_object(line)
            if record["kind"] in ("train", "skip"):
                if record["step"] != last + 1:
                    raise ValueError(f"step {record['step']} follows step {last}")
                steps, last = steps + 1, record["step"]
            read += len(line)
            lines += 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = "restore it" if read < keep else _AGAIN
        raise CheckpointError(path, f"line {lines + 1}: {error}", mend) from None
    return f"{number_of(steps, 'step')}, each recorded once"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics.jsonl, or raise CheckpointError.

    An incomplete last line is skipped.
    """
    lines = 0
    try:
        for line in _lines(path):
            if line.endswith(b"\n"):
                yield parse_object(line)
            lines += 1
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        where = f"{path}:{lines + 1}"
        raise CheckpointError(where, f"not a record ({error})", "restore it") from None


def last_saved_step(path: Path) -> int | None:
    """Return the last step saved according to a metrics.jsonl, or None; damaged lines are skipped.

    A line that is too long ends the search. A save is recorded before it is made, so a save in the
    last record proves nothing.
    """
    step = saving = None
    with contextlib.suppress(OSError, CheckpointError, ValueError):
        for line in _lines(path):
            try:
                record = parse_object(line)
            except ValueError:
                continue
            step, saving = saving if saving is not None else step, None
            if record.get("kind") == "save":
                saving = record.get("step")
    return step


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a log; raise ValueError at one of more than `MAX_LINE` bytes."""
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:  # a sparse file may have many times more bytes than the disk
                raise ValueError(f"a record of more than {MAX_LINE:,} bytes")
            yield line
