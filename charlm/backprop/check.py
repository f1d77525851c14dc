"""Check hand-derived gradients against autograd and finite differences.

Autograd differentiates PyTorch's own form of a rule or model. Finite differences need no calculus:
they move an input a little to both sides and measure the result. Everything is in float64, where
rounding is small enough to tell a wrong rule from a right one.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from charlm.backprop.by_hand import program_for
from charlm.backprop.cases import CASES, SIZES, Case, Draw, Sizes
from charlm.config import ModelConfig
from charlm.config.base import AnyModel
from charlm.models import LanguageModel, next_token_loss

AUTOGRAD_TOLERANCE = 1e-10
FINITE_TOLERANCE = 1e-6

# Step of finite differences: small, as slopes change fast in norms of tiny vectors and at the
# corner of squared ReLU's slope. The rounding error is 1e-16 / STEP.
STEP = 1e-5
FLOOR = 1e-2  # gradients below this part of the largest are compared with that part of it
PROBES = 12  # elements of an input to move one at a time, before all at once at random
SEED = 1


_WIDE = {"n_embd": 12, "n_head": 3}
_DEEP = {**_WIDE, "type": "gpt", "n_layer": 2, "dropout": 0.1}
_STACKED = {"n_layer": 2, "n_embd": 5, "n_hidden": 6, "dropout": 0.1}
_SIZES = (
    {"type": "bigram"},
    {"type": "averaging", "n_embd": 12},
    {"type": "attention", "n_embd": 12},
    {"type": "multihead", **_WIDE},
    {"style": "gpt2", **_DEEP},
    {"style": "modern", **_DEEP},
    {"type": "bow", "n_embd": 5, "n_hidden": 9},
    {"type": "mlp", "n_embd": 5, "n_hidden": 9, "context": 3, "dropout": 0.1},
    {"type": "rnn", **_STACKED},
    {"type": "gru", **_STACKED, "residual": True},
    {"type": "lstm", **_STACKED, "residual": True, "tied": True, "n_embd": 6},
    {"type": "mingru", **_STACKED},
)
# Every kind of model with gradients by hand, small enough to be checked in seconds.
SMALL_MODELS: dict[str, ModelConfig] = {
    model.kind: model
    for model in TypeAdapter(list[AnyModel]).validate_python(
        [{**sizes, "block_size": 8} for sizes in _SIZES]
    )
}


@dataclass(frozen=True)
class Difference:
    """The error of a hand-derived gradient, relative to the largest gradient.

    Args:
        autograd: Largest difference from autograd over all elements, or the difference between the
            forward passes if that is larger.
        finite: Largest difference from central finite differences over the directions tried.
        reason: Why there is no gradient to compare; "" if there is one.
    """

    autograd: float
    finite: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether both are within tolerance; NaN is not."""
        return self.autograd <= AUTOGRAD_TOLERANCE and self.finite <= FINITE_TOLERANCE


def check_rules() -> Iterator[tuple[str, Difference]]:
    """Yield each rule's name and its errors."""
    for name in CASES:
        yield name, check_rule(name)


def check_rule(name: str, sizes: Iterable[Sizes] = SIZES, probes: int = PROBES) -> Difference:
    """Return a rule's largest errors over all sizes and inputs."""
    cases = [case for size in sizes for case in CASES[name](size, Draw(SEED))]
    found = [difference for case in cases for difference in compare(case, probes)]
    reason = next((d.reason for d in found if d.reason), "")
    return Difference(_worst(d.autograd for d in found), _worst(d.finite for d in found), reason)


def check_model(
    model: LanguageModel, *, windows: int = 2, length: int | None = None, probes: int = 3
) -> Iterator[tuple[str, Difference]]:
    """Yield the name of each weight of a model and the errors of its gradient.

    The model is changed: converted to float64, with new random weights, as zeros among the initial
    ones would hide errors. `windows` (B) of `length` characters (T; None: `block_size`) are random.
    `probes` elements of each weight are moved one at a time.
    """
    draw = Draw(SEED)
    model.double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 1.0
            parameter.copy_(draw.normal(*parameter.shape) * scale)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    length = length or model.block_size
    idx, targets = (draw.ids(model.vocab_size, windows, length) for _ in range(2))

    def reference(*inputs: Tensor) -> Tensor:
        state = dict(zip(weights, inputs, strict=False))
        return next_token_loss(torch.func.functional_call(model, state, (idx,)), targets)

    constants = (*model.buffers(), idx, torch.arange(length), targets)
    case = Case(program_for(model), reference, tuple(weights.values()), constants)
    yield from zip(weights, compare(case, probes), strict=True)


