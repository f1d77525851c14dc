"""How we know that a gradient is right: two other ways to the same numbers.

Autograd differentiates PyTorch's own form of a rule or model. Finite differences need no calculus
at all: they move an input a little to both sides and watch the result. All of it in float64, where
rounding leaves room to tell a wrong rule from a right one.
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

# Of finite differences. Small, to keep clear of where slopes change fast: norms of almost nothing,
# and the corner in the slope of squared ReLU. Rounding costs 1e-16 / STEP.
STEP = 1e-5
FLOOR = 1e-2  # gradients below this part of the largest are compared with that part of it
PROBES = 12  # elements of an input that are moved one at a time; then all at once, at random
SEED = 1


def _small(**keys: Any) -> ModelConfig:
    model: ModelConfig = TypeAdapter(AnyModel).validate_python({**keys, "block_size": 8})
    return model


_WIDE = {"n_embd": 12, "n_head": 3}
_DEEP = {**_WIDE, "type": "gpt", "n_layer": 2, "dropout": 0.1}

# Every kind of model that is derived by hand, small enough to be checked in seconds.
SMALL_MODELS = {
    model.kind: model
    for model in (
        _small(type="bigram"),
        _small(type="averaging", n_embd=12),
        _small(type="attention", n_embd=12),
        _small(type="multihead", **_WIDE),
        _small(style="gpt2", **_DEEP),
        _small(style="modern", **_DEEP),
    )
}


@dataclass(frozen=True)
class Difference:
    """How far a gradient by hand is from its two witnesses, relative to the largest gradient.

    Args:
        autograd: Largest difference to autograd over all elements, or that of the forward pass to
            PyTorch's if it is larger.
        finite: Largest difference to central finite differences over the directions tried.
        reason: Why there is no gradient to compare, if there is none.
    """

    autograd: float
    finite: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether both are within tolerance; NaN is not."""
        return self.autograd <= AUTOGRAD_TOLERANCE and self.finite <= FINITE_TOLERANCE


def check_rules() -> Iterator[tuple[str, Difference]]:
    """Yield the name of each rule with what was found for it."""
    for name in CASES:
        yield name, check_rule(name)


def check_rule(name: str, sizes: Iterable[Sizes] = SIZES, probes: int = PROBES) -> Difference:
    """Return the worst that was found for a rule over all sizes and inputs."""
    cases = [case for size in sizes for case in CASES[name](size, Draw(SEED))]
    found = [difference for case in cases for difference in compare(case, probes)]
    reason = next((d.reason for d in found if d.reason), "")
    return Difference(_worst(d.autograd for d in found), _worst(d.finite for d in found), reason)


def check_model(
    model: LanguageModel, *, windows: int = 2, length: int | None = None, probes: int = 3
) -> Iterator[tuple[str, Difference]]:
    """Yield the name of each weight of a model with what was found for it.

    The model is turned to float64 and its weights are drawn anew: the first weights of a run hold
    zeros that would hide mistakes. Ids are random.

    Args:
        model: Any that has a program by hand; it is changed.
        windows: Of ids (B).
        length: Of a window (T); `block_size` if None.
        probes: Elements of each weight that are moved one at a time.
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
    """Yield, for each input of a case, how far the gradient by hand is from its witnesses."""
    outs, douts, expected = _by_autograd(case)
    gradients: Sequence[Tensor | None] = [None] * len(expected)
    forward, reason = math.inf, ""
    try:
        outs_by_hand, gradients = _by_hand(case, douts)
        forward = _worst(map(_forward_difference, outs_by_hand, outs))
    except MemoryError:
        raise
    except Exception as error:  # a rule that cannot even be computed is as wrong as can be
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
    """Return the outputs, a random gradient for each, and what autograd makes of it."""
    inputs = tuple(x.detach().requires_grad_() for x in case.inputs)
    outs = _tuple(_seeded(case.reference, *inputs, *case.constants))
    draw = Draw(SEED + 1)
    douts = tuple(draw.normal(*out.shape) for out in outs)
    gradients = torch.autograd.grad(outs, inputs, douts)
    return tuple(out.detach() for out in outs), douts, gradients


def _by_hand(
    case: Case, douts: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
    """Return the outputs, and what the rule makes of the gradients for them."""
    with torch.no_grad():
        out, saved = _seeded(case.rule.forward, *case.inputs, *case.constants)
        gradients = case.rule.backward(douts if len(douts) > 1 else douts[0], *saved)
        inputs = len(case.inputs) + len(case.constants)
        if len(gradients) != inputs:
            raise ValueError(f"{len(gradients)} gradients for {inputs} inputs")
        return _tuple(out), gradients[: len(case.inputs)]


def _forward_difference(out: Tensor, truth: Tensor) -> float:
    """Return the largest difference relative to the largest output; what is masked is infinite."""
    finite = truth.isfinite()
    if out.shape != truth.shape or not torch.equal(out.isfinite(), finite):
        return math.inf
    out, truth = out[finite], truth[finite]
    return _largest(out - truth) / max(_largest(truth), FLOOR)


def _slope(case: Case, douts: tuple[Tensor, ...], i: int, direction: Tensor) -> float:
    """Return how fast sum(out dout) moves as input i does, by the five-point central difference.

    Its error is of the order of STEP^4, where that of the plain one is of STEP^2.
    """

    def moved(steps: int) -> float:
        inputs = list(case.inputs)
        inputs[i] = inputs[i] + steps * STEP * direction
        with torch.no_grad():
            out, _ = _seeded(case.rule.forward, *inputs, *case.constants)
        return math.fsum(
            part.masked_fill(part.isinf(), 0).mul(dout).sum().item()  # what is masked stays so
            for part, dout in zip(_tuple(out), douts, strict=True)
        )

    return (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * STEP)


def _directions(x: Tensor, probes: int) -> Iterator[Tensor]:
    """Yield directions of length 1: along some elements, then a random one across all."""
    draw = Draw(SEED + 2)
    for element in torch.randperm(x.numel(), generator=draw.generator)[:probes]:
        yield F.one_hot(element, x.numel()).to(x).view(x.shape)
    across = draw.normal(*x.shape)
    yield across / across.norm()


def _seeded(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Call a function that may draw dropout masks: the same ones each time."""
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
    """Return the largest; NaN, which compares with nothing, is worse than any."""
    return max(math.inf if math.isnan(d) else d for d in differences)
