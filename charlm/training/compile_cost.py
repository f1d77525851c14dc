"""What compiling costs and saves: an estimate at first, then what earlier runs on this machine found.

It is kept among the compiled code itself, so whoever deletes that code deletes what is known of it.
"""

import contextlib
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field, TypeAdapter

from charlm import __version__
from charlm.config import Config
from charlm.errors import CharlmError, MachineError
from charlm.models import LanguageModel
from charlm.storage import write_file
from charlm.storage.json_file import read_object

NAME = "charlm-costs.json"
MOST = 200  # programs; the oldest are forgotten

# Measured on two cores (docs/experiments.md), for models of two to six layers.
FIRST = 30.0  # seconds, without compiled code in the cache
CACHED = 0.3  # of that, with it
SAVED = 0.25  # share of a step

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Cost:
    """What compiling a program will cost and save."""

    seconds: float = FIRST
    saved: float = SAVED  # share of a step; below 0: steps become slower
    cached: bool = False  # whether this machine compiled it before


class Times(BaseModel, frozen=True):
    """What was measured, in seconds; a pass is one micro-batch, forward and backward."""

    compiling: Seconds
    eager: Seconds
    compiled: Seconds
    cached: bool = False  # whether the compiled code was there already


def program(config: Config, model: LanguageModel, windows: int, dtype: torch.dtype) -> str:
    """Name what decides the cost: the model, the shape and precision of a pass, and the machine."""
    sizes = " ".join(f"{name}={size}" for name, size in config.model.sizes().items())
    if model.device.type == "cuda":
        device = torch.cuda.get_device_name(model.device)
    else:
        capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        device = f"{platform.machine()} {capability}, {threads} threads"
    return (
        f"{config.model.kind}, {model.vocab_size} symbols, {sizes}; {windows} windows in {dtype}; "
        f"{device}; torch {torch.__version__}, charlm {__version__}"
    )


def cost_of(name: str) -> Cost:
    """Return what is known of a program, or an estimate."""
    times = _kept().get(name)
    if not times:
        return Cost()
    seconds = times.compiling * (1 if times.cached else CACHED)
    return Cost(seconds, 1 - times.compiled / times.eager, cached=True)


def keep_times(name: str, times: Times) -> None:
    """Keep what was measured of a program, if the disk allows: the next run finds its code cached."""
    kept = _kept()
    again = kept.pop(name, None) is not None  # so that the newest is the last
    kept[name] = times.model_copy(update={"cached": again})
    with contextlib.suppress(MachineError):
        write_file(_path(), _KEPT.dump_json(dict(list(kept.items())[-MOST:]), indent=1))


_KEPT = TypeAdapter(dict[str, Times])


def _kept() -> dict[str, Times]:
    """Return all that is known; nothing if the file is missing or damaged."""
    try:
        return _KEPT.validate_python(read_object(_path()))
    except (OSError, ValueError, CharlmError):
        return {}


def _path() -> Path:
    return cache_folder() / NAME


def cache_folder() -> Path:
    """Return the folder of compiled code: the user's choice, or one that only the user can write.

    Torch's default is in the shared temporary folder, and torch may have set it already.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if chosen and not chosen.startswith(f"{tempfile.gettempdir()}/torchinductor_"):
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "charlm" / "inductor"


def use_cache_folder() -> None:
    """Let torch keep compiled code there."""
    folder = cache_folder()
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") != str(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
