"""Every mistake that charlm answers, one class for each exit code.

A `CharlmError` is something the user can mend, and its text says what is wrong, where, and how to
mend it, in one line. The command line prints it and exits with its code; any other exception is a
bug of ours, keeps its traceback and exits with 1.

    CharlmError
      UsageError        2   a command, an option, a configuration
      DataError         3   a text, a prompt
      CheckpointError   4   a run folder or checkpoint that is missing, damaged or does not fit
      MachineError      5   disk, permission, lock, device, memory, network
      NonFiniteError    6   the loss or a gradient became NaN or infinite
"""

# Where Python, an editor or a terminal begins a new line.
_LINE_BREAKS = {ord(c): repr(c)[1:-1] for c in "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"}


class CharlmError(Exception):
    """A mistake the user can mend.

    Args:
        problems: What is wrong, one line each: line breaks in what they quote are escaped. Several
            at once spare the user a trip for each.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(problem.translate(_LINE_BREAKS) for problem in problems)
        super().__init__("\n".join(self.problems))


class UsageError(CharlmError):
    """A command, an option or a configuration is wrong."""

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
