"""torch.compile where it saves time: tried first, with a reason if it is not used."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from charlm.config import Config
from charlm.config.cores import cores_are_taken
from charlm.config.size import flops_per_step
from charlm.errors import MachineError, Phrase, Setting
from charlm.models import LanguageModel, next_token_loss
from charlm.models.device import choose_device, precision

# Compiling for a CPU takes half a minute at first and saves a quarter of each step of `gpt`
# (docs/experiments.md), so it saves time after some minutes. Without a budget, the length of a run
# is estimated from its operations (two laptop cores do 9e10 per second of `gpt`), so that a
# configuration trains the same way everywhere. With dropout a compiled step is slower by a quarter.
WORTH_MINUTES = 4.0
BUSY = 4  # times as long a run, on a busy machine
WORTH_FLOPS = 60 * WORTH_MINUTES * 9e10
NOT_COMPILED = Setting("run.compile", "false")

Forward = Callable[[Tensor], Tensor]


def compile_model(
    model: LanguageModel, choice: str | bool, windows: int, dtype: torch.dtype
) -> tuple[Forward, str | None]:
    """Return the compiled model, or the model itself with the reason if compiling failed.

    The trial is one forward and backward pass on zeros, exactly as in a step; otherwise the first
    step would compile again. Gradients are cleared after it.

    Args:
        model: The model, on its device.
        choice: True: compile, or raise MachineError; False: do not; `auto`: try.
        windows: Windows in a micro-batch; code is compiled for this shape.
        dtype: Precision of the step.
    """
    if choice is False:
        return model, None
    device = model.device
    # Code is compiled for the strides too: in a step, inputs and targets are views of one array.
    text = torch.zeros(windows, model.block_size + 1, dtype=torch.int64)
    x, y = text[:, :-1].to(device), text[:, 1:].to(device)
    try:
        _use_private_cache()
        compiled: Forward = torch.compile(model)
        model.train()
        with precision(device, dtype):
            logits = compiled(x)
        next_token_loss(logits.float(), y).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # a compiler may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        if choice is True:
            full = "No space left" in str(error)
            mend = "free some space for temporary files" if full else "install a C++ compiler"
            mending = Phrase(f"{mend} or set {{}}", NOT_COMPILED)
            raise MachineError("run.compile", f"failed ({reason})", mending) from error
        return model, f"compile: fell back to eager ({reason})"
    finally:
        model.zero_grad(set_to_none=True)
    return compiled, None


def check_compiler(config: Config) -> None:
    """Raise MachineError, before any long work, if a run must be compiled and there is no compiler."""
    asked = config.run.compile is True and config.training_runs()
    if asked and choose_device(config.run.device).type == "cpu" and not find_compiler():
        what = "true needs a C++ compiler, and none of c++, g++ and clang++ is on the PATH"
        raise MachineError("run.compile", what, Phrase("install one or set {}", NOT_COMPILED))


def find_compiler() -> str | None:
    """Return the path of a C++ compiler: the one in CXX, as torch does, or a usual one."""
    names = (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")
    return next(filter(None, map(shutil.which, names)), None)


def worth_trying(config: Config, model: LanguageModel, budget: float | None) -> bool:
    """Tell whether compiling saves time: for deep models on CUDA, without dropout in long runs on a CPU.

    `budget` is the seconds that are left for its steps; None: it takes a number of steps.
    """
    if not config.model.deep or config.train.gradients == "by_hand":
        return False
    if model.device.type != "cpu":
        return model.device.type == "cuda"
    if config.model.sizes().get("dropout"):
        return False
    if budget is not None:
        # Beside other programs compiling takes several times as long, and saves less of a step.
        long = budget >= 60 * WORTH_MINUTES * (BUSY if cores_are_taken() else 1)
    else:
        flops = config.train.max_steps * flops_per_step(config, model.vocab_size)
        long = flops >= WORTH_FLOPS
    return long and find_compiler() is not None


def _use_private_cache() -> None:
    """Keep compiled code in a folder that only this user can write.

    Torch's default is in the shared temporary folder, and torch may have set it already.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if not chosen or chosen.startswith(f"{tempfile.gettempdir()}/torchinductor_"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "charlm" / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
