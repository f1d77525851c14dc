"""Every mistake that the caller can correct, one class for each exit code of the command line.

A `CharlmError` says where it is, what is wrong, and how to correct it: three fields, one line. Any
other exception is a bug in charlm, keeps its traceback and exits with 1. Messages name arguments by
a `Setting`, since Python and the command line spell them differently.

>>> try:
...     charlm.load("runs/nothing")
... except charlm.errors.CharlmError as error:
...     print(error)
"""

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

# What torch and the libraries below it say when memory is refused, or threads, which need some. Each
# is a plain RuntimeError; oneDNN's names no cause at all.
_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|bad[ _]alloc|alloc_failed"
    r"|(can't|cannot|could not|unable to|failed to) allocate"
    r"|could not (create|execute) a primitive|unable to find an engine"
    r"|can't start new thread|thread creation failed|pthread_create"
    r"|resource temporarily unavailable",
    re.IGNORECASE,
)

# Characters at which Python, an editor or a terminal begins a new line.
_LINE_BREAKS = {ord(c): repr(c)[1:-1] for c in "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"}


@dataclass(frozen=True)
class Setting:
    """A function's parameter or a dotted configuration key, with its value if that matters."""

    name: str
    value: object = None

    def __str__(self) -> str:
        if self.value is None:
            return self.name
        return f"{self.name}={self.value if '.' in self.name else repr(self.value)}"


class Phrase:
    """Text that contains settings: `Phrase("use {} or {}", Setting(...), Setting(...))`."""

    def __init__(self, template: str, *parts: "Words") -> None:
        self.template = template
        self.parts = parts

    def __str__(self) -> str:
        return spelled(self, str)


Words = str | Path | Setting | Phrase
Spelling = Callable[[Setting], str]


def spelled(words: Words, spelling: Spelling) -> str:
    """Return the text with each setting spelled for its reader: Python or the command line."""
    if isinstance(words, Setting):
        return spelling(words)
    if isinstance(words, Phrase):
        return words.template.format(*(spelled(part, spelling) for part in words.parts))
    return str(words)


def number_of(count: float, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: `1 record`, `2,000 records`, `0.5 minutes`.

    plural: Of a noun whose plural is not made by an `s`.
    """
    shown = f"{count:,}" if isinstance(count, int) else f"{count:,.15g}"
    return f"{shown} {noun if count == 1 else plural or f'{noun}s'}"


@dataclass(frozen=True)
class Problem:
    """One mistake: the file, key or argument that has it, what is wrong, and how to correct it."""

    where: Words
    what: Words = ""
    mend: Words = ""

    def line(self, spelling: Spelling = str) -> str:
        """Return one line, `where: what; mend`, with line breaks in quoted text escaped."""
        where, what, mend = (spelled(p, spelling) for p in (self.where, self.what, self.mend))
        told = ": ".join(filter(None, (where, what)))
        return "; ".join(filter(None, (told, mend))).translate(_LINE_BREAKS)


class CharlmError(Exception):
    """A mistake the caller can correct; `where`, `what` and `mend` are those of its first problem.

    `problems` holds all of them, so that the caller can correct several at once.
    """

    exit_code = 1

    def __init__(self, where: Words, what: Words = "", mend: Words = "") -> None:
        super().__init__(where, what, mend)
        self.where, self.what, self.mend = where, what, mend
        self.problems: tuple[Problem, ...] = (Problem(where, what, mend),)

    @classmethod
    def of(cls, first: Problem, *others: Problem) -> Self:
        """Return one error for several problems."""
        error = cls(first.where, first.what, first.mend)
        error.problems = (first, *others)
        return error

    def replace(self, **fields: Any) -> Self:
        """Return the same error with other fields: where, what, mend."""
        return self.of(*(replace(problem, **fields) for problem in self.problems))

    def within(self, place: Words) -> Self:
        """Return the same error with a place in front of each `where`: a key, an expert."""

        def inside(problem: Problem) -> Problem:
            where = Phrase("{}: {}", place, problem.where) if problem.where else place
            return replace(problem, where=where)

        return self.of(*map(inside, self.problems))

    def lines(self, spelling: Spelling = str) -> list[str]:
        """Return a line for each problem."""
        return [problem.line(spelling) for problem in self.problems]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class UsageError(CharlmError):
    """A command, an argument or a configuration is wrong."""

    exit_code = 2


class DataError(CharlmError):
    """A text or a prompt cannot be used."""

    exit_code = 3


class CheckpointError(CharlmError):
    """A run folder or checkpoint is missing, damaged, or unsuitable for the request."""

    exit_code = 4


class MachineError(CharlmError):
    """The machine refused or lacks something: disk, permission, lock, device, memory, network."""

    exit_code = 5


class NonFiniteError(CharlmError):
    """The loss or a gradient became NaN or infinite; the weights were left as they were."""

    exit_code = 6


class Stopped(BaseException):
    """Work was stopped early on request: by a signal or a time limit.

    Not an `Exception`, like KeyboardInterrupt, so that no handler of failures catches it.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of Python, NumPy or torch means that memory was refused."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    refused = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return refused or isinstance(error, MemoryError)


def check_stop(should_stop: Callable[[], bool]) -> None:
    """Raise `Stopped` if asked to stop; long work calls it often."""
    if should_stop():
        raise Stopped
