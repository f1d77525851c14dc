"""Programs: a forward pass as a list of steps, and the backward pass as the same list in reverse.

A program is itself a rule. Fine rules and coarse rules give the same gradients.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from charlm.backprop.rules import Gradients, Rule, Saved


class Step:
    """One rule applied to named values; several names are separated by spaces."""

    def __init__(self, outputs: str, rule: Rule, inputs: str) -> None:
        self.outputs = outputs.split()
        self.rule = rule
        self.inputs = inputs.split()

    def __str__(self) -> str:
        rule, arguments = self.rule, list(self.inputs)
        if is_dataclass(rule):
            options = ((f.name, getattr(rule, f.name), f.default) for f in fields(rule))
            arguments += [f"{name}={value}" for name, value, usual in options if value != usual]
        return f"{', '.join(self.outputs)} = {type(rule).__name__}({', '.join(arguments)})"


class Program:
    """A list of steps from named inputs to the result of the last step.

    A name may be used again for a later value, as in `x = Add(x, a)`.

    Raises:
        ValueError: There are no steps; a step uses a value that no earlier step makes, or makes a
            value that no later step uses.
    """

    def __init__(self, inputs: str, steps: Iterable[Step]) -> None:
        self.inputs = inputs.split()
        self.steps = list(steps)
        self._refuse_loose_ends()

    def forward(self, *inputs: Tensor) -> tuple[Any, Saved]:
        """Compute step after step."""
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        saved = []
        for step in self.steps:
            result, kept = step.rule.forward(*[values[name] for name in step.inputs])
            saved.append(kept)
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(step.outputs, results, strict=True))
        return result, (saved,)

    def backward(self, dout: Any, saved: list[Saved]) -> Gradients:
        """Apply the chain rule, last step first.

        A step removes the gradients of its results from `waiting`, so that what is added under the
        same name later belongs to the earlier value of that name. `saved` is emptied on the way, to
        free memory early: call backward once for each forward.
        """
        douts = dout if isinstance(dout, tuple) else (dout,)
        waiting: dict[str, Tensor] = dict(zip(self.steps[-1].outputs, douts, strict=True))
        for step in reversed(self.steps):
            if not waiting.keys() & set(step.outputs):  # it only made ids or constants
                saved.pop()
                continue
            results = tuple(waiting.pop(name) for name in step.outputs)
            dresult = results if len(results) > 1 else results[0]
            gradients = step.rule.backward(dresult, *saved.pop())
            for name, gradient in zip(step.inputs, gradients, strict=True):
                if gradient is not None:  # a value that is used twice gets the sum
                    waiting[name] = waiting[name] + gradient if name in waiting else gradient
        return tuple(waiting.get(name) for name in self.inputs)

    def _refuse_loose_ends(self) -> None:
        """Check that every value is made before it is used, and used after it is made."""
        if not self.steps:
            raise ValueError("a program needs a step")
        unused: set[str] = set()
        known = set(self.inputs)
        for step in self.steps:
            if missing := [name for name in step.inputs if name not in known]:
                raise ValueError(f"{step}: nothing before it makes {', '.join(missing)}")
            unused -= set(step.inputs)
            if lost := [name for name in step.outputs if name in unused]:
                raise ValueError(f"{step}: nothing uses {', '.join(lost)} before it is made again")
            unused |= set(step.outputs)
            known |= unused
        if lost := sorted(unused - set(self.steps[-1].outputs)):
            raise ValueError(f"{', '.join(lost)}: made, but nothing uses it")

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __str__(self) -> str:
        width = len(str(len(self.steps)))
        return "\n".join(f"{n:>{width}}  {step}" for n, step in enumerate(self.steps, 1))
