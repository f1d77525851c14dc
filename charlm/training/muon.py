"""Muon: momentum with orthogonal updates, which move along all directions of a matrix equally.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". A few directions
dominate the gradient of a matrix; its orthogonal factor U V^T (of the singular value decomposition
U S V^T) moves along all of them equally. Matrix products approximate it: an odd polynomial of a
matrix changes its singular values and keeps U and V, and one that is steep at 0 and flat near 1,
applied a few times, brings them all near 1.

torch.optim.Muon treats one matrix after another, always in bfloat16 and in five rounds. Here matrices
of one shape are multiplied together, in the precision of the run, in three rounds: it takes a fifth
of a step of a small GPT instead of half.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

# (a, b, c) of a s + b s^3 + c s^5 for each round: the three whose composition comes closest to 1
# for all singular values s from 0.003 to 1 (Amsel et al. 2025, "The Polar Express", algorithm 1;
# a test works them out again). Five rounds, and other ranges: docs/experiments.md.
ROUNDS = (
    (8.383674, -24.765906, 18.357082),
    (4.043420, -3.011405, 0.569512),
    (3.505571, -2.626654, 0.525719),
)


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Updates are scaled to the size of AdamW's, so that one learning rate serves both: by
    0.2 sqrt(longer side) (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).

    Args:
        parameters: Matrices.
        lr: Learning rate.
        weight_decay: Share of the weights, times the rate, that each step subtracts.
        momentum: Decay of the mean gradient.
        dtype: Precision of the products.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            updates = [self._momentum(p, group["momentum"]) for p in matrices]
            for matrix, update in zip(matrices, orthogonalize(updates, self.dtype), strict=True):
                rate = group["lr"] * 0.2 * math.sqrt(max(matrix.shape))
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _momentum(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        """Update the running mean of the gradient; return it one step ahead (Nesterov)."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)


def orthogonalize(
    matrices: Sequence[Float[Tensor, "_ _"]], dtype: torch.dtype
) -> list[Float[Tensor, "_ _"]]:
    """Return the approximate orthogonal factor of each matrix.

    Each has the shape of its matrix and `dtype`, the precision of the products. Singular values from
    0.003 of the matrix's norm upwards become 0.35 to 1.65; smaller ones are multiplied by about a
    hundred. Matrices of one shape, or of its transpose, are multiplied together.
    """
    wide = [m if m.shape[0] <= m.shape[1] else m.mT for m in matrices]
    alike = defaultdict(list)
    for i, matrix in enumerate(wide):
        alike[matrix.shape].append(i)
    found = list(wide)
    for places in alike.values():
        x = torch.stack([wide[i] for i in places])
        x = x.div_(torch.linalg.matrix_norm(x, keepdim=True).clamp_(min=1e-7)).to(dtype)
        for a, b, c in ROUNDS:
            gram = x @ x.mT
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, polynomial, x, beta=a)
        for i, factor in zip(places, x, strict=True):
            found[i] = factor
    return [f if f.shape == m.shape else f.mT for f, m in zip(found, matrices, strict=True)]