def compare(case: Case, probes: int = PROBES) -> Iterator[Difference]:
    """Yield the errors of the gradient by hand for each input of a case."""
    outs, douts, expected = _by_autograd(case)
    gradients: Sequence[Tensor | None] = [None] * len(expected)
    forward, reason = math.inf, ""
    try:
        outs_by_hand, gradients = _by_hand(case, douts)
        forward = _worst(map(_forward_difference, outs_by_hand, outs))
    except MemoryError:
        raise
    except Exception as error:  # a rule that cannot be computed is wrong
        reason = f"{type(error).__name__}: {error}"
    smallest = FLOOR * max(_largest(x) for x in (*douts, *expected))
    for i, (gradient, truth) in enumerate(zip(gradients, expected, strict=True)):
        if gradient is None or gradient.shape != truth.shape:
            shape = "no gradient" if gradient is None else f"gradient of {tuple(gradient.shape)}"
            wanted = f"{shape} for an input of {tuple(truth.shape)}"
            yield Difference(math.inf, math.inf, reason or wanted)
            continue
        scale = max(_largest(truth), smallest)
        finite = _worst(
            abs((gradient * direction).sum().item() - _slope(case, douts, i, direction))
            for direction in _directions(gradient, probes)
        )
        yield Difference(_worst([_largest(gradient - truth) / scale, forward]), finite / scale)


def _by_autograd(case: Case) -> tuple[tuple[Tensor, ...], ...]:
    """Return the outputs, a random gradient for each, and autograd's gradients of the inputs."""
    inputs = tuple(x.detach().requires_grad_() for x in case.inputs)
    outs = _tuple(_seeded(case.reference, *inputs, *case.constants))
    draw = Draw(SEED + 1)
    douts = tuple(draw.normal(*out.shape) for out in outs)
    gradients = torch.autograd.grad(outs, inputs, douts)
    return tuple(out.detach() for out in outs), douts, gradients


def _by_hand(
    case: Case, douts: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
    """Return the outputs, and the rule's gradients of the inputs."""
    with torch.no_grad():
        out, saved = _seeded(case.rule.forward, *case.inputs, *case.constants)
        gradients = case.rule.backward(douts if len(douts) > 1 else douts[0], *saved)
        inputs = len(case.inputs) + len(case.constants)
        if len(gradients) != inputs:
            raise ValueError(f"{len(gradients)} gradients for {inputs} inputs")
        return _tuple(out), gradients[: len(case.inputs)]


def _forward_difference(out: Tensor, truth: Tensor) -> float:
    """Return the largest difference relative to the largest output; ignore masked elements."""
    finite = truth.isfinite()
    if out.shape != truth.shape or not torch.equal(out.isfinite(), finite):
        return math.inf
    out, truth = out[finite], truth[finite]
    return _largest(out - truth) / max(_largest(truth), FLOOR)


def _slope(case: Case, douts: tuple[Tensor, ...], i: int, direction: Tensor) -> float:
    """Return the slope of sum(out dout) along a direction of input i.

    By the five-point central difference, whose error is O(STEP^4) instead of O(STEP^2).
    """

    def moved(steps: int) -> float:
        inputs = list(case.inputs)
        inputs[i] = inputs[i] + steps * STEP * direction
        with torch.no_grad():
            out, _ = _seeded(case.rule.forward, *inputs, *case.constants)
        return math.fsum(
            part.masked_fill(part.isinf(), 0).mul(dout).sum().item()  # ignore masked elements
            for part, dout in zip(_tuple(out), douts, strict=True)
        )

    return (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * STEP)


def _directions(x: Tensor, probes: int) -> Iterator[Tensor]:
    """Yield unit vectors: along some elements, then one random direction."""
    draw = Draw(SEED + 2)
    for element in torch.randperm(x.numel(), generator=draw.generator)[:probes]:
        yield F.one_hot(element, x.numel()).to(x).view(x.shape)
    across = draw.normal(*x.shape)
    yield across / across.norm()


def _seeded(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Call a function so that it draws the same dropout masks each time."""
    kept = torch.get_rng_state()
    torch.default_generator.manual_seed(SEED)
    try:
        return function(*inputs)
    finally:
        torch.set_rng_state(kept)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def _worst(differences: Iterable[float]) -> float:
    """Return the largest; NaN counts as infinite."""
    return max(math.inf if math.isnan(d) else d for d in differences)
