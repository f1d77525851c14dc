"""Errors of the operating system, with advice."""

import contextlib
import errno
import getpass
import os
from collections.abc import Iterator
from pathlib import Path

from charlm.errors import MachineError


@contextlib.contextmanager
def machine_errors(path: Path | str) -> Iterator[None]:
    """Turn an OSError about `path` (permission, space, a failing disk) into a MachineError."""
    try:
        yield
    except OSError as error:
        at = error.filename or path
        match error.errno:
            case errno.EACCES | errno.EPERM:
                mend = f"user {_user()} may not; change its permissions or choose another place"
            case errno.ENOSPC | errno.EDQUOT:
                mend = "free some space there or choose another place"
            case errno.EROFS:
                mend = "the disk is read-only; choose another place"
            case _:
                mend = "check the path and the disk"
        raise MachineError(str(at), error.strerror or str(error), mend) from error


def _user() -> str:
    try:
        return repr(getpass.getuser())
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())


def is_gone(path: Path) -> bool:
    """Tell whether there is nothing at `path`; if that cannot be found out, assume there is."""
    try:
        path.lstat()
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    return False
