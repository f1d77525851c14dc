"""How much memory this process may use, and bytes as readable text."""

import contextlib
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from charlm.errors import MachineError

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

ADDRESSES = "ulimit -v"  # counts reserved addresses, not only what is used
SEGMENTS = "ulimit -d"
LEAST_BYTES = 256 << 20  # measured: Python, NumPy and torch take 190 MB, and 600 MB of addresses
LEAST_ADDRESSES = 1 << 30


def check_room() -> None:
    """Raise MachineError if not even torch fits in memory: importing it would crash."""
    for limit, name in memory_limits():
        least = LEAST_ADDRESSES if name == ADDRESSES else LEAST_BYTES
        if limit < least:
            what = f"this process may use {human_bytes(limit)} ({name})"
            needs = f", and needs {human_bytes(least)} before loading a model"
            raise MachineError("memory", what + needs, "raise the limit")


def machine_bytes() -> int:
    """Return the most memory that this process may use, in bytes."""
    return min([physical_bytes(), *(limit for limit, _ in memory_limits())])


def physical_bytes() -> int:
    """Return the machine's physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limits(root: Path = Path("/")) -> list[tuple[int, str]]:
    """Return the memory limits of this process, each in bytes and with its name.

    Containers and batch systems set limits of control groups (cgroup v1 and v2); the shell sets
    those of `ulimit -v` and `ulimit -d`. `root` holds `proc` and `sys`.
    """
    kinds = {"RLIMIT_AS": ADDRESSES, "RLIMIT_DATA": SEGMENTS} if resource else {}
    limits = [(resource.getrlimit(getattr(resource, kind))[0], n) for kind, n in kinds.items()]
    own = [(limit, name) for limit, name in limits if limit != resource.RLIM_INFINITY]
    return [*_group_limits(root), *own]


def in_use(name: str) -> int:
    """Return how much of the named limit the process already uses, in bytes."""
    field = {ADDRESSES: "VmSize:", SEGMENTS: "VmData:"}.get(name, "VmRSS:")
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def _group_limits(root: Path) -> Iterator[tuple[int, str]]:
    """Yield the limits of the control groups, innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    groups = root / "sys/fs/cgroup"
    for line in lines:  # 0::/user.slice (v2) or 4:memory:/docker/1f (v1)
        controllers, _, group = line.partition(":")[2].partition(":")
        if not controllers:
            top, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / group.lstrip("/")
        # Inside a container, its own group may appear at the root instead of at its named path.
        for folder in (inner, *inner.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or `max`: no limit
                limit = int((folder / name).read_text())
                if limit < 1 << 60:  # cgroup v1 reports a larger number for no limit
                    yield limit, name
            if folder == top:
                break


def human_bytes(count: int) -> str:
    """Write a number of bytes in a readable unit: 1.5 GiB."""
    size = Decimal(count)  # after a typo, the count may exceed what a float can hold
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} EiB"
