"""Where the time of a training step goes.

torch's profiler records each operator, each node of autograd, and named scopes, as a tree of events
within each step. The self time of an event is its time without the events in it; on the thread
of the step, self times add up to the whole. Each event counts to one part: a product to the products;
anything else to the innermost scope or node that is known; an operator outside of all those to what
its name says. What runs outside of the operators is Python.

The kernel counts page faults, and the time in it. Faults happen inside of operators, so the share of
system time in the CPU time is taken from all parts alike.
"""

import os
import re
import resource
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import typer

from benches.common import AsJson, Corpus, loop_of, report, seconds
from benches.machine import limits

PRODUCTS = "linear products"
ATTENTION = "attention"
NORMS = "norms, activations, element-wise"
COPIES = "copies and casts"
LOSS = "embeddings and loss"
OPTIMIZER = "optimizer and clipping"
COMPILED = "compiled code"
FAULTS = "page faults and the system"
PYTHON = "Python and the rest"
PARTS = (PRODUCTS, ATTENTION, NORMS, COPIES, LOSS, OPTIMIZER, COMPILED, FAULTS, PYTHON)

STEP, GRADIENTS, ATTEND = "charlm::step", "charlm::gradients", "charlm::attention"

# A product counts wherever it is, but for the optimizer's.
PRODUCT = re.compile(
    r"aten::(addmm|mm|linear|mkldnn_linear|mkldnn_linear_backward\w*)_?$|.*::.*linear"
)

# Scopes, functions with a derivative by hand, and operators that stand for a part of the model. The
# first that matches counts: the loss has a softmax too.
SCOPES = {
    r"Optimizer\.": OPTIMIZER,
    r"(charlm::)?(loss|embedding|SumOfRows)|.*(log_softmax|nll_loss|embedding)": LOSS,
    r"(charlm::)?(attention|Attention)|.*(bmm|scaled_dot_product|_softmax)": ATTENTION,
    r"(charlm::)?(norm|mlp|MLP|RMSNorm|Rotary|SquaredReLU)|.*layer_norm": NORMS,
    r".*Compiled": COMPILED,
}
# Operators outside of those.
OPERATORS = {r"aten::(copy_|clone|contiguous|to|_to_copy|cat|stack|index_put_)$": COPIES}


def profile(
    preset: Annotated[str, typer.Argument(help="A preset or a file.")],
    changes: Annotated[list[str] | None, typer.Argument(help="Its settings: KEY=VALUE.")] = None,
    corpus: Corpus = "shakespeare",
    steps: Annotated[int, typer.Option(min=1, help="Timed, and as many profiled.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show where the time of a training step goes, beside limits of the machine."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch, not loaded yet, says when it profiles
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as scratch:
        loop = loop_of(Path(scratch) / "run", preset, corpus, *(changes or []))
        list(loop.learner.prepare())
        plain, used = _timed(loop, steps)
        profiled, found = _profiled(loop, steps)
    system = used["system (ms)"] / max(used["CPU (ms)"], 1e-9)
    figures: dict[str, float | str] = {
        f"{preset}: precision": str(loop.learner.dtype),
        f"{preset}: a step (ms)": plain * 1e3,
        f"{preset}: a step, profiled (ms)": profiled * 1e3,
        **{f"{preset}: {name}": value for name, value in used.items()},
    }
    for part, share in shares(found, system).items():
        if share or part != COMPILED:
            figures[f"{preset}: share of {part}"] = share
    report(figures | limits(), as_json)


def shares(found: dict[str, float], system: float) -> dict[str, float]:
    """Return the share of each part in a step; they add up to 1."""
    whole = sum(found.values())
    return {
        part: system if part == FAULTS else found.get(part, 0.0) / whole * (1 - system)
        for part in PARTS
    }


def _timed(loop, steps: int) -> tuple[float, dict[str, float]]:
    """Return the median seconds of a step, and what a step uses on average."""
    for _ in range(3):
        loop.learner.step()
    before = resource.getrusage(resource.RUSAGE_SELF)
    times = [seconds(loop.learner.step) for _ in range(steps)]
    after = resource.getrusage(resource.RUSAGE_SELF)

    def spent(name: str) -> float:
        return (getattr(after, name) - getattr(before, name)) / steps

    system = spent("ru_stime") * 1e3
    return statistics.median(times), {
        "CPU (ms)": spent("ru_utime") * 1e3 + system,
        "system (ms)": system,
        "page faults": spent("ru_minflt"),
    }


def _profiled(loop, steps: int) -> tuple[float, dict[str, float]]:
    """Return the mean seconds of a step under the profiler, and the time of each part."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as torch_profile

    with _scopes(loop.learner), torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            with record_function(STEP):
                loop.learner.step()
    found = [event for event in profiler.events() if event.name == STEP]
    whole = sum(event.cpu_time_total for event in found)
    return whole / steps / 1e6, parts_of(found)


@contextmanager
def _scopes(learner) -> Iterator[None]:
    """Name what the profiler does not see: a micro-batch, attention, and kernels compiled by numba.

    Compiled code stays as it is: with a scope in it, it would be compiled again.
    """
    from torch import nn
    from torch.profiler import record_function

    from charlm.models import attention as lesson

    named = [(learner, "_accumulate", GRADIENTS)]
    if learner.forward is learner.model or not isinstance(learner.forward, nn.Module):
        named.append((lesson, "attend", ATTEND))
    with suppress(ImportError):
        from charlm.fused import attention, blocks, gpt

        for place in (attention, blocks, gpt):
            for name, kernel in vars(place).items():
                if hasattr(kernel, "targetoptions") and kernel.targetoptions.get("parallel"):
                    part = "attention" if "softmax" in name else "norm"
                    named.append((place, name, f"charlm::{part}.{name}"))
    with ExitStack() as stack:
        for place, name, scope in named:
            scoped = record_function(scope)(getattr(place, name))
            stack.enter_context(patch.object(place, name, scoped))
        yield


def parts_of(steps: Iterable) -> dict[str, float]:
    """Return the time of each part in the events of some steps, and of all events in them."""
    forward: dict[int, str] = {}  # the scope of an operator's forward pass, for its backward pass
    found: Counter[str] = Counter()

    def visit(event, scope: str | None, inside: bool) -> None:
        name = event.name.removeprefix("autograd::engine::evaluate_function: ")
        if name == GRADIENTS:
            scope, inside = None, True
        backward = event.name != name
        number = event.sequence_nr
        if scope != OPTIMIZER:
            scope = (forward.get(number) if backward else None) or _match(SCOPES, name) or scope
        if number >= 0 and scope and not backward:
            forward.setdefault(number, scope)
        found[_part(name, scope, inside)] += event.self_cpu_time_total
        for child in event.cpu_children:
            visit(child, scope, inside)

    for step in steps:
        visit(step, None, False)
    return found


def _part(name: str, scope: str | None, inside: bool) -> str:
    """Return the part that the self time of an event counts to; `inside` of the gradients or not."""
    operator = "::" in name and not name.startswith("charlm::")
    if scope == OPTIMIZER or not inside:
        return OPTIMIZER if operator else PYTHON
    if PRODUCT.match(name):
        return PRODUCTS
    if scope:
        return PYTHON if name == ATTEND else scope
    return (_match(OPERATORS, name) or NORMS) if operator else PYTHON


def _match(table: dict[str, str], name: str) -> str | None:
    return next((part for pattern, part in table.items() if re.match(pattern, name)), None)
