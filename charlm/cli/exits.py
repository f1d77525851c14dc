"""How a command ends: which mistake an error stands for, and streams that refuse to be written.

Each error becomes an exit code and one line on stderr, and nothing follows that line: the
interpreter must not try again, as it shuts down, to write what a stream has refused.
"""

import contextlib
import errno
import os
import sys

from charlm.errors import CharlmError, MachineError, is_out_of_memory

_FULL = {errno.ENOSPC, errno.EDQUOT}


def mistake_of(error: Exception) -> CharlmError | None:
    """Return the mistake that an error stands for; None for a bug of ours."""
    if isinstance(error, CharlmError):
        return error
    if is_out_of_memory(error):
        mend = "free some, raise its limit, or use a smaller model or batch"
        return MachineError("", "out of memory", mend)
    if isinstance(error, OSError):
        unnamed = "standard output" + " or a temporary file" * flush_stdout()
        mend = "check the path, its permissions and the disk"
        if error.errno in _FULL:
            mend = "free some space there or choose another place"
        return MachineError(str(error.filename or unnamed), error.strerror or str(error), mend)
    return None


def flush_stdout() -> bool:
    """Write what waits for stdout; if that is refused, drop it and return False."""
    try:
        sys.stdout.flush()
    except OSError:
        silence_stdout()
        return False
    return True


def silence_stdout() -> None:
    """Let the rest of stdout go nowhere: the interpreter would complain about it at the end."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
