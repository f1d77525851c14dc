"""The device of a run, and the precision of its matrix products."""

import math
import time
from contextlib import AbstractContextManager
from functools import cache

import torch

from charlm.config import RunConfig
from charlm.errors import MachineError, Setting, number_of


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises MachineError with the devices of this machine if it has no such device.
    """
    available = available_devices()
    if name == "auto":
        return torch.device(available[-1] if len(available) > 1 else "cpu")
    if name == "cuda" and "cuda:0" in available:
        return torch.device("cuda:0")
    if name not in available:
        mend = f"this machine has {', '.join(available)}"
        raise MachineError(Setting("run.device", name), "not available", mend)
    return torch.device(name)


def available_devices() -> list[str]:
    """List the devices of this machine, the preferred one last."""
    devices = ["cpu"]
    if torch.backends.mps.is_available():
        devices.append("mps")
    devices += [f"cuda:{i}" for i in reversed(range(torch.cuda.device_count()))]
    return devices


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of matrix products in training; `auto` is bfloat16 where it is faster.

    Losses are always measured, and text is drawn, in float32.
    """
    if name == "auto":
        cuda = device.type == "cuda" and torch.cuda.is_bf16_supported()
        fast = cuda or (device.type == "cpu" and bfloat16_is_faster())
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@cache
def bfloat16_is_faster() -> bool:
    """Measure whether this CPU multiplies bfloat16 at least 1.5 times as fast as float32.

    CPUs with instructions for bfloat16 take half the time, others up to twice as long. The best of
    many tries in turn is compared, so that other programs hardly matter. It takes about 10 ms.
    """
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(12):
        for dtype in best:
            x = torch.ones(768, 256, dtype=dtype)  # a small batch and a common width
            started = time.perf_counter()
            x.T @ x
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] > 1.5 * best[torch.bfloat16]


def precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return a context in which products run in `dtype` and everything else in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def describe_device(config: RunConfig) -> str:
    """Return the device and precision of a run in words: `cpu (2 threads), float32`."""
    device = choose_device(config.device)
    dtype = str(choose_dtype(config.dtype, device)).removeprefix("torch.")
    threads = torch.get_num_threads()
    where = f"cpu ({number_of(threads, 'thread')})" if device.type == "cpu" else str(device)
    return f"{where}, {dtype}"
