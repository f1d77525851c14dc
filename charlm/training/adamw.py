"""AdamW for a table of which each step looks up a few rows.

The rows that were not looked up move too: their moments fade, and the weights decay. So each step
passes over the table and its moments. A gradient of the table would be as large as these and nearly all
zeros; to write it, measure it and clip it took longer than the step itself.
"""

import math
from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
from numba import prange
from torch import Tensor, nn
from torch.optim import AdamW

from charlm.fused.numbers import ONE, ZERO, Array, Number, array
from charlm.models.kernel import inner, parallel_kernel, share_threads


class TableAdamW(AdamW):
    """AdamW that takes the gradient of a table also as a sparse tensor.

    `SparseAdam` leaves the moments of other rows as they are, and has no decay.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        sparse: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    self._step_table(p, p.grad.coalesce(), group)
                    sparse[p], p.grad = p.grad, None  # torch refuses it
        super().step()
        for p, gradient in sparse.items():
            p.grad = gradient

    def _step_table(self, table: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update a table and its moments in one pass."""
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(table) for _ in range(2))
        state["step"] += 1
        rows, values = gradient.indices()[0], gradient.values()
        places = torch.full((len(table),), -1)
        places[rows] = torch.arange(len(rows))
        arrays = [
            array(x)
            for x in (table.detach(), state["exp_avg"], state["exp_avg_sq"], places, values)
        ]
        share_threads()
        adamw_of_rows(*arrays, Rates.of(group, int(state["step"]), arrays[0].dtype.type))


class Rates(NamedTuple):
    """The numbers of one step of AdamW."""

    beta1: Number
    beta2: Number
    kept: Number  # share of the weights that decay leaves
    rate: Number  # learning rate over the share of all gradients that the mean holds
    root: Number  # 1 over the root of the share that the mean of squares holds
    eps: Number

    @classmethod
    def of(cls, group: dict[str, Any], step: int, dtype: Any) -> "Rates":
        """Return those of step number `step`, from 1."""
        beta1, beta2 = group["betas"]
        rate = group["lr"] / (1 - beta1**step)
        kept, root = 1 - group["lr"] * group["weight_decay"], 1 / math.sqrt(1 - beta2**step)
        return cls(*map(dtype, (beta1, beta2, kept, rate, root, group["eps"])))


@inner
@no_type_check
def _adamw(weight: Number, mean: Number, square: Number, g: Number, rates: Rates) -> Any:
    """Return a weight and its moments after a step with the gradient g."""
    mean += (ONE - rates.beta1) * (g - mean)
    square = rates.beta2 * square + (ONE - rates.beta2) * g * g
    change = rates.rate * mean / (np.sqrt(square) * rates.root + rates.eps)
    return weight * rates.kept - change, mean, square


@parallel_kernel
@no_type_check
def adamw_of_rows(
    table: Array, mean: Array, square: Array, places: Array, values: Array, rates: Rates
) -> None:
    """Update a table (R, C) and its moments.

    values (K, C): the rows of the gradient that are not 0; places (R,): where each row's is, or -1.
    """
    rows, c = table.shape
    for r in prange(rows):
        place = places[r]
        if place < 0:
            for i in range(c):
                table[r, i], mean[r, i], square[r, i] = _adamw(
                    table[r, i], mean[r, i], square[r, i], ZERO, rates
                )
        else:
            for i in range(c):
                table[r, i], mean[r, i], square[r, i] = _adamw(
                    table[r, i], mean[r, i], square[r, i], values[place, i], rates
                )


def load_kernel() -> None:
    """Load the kernel by updating a table of one weight."""
    table = nn.Parameter(torch.zeros(1, 1))
    table.grad = torch.zeros(1, 1).to_sparse(1)
    TableAdamW([table]).step()
