"""charlm doctor: facts about this machine, on one screen, for bug reports."""

import platform
import shutil
import time

from charlm import __version__
from charlm.cli import output
from charlm.cli.signals import load_torch


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
    rows = {
        "charlm": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "devices": ", ".join(available_devices()),
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "memory": human_bytes(machine_bytes()),
        "disk": f"{human_bytes(shutil.disk_usage('.').free)} free here",
        "c++": f"{compiler}" if compiler else "none: run.compile=true does not work on the CPU",
        "texts": str(data_folder().resolve()),
    }
    for name, value in rows.items():
        output.result(f"{name:<8} {value}")
    for device in available_devices():
        for dtype in (torch.float32, torch.bfloat16):
            try:
                rate = _matmul_rate(torch.device(device), dtype)
            except RuntimeError as error:
                output.result(f"{device:<8} {dtype}: {str(error).splitlines()[0]}")
                continue
            name = str(dtype).removeprefix("torch.")
            output.result(f"{device:<8} {name} matrix products at {rate / 1e9:,.0f} GFLOP/s")


def _matmul_rate(device, dtype, size: int = 1024, repeats: int = 10) -> float:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Return the best speed of a few size x size products, in FLOP/s."""
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        finish()
        began = time.perf_counter()
        a @ a
        finish()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
