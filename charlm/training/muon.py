"""Muon: momentum with orthogonal updates, which move along all directions of a matrix equally.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". A few directions
dominate the gradient of a matrix; its orthogonal factor U V^T (of the singular value decomposition
U S V^T) moves along all of them equally. Matrix products approximate it: an odd polynomial of a
matrix changes its singular values and keeps U and V, and one that is steep at 0 and flat near 1,
applied a few times, brings them all near 1.

torch.optim.Muon treats one matrix after another, always in bfloat16 and in five rounds. Here matrices
of one shape are multiplied together, in the precision of the run, in three rounds. None is transposed:
on a CPU, to copy against the order of memory takes ten times as long.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

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
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[self.shape(matrix)].append(matrix)
            means = (self._means(matrices, group["momentum"]) for matrices in alike.values())
            updates = self.updates(means, list(alike))
            for (shape, matrices), factors in zip(alike.items(), updates, strict=True):
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for matrix, update in zip(matrices, factors, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def shape(self, matrix: nn.Parameter) -> torch.Size:
        """Return the shape of a matrix; of one that is split among processes, that of the whole."""
        return matrix.shape

    def orthogonal(
        self, means: Float[Tensor, "N R C"], shape: torch.Size
    ) -> Float[Tensor, "N R C"]:
        """Return the orthogonal factors of matrices, which are overwritten; see `orthogonalize`."""
        return orthogonalize(means, self.dtype)

    def updates(
        self, stacks: Iterable[Tensor], shapes: Sequence[torch.Size]
    ) -> Iterator[Iterable[Tensor]]:
        """Yield the orthogonal factors of the matrices of each stack, (N, R, C)."""
        for means, shape in zip(stacks, shapes, strict=True):
            yield self.orthogonal(means, shape)

    def _means(self, matrices: Sequence[nn.Parameter], momentum: float) -> Float[Tensor, "N R C"]:
        """Return the running means of the gradients of matrices of one shape, one step ahead."""
        means = matrices[0].new_empty(len(matrices), *matrices[0].shape)
        for matrix, mean in zip(matrices, means, strict=True):
            self._momentum(matrix, momentum, mean)
        return means

    def _momentum(self, matrix: nn.Parameter, momentum: float, out: Tensor) -> None:
        """Update the running mean of the gradient; write it, one step ahead (Nesterov), to `out`."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(matrix.grad, 1 - momentum)
        torch.lerp(matrix.grad, mean, momentum, out=out)


def orthogonalize(x: Float[Tensor, "N R C"], dtype: torch.dtype) -> Float[Tensor, "N R C"]:
    """Return the approximate orthogonal factor of each of N matrices, which are overwritten.

    It has `dtype`, the precision of the products. Singular values from 0.003 of the matrix's norm
    upwards become 0.35 to 1.65; smaller ones are multiplied by about a hundred.
    """
    x = x.div_(torch.linalg.matrix_norm(x, keepdim=True).clamp_(min=1e-7)).to(dtype)
    tall = x.shape[1] > x.shape[2]  # then the smaller product is x^T x, applied from the right
    for a, b, c in ROUNDS:
        gram = x.mT @ x if tall else x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factors = (x, polynomial) if tall else (polynomial, x)
        x = torch.baddbmm(x, *factors, beta=a)
    return x
