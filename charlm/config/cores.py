"""Whether other programs keep this machine's cores busy, measured before torch is loaded."""

import os
import time
from pathlib import Path

LOOKS = 4  # at the list of running threads, so that a short-lived one is not taken for a busy one
BETWEEN = 0.01  # seconds
SPINS = "1000"  # what `charlm/__init__.py` sets; any other value is the user's


def cores_are_taken(running: Path = Path("/proc/loadavg")) -> bool:
    """Tell whether other programs leave this process fewer cores than it may use; False if unknown.

    Linux counts the threads that run or wait for a core, of the whole machine, this one included.
    """
    for look in range(LOOKS):
        if look:
            time.sleep(BETWEEN)
        try:
            others = int(running.read_text().split()[3].partition("/")[0]) - 1
        except (OSError, ValueError, IndexError):  # another system
            return False
        if others + own_cores() <= (os.cpu_count() or 1):
            return False
    return True


def own_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def let_waiting_threads_sleep() -> None:
    """Before torch is loaded: if cores are taken, its threads sleep at once where they wait.

    On free cores this costs a third of the speed, so it is not the default: see `charlm/__init__.py`.
    """
    if os.environ.get("GOMP_SPINCOUNT") == SPINS and cores_are_taken():
        os.environ["GOMP_SPINCOUNT"] = "0"
