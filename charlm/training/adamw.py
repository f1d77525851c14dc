"""AdamW for a table of which each step looks up a few rows.

The rows that were not looked up move too: their moments fade, and the weights decay. So each step
passes over the table and its moments. A gradient of the table would be as large as these and nearly all
zeros; to write it, measure it and clip it took longer than the step itself.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.adamw import adamw

BLOCK = 2**20  # weights that are updated at once: their gradient fits in a cache


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
        """Update a table block by block, each with a gradient that is written out."""
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(table) for _ in range(2))
        count = max(1, BLOCK // table.shape[1])  # rows
        dense = table.new_zeros(count, table.shape[1])
        rows, values = gradient.indices()[0], gradient.values()
        starts = torch.arange(0, len(table), count)
        edges = [*torch.searchsorted(rows, starts).tolist(), len(rows)]
        beta1, beta2 = group["betas"]
        for start, first, last in zip(starts.tolist(), edges, edges[1:], strict=False):
            block = slice(start, start + count)
            places = rows[first:last] - start
            dense[places] = values[first:last]
            adamw(
                [table[block]],
                [dense[: len(table) - start]],
                [state["exp_avg"][block]],
                [state["exp_avg_sq"][block]],
                [],
                [state["step"].clone()],  # it counts up
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            dense[places] = 0
        state["step"] += 1
