"""Every mistake that charlm answers, one class for each exit code.

A `CharlmError` is something the caller can mend. It says where it is, what is wrong, and how to
mend it: three fields, one line. The command line prints that line and exits with the class's code;
any other exception is a bug of ours, keeps its traceback and exits with 1.

    CharlmError
      UsageError        2   a command, an argument, a configuration
      DataError         3   a text, a prompt
      CheckpointError   4   a run folder or checkpoint that is missing, damaged or does not fit
      MachineError      5   disk, permission, lock, device, memory, network
      NonFiniteError    6   the loss or a gradient became NaN or infinite

An argument that a message names is a `Setting`: `unknown="nearest"` to a Python caller,
`--unknown nearest` on the command line, which passes its own way of spelling it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

# Where Python, an editor or a terminal begins a new line.
_LINE_BREAKS = {ord(c): repr(c)[1:-1] for c in "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"}


@dataclass(frozen=True)
class Setting:
    """An argument that a message names, with its value if that matters.

    Args:
        name: Of a parameter of the Python functions, or the dotted key of a configuration.
        value: What to set it to, or what it was set to; None leaves it out.
    """

    name: str
    value: object = None

    def __str__(self) -> str:
        if self.value is None:
            return self.name
        quoted = str(self.value) if "." in self.name else repr(self.value)
        return f"{self.name}={quoted}"


class Phrase:
    """Words with settings in them: `Phrase("use {} or {}", Setting(...), Setting(...))`.

    Args:
        template: With `{}` for each part, as `str.format` has it.
        parts: What to fill in: settings, and other words that may hold braces.
    """

    def __init__(self, template: str, *parts: "Words") -> None:
        self.template = template
        self.parts = parts

    @property
    def settings(self) -> list[Setting]:
        """The settings among its parts."""
        return [part for part in self.parts if isinstance(part, Setting)]

    def __str__(self) -> str:
        return spelled(self, str)


Words = str | Path | Setting | Phrase
Spelling = Callable[[Setting], str]


def spelled(words: Words, spelling: Spelling) -> str:
    """Return words with each setting in them spelled for those who will read it."""
    if isinstance(words, Setting):
        return spelling(words)
    if isinstance(words, Phrase):
        return words.template.format(*(spelled(part, spelling) for part in words.parts))
    return str(words)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        where: The file, key or argument it is in.
        what: What is wrong with it.
        mend: How to mend it.
    """

    where: Words
    what: Words = ""
    mend: Words = ""

    def line(self, spelling: Spelling = str) -> str:
        """Return it as one line: `where: what; mend`. Line breaks in what it quotes are escaped."""
        where, what, mend = (spelled(p, spelling) for p in (self.where, self.what, self.mend))
        told = ": ".join(filter(None, (where, what)))
        return "; ".join(filter(None, (told, mend))).translate(_LINE_BREAKS)


class CharlmError(Exception):
    """A mistake the caller can mend.

    Args:
        where: The file, key or argument it is in.
        what: What is wrong with it.
        mend: How to mend it.

    Attributes:
        problems: All that is wrong: several at once spare the caller a trip for each.
    """

    exit_code = 1

    def __init__(self, where: Words, what: Words = "", mend: Words = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(where, what, mend),)
        super().__init__(where, what, mend)

    @classmethod
    def of(cls, *problems: Problem) -> Self:
        """Return one error for several problems, at least one."""
        error = cls("")
        error.problems = problems
        return error

    @property
    def where(self) -> Words:
        """The place of the first problem."""
        return self.problems[0].where

    @property
    def what(self) -> Words:
        """What the first problem is."""
        return self.problems[0].what

    @property
    def mend(self) -> Words:
        """How to mend the first problem."""
        return self.problems[0].mend

    def replace(self, **fields: Any) -> Self:
        """Return the same error with other fields: where, what, mend."""
        return type(self).of(*(replace(problem, **fields) for problem in self.problems))

    def within(self, place: Words) -> Self:
        """Return the same error as found in a place: a key, an expert."""
        return type(self).of(
            *(
                replace(problem, where=Phrase("{}: {}", place, problem.where))
                for problem in self.problems
            )
        )

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
    """A run folder or checkpoint is missing, damaged, or does not fit what is asked of it."""

    exit_code = 4


class MachineError(CharlmError):
    """The machine does not give what is needed: disk, permission, lock, device, memory, network."""

    exit_code = 5


class NonFiniteError(CharlmError):
    """The loss or a gradient became NaN or infinite; the weights were left as they were."""

    exit_code = 6


class Stopped(BaseException):
    """Work was left undone because someone asked for that: a signal, or the time is over.

    Like KeyboardInterrupt no `Exception`: nothing that answers failures is to answer this.
    """


def check_stop(should_stop: Callable[[], bool]) -> None:
    """Raise `Stopped` if asked to stop; long work calls it often."""
    if should_stop():
        raise Stopped
