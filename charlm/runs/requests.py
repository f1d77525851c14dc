"""Asking a run that another process trains to save: through a file in its folder.

torchrun passes on no signal that asks to save, and the process that trains may be on another machine.
"""

import time

from charlm.errors import MachineError, UsageError
from charlm.runs.folder import RunFolder
from charlm.storage import machine_errors, write_file
from charlm.storage.lock import is_locked
from charlm.storage.machine import is_gone

LOOK = 0.05  # seconds between two looks at the file


def take_request(run: RunFolder) -> bool:
    """Tell whether a run was asked to save; true once for each request.

    A request that cannot be taken away is not seen: it would be seen again after each step.
    """
    path = run.request_path
    if is_gone(path):
        return False
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def ask_to_save(run: RunFolder, seconds: float) -> bool:
    """Ask a run to save after its current step; tell whether it took the request within so long.

    Raises:
        UsageError: It is not being trained.
        MachineError: The disk or its permissions refuse.
    """
    if not is_locked(run.path):
        raise UsageError(run.path, "is not being trained", "what it has is saved")
    write_file(run.request_path, b"")
    ends = time.monotonic() + seconds
    while not is_gone(run.request_path):
        if time.monotonic() > ends:
            return False
        if not is_locked(run.path):
            _withdraw(run)
            raise MachineError(run.path, "ended meanwhile", "unless it was killed, it saved first")
        time.sleep(LOOK)
    return True


def _withdraw(run: RunFolder) -> None:
    with machine_errors(run.request_path):
        run.request_path.unlink(missing_ok=True)
