"""A recurrent state that is carried from each training window to the next, which follows in the text.

Without it, every window begins with the state before a text, and learns nothing about what is further
back than its own start. With it, gradients still end at the start of a window, but the state there
holds what the windows before it left (truncated backpropagation through time: Williams and Peng
1990, "An efficient gradient-based algorithm for on-line training of recurrent network trajectories").
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from charlm.models import LanguageModel
from charlm.models.base import check_names, check_tensor
from charlm.text.batches import ConsecutiveBatches


class Carried:
    """The states of all windows of a batch, by the first window of each micro-batch."""

    def __init__(self, model: LanguageModel, batches: ConsecutiveBatches) -> None:
        self.model, self.batches = model, batches
        self.now: dict[int, Any] = {}  # before the next step
        self.then: dict[int, Any] = {}  # after it, if it is done

    def before(self, step: int, first: int, windows: int) -> Any:
        """Return the state in which a micro-batch begins.

        It is a new one where the text begins again, and after a step that was skipped.
        """
        if self.batches.begins(step) or first not in self.now:
            return self.model.start(windows)
        return self.now[first]

    def after(self, first: int, state: Any) -> None:
        """Take note of the state in which a micro-batch ended."""
        self.then[first] = rebuilt(state, lambda tensor: tensor.detach().float())

    def advance(self, sound: bool) -> None:
        """Go on to the next step; the states of one that was not `sound` are forgotten."""
        self.now, self.then = self.then if sound else {}, {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the states of the whole batch by number, to be saved: (batch, ...) each."""
        parts = [list(tensors_of(self.now[first])) for first in sorted(self.now)]
        return {str(i): torch.cat(same) for i, same in enumerate(zip(*parts, strict=True))}

    def restore(self, saved: Mapping[str, Tensor], micro_batch_size: int) -> None:
        """Restore what `tensors` returned.

        Raises ValueError if a tensor is missing, unexpected, of another shape or type, or not finite.
        """
        self.now = {}
        if not saved:  # before the first step
            return
        like = self.model.start(self.batches.batch_size)
        expected = {str(i): tensor for i, tensor in enumerate(tensors_of(like))}
        check_names(saved, expected)
        for name, own in expected.items():
            check_tensor(f"the carried state {name}", saved[name], own.shape, own.dtype)
        for first in range(0, self.batches.batch_size, micro_batch_size):
            rows = slice(first, first + micro_batch_size)
            parts = [saved[name][rows].to(self.model.device) for name in expected]
            self.now[first] = rebuilt(like, partial(_next, iter(parts)))


def _next(parts: Iterator[Tensor], _: Tensor) -> Tensor:
    return next(parts)


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a state: one, or nested sequences of them."""
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state:
            yield from tensors_of(part)


def rebuilt(state: Any, put: Callable[[Tensor], Tensor]) -> Any:
    """Return a state of the same form with `put` of each tensor, in the order of `tensors_of`."""
    return put(state) if isinstance(state, Tensor) else tuple(rebuilt(one, put) for one in state)
