"""torch.compile where it saves time: tried first, with a reason if it is not used."""

import os
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from charlm.config import Config
from charlm.config.cores import cores_are_taken
from charlm.config.size import flops_per_step
from charlm.errors import MachineError, Phrase, Setting
from charlm.models import LanguageModel, next_token_loss
from charlm.models.device import choose_device, precision
from charlm.models.ngram_embedding import leave_out_of_compiled_code
from charlm.training.compile_cost import FIRST, SAVED, Cost, Times, use_cache_folder

# Without a budget, the length of a run is estimated from its operations (two laptop cores do 9e10
# per second of `gpt`) and what compiling costs is not looked up, so that a configuration trains the
# same way everywhere. With dropout a compiled step is slower by a quarter (docs/experiments.md).
SPEED = 9e10
WORTH = 2.0  # times what it costs must be saved
BUSY = 4  # times as much it costs beside other programs
TRIES = 5  # of a pass, to measure it; fewer if they take more than a second
NOT_COMPILED = Setting("run.compile", "false")

Forward = Callable[[Tensor], Tensor]


class Attempt(NamedTuple):
    """The compiled model; or the eager forward pass, with the reason if compiling failed."""

    forward: Forward
    reason: str | None = None
    times: Times | None = None


def compile_model(
    model: LanguageModel,
    choice: str | bool,
    windows: int,
    dtype: torch.dtype,
    eager: Forward | None = None,
) -> Attempt:
    """Compile a model, and measure what that takes and saves.

    A pass is forward and backward on zeros, exactly as in a step; otherwise the first step would
    compile again. Gradients are cleared after it.

    Args:
        model: The model, on its device.
        choice: True: compile, or raise MachineError; False: do not; `auto`: try.
        windows: Windows in a micro-batch; code is compiled for this shape.
        dtype: Precision of the step.
        eager: The forward pass otherwise; None: the model's own.
    """
    eager = eager or model
    if choice is False:
        return Attempt(eager)
    device = model.device
    # Code is compiled for the strides too: in a step, inputs and targets are views of one array.
    text = torch.zeros(windows, model.block_size + 1, dtype=torch.int64)
    x, y = text[:, :-1].to(device), text[:, 1:].to(device)

    def seconds(forward: Forward) -> float:
        started = time.perf_counter()
        with precision(device, dtype):
            logits = forward(x)
        next_token_loss(logits.float(), y).backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    try:
        use_cache_folder()
        leave_out_of_compiled_code()
        compiled: Forward = torch.compile(model)
        model.train()
        compiling = seconds(compiled)
        passes = [(seconds(eager), seconds(compiled))]
        while len(passes) < TRIES and sum(map(sum, passes)) < 1:
            passes.append((seconds(eager), seconds(compiled)))
        usual, fast = map(min, zip(*passes, strict=True))
        times = Times(compiling=compiling, eager=usual, compiled=fast)
    except Exception as error:  # a compiler may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        if choice is True:
            full = "No space left" in str(error)
            mend = "free some space for temporary files" if full else "install a C++ compiler"
            mending = Phrase(f"{mend} or set {{}}", NOT_COMPILED)
            raise MachineError("run.compile", f"failed ({reason})", mending) from error
        return Attempt(eager, f"compile: fell back to eager ({reason})")
    finally:
        model.zero_grad(set_to_none=True)
    return Attempt(compiled, None, times)


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


def worth_trying(config: Config, model: LanguageModel, budget: float | None, cost: Cost) -> bool:
    """Tell whether compiling saves clearly more time than it costs: never with dropout on a CPU.

    `budget` is the seconds that are left for its steps; None: it takes a number of steps, and `cost`
    does not count.
    """
    cpu = model.device.type == "cpu"
    supported = cpu or model.device.type == "cuda"
    if not (config.model.deep and supported) or config.train.gradients == "by_hand":
        return False
    if cpu and (config.model.sizes().get("dropout") or not find_compiler()):
        return False
    if budget is not None:
        # Beside other programs compiling takes several times as long, and saves less of a step.
        seconds = cost.seconds * (BUSY if cpu and cores_are_taken() else 1)
        return cost.saved * budget >= WORTH * seconds
    if not cpu:
        return True
    flops = config.train.max_steps * flops_per_step(config, model.vocab_size)
    return SAVED * flops / SPEED >= WORTH * FIRST
