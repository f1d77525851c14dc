"""charlm doctor: facts about this machine, on one screen, for bug reports."""

import platform
import shutil
from typing import TYPE_CHECKING

from charlm import __version__
from charlm.cli import output
from charlm.cli.signals import load_torch
from charlm.errors import number_of

if TYPE_CHECKING:
    import torch


def doctor() -> None:
    """Print facts about this machine, for bug reports."""
    load_torch()
    import numpy as np
    import torch

    from charlm.config.memory import human_bytes, machine_bytes
    from charlm.models.device import available_devices
    from charlm.text.datasets import data_folder
    from charlm.training.compiling import find_compiler

    compiler = find_compiler()
    facts = {
        "charlm": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "devices": ", ".join(available_devices()),
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, "
        f"{number_of(torch.get_num_threads(), 'thread')}",
        "memory": human_bytes(machine_bytes()),
        "freed": _what_becomes_of_freed_memory(),
        "disk": f"{human_bytes(shutil.disk_usage('.').free)} free here",
        "c++": f"{compiler}" if compiler else "none: run.compile=true does not work on the CPU",
        "texts": str(data_folder().resolve()),
    }
    output.facts(facts)
    for device in available_devices():
        for dtype in (torch.float32, torch.bfloat16):
            try:
                rate = _matmul_rate(torch.device(device), dtype)
                name = str(dtype).removeprefix("torch.")
                speed = f"{name} matrix products at {rate / 1e9:,.0f} GFLOP/s"
            except RuntimeError as error:
                speed = f"{dtype}: {str(error).splitlines()[0]}"
            output.facts({device: speed})


def _what_becomes_of_freed_memory() -> str:
    """Say whether training keeps the memory that it frees, and why."""
    from charlm.training.kept_memory import SIZE, can_keep_memory, fill_times, new_memory_is_slow

    if not can_keep_memory():
        return "memory is left to the C library, which is not glibc or was set up by you"
    new, used = fill_times()
    kept = "stays in training" if new_memory_is_slow() else "returns to the system"
    times = f"{1000 * new:.2g} ms to fill, used memory {1000 * used:.2g} ms"
    return f"memory {kept}: {SIZE >> 20} MiB of new memory take {times}"


def _matmul_rate(
    device: "torch.device", dtype: "torch.dtype", size: int = 1024, repeats: int = 10
) -> float:
    """Return the best speed of a few size x size products, in FLOP/s."""
    import torch
    from torch.utils.benchmark import Timer

    a = torch.randn(size, size, device=device).to(dtype)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * size**3 / min(timer.timeit(1).mean for _ in range(repeats))
