"""The work of Muon, shared among processes that all have the whole model and the same gradients.

To orthogonalise is most of an update. Each process does it for some of the matrices, and takes the
factors of the others from those who found them: who computes what depends on the number of processes,
and what is computed does not. All keep the momentum of all matrices, so each of them can save the run,
and finish a step without the others.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from charlm.training.muon import Muon
from charlm.training.ranks import LostError, Ranks
from charlm.training.slots import ALIGNED


class SharedMuon(Muon):
    """Muon whose orthogonal factors are computed by several processes.

    Args:
        ranks: The processes.
        arguments: Of `Muon`.
        options: Of `Muon`.
    """

    def __init__(self, ranks: Ranks, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ranks = ranks

    def updates(
        self, stacks: Iterable[Tensor], shapes: Sequence[torch.Size]
    ) -> Iterator[Iterable[Tensor]]:
        """Yield the orthogonal factors of the matrices of each stack, (N, R, C)."""
        stacks = list(stacks)
        itemsize = self.dtype.itemsize  # of the products; the matrices have as much or more
        shares = shares_of([stack.shape for stack in stacks], self.ranks.size, itemsize)
        own = self._found(stacks, shares[self.ranks.rank])
        try:
            found = self.ranks.gather(own)
        except LostError:  # the last step before this run is saved
            found = [
                own if rank == self.ranks.rank else self._found(stacks, share)
                for rank, share in enumerate(shares)
            ]
        for parts in zip(*found, strict=True):
            yield [update for part in parts for update in part]

    def _found(self, stacks: Sequence[Tensor], share: Sequence[slice]) -> list[Tensor]:
        """Return the orthogonal factors of a share of the matrices, which are overwritten."""
        parts = [stack[part] for stack, part in zip(stacks, share, strict=True)]
        return [self.orthogonal(x, x.shape[1:]) if len(x) else x.to(self.dtype) for x in parts]


def shares_of(stacks: Sequence[Sequence[int]], size: int, itemsize: int) -> list[list[slice]]:
    """Return the matrices of each stack that each process orthogonalises.

    The work is shared evenly: what takes longest is given out first, always to the process that has
    the least to do. The bits of a product of matrices depend on where in memory each begins, so a stack
    is divided only if all of its matrices, and their products, begin at multiples of 64 bytes.

    Args:
        stacks: The shape of each, (N, R, C).
        size: The number of processes.
        itemsize: Bytes of a number.
    """
    units = []  # what one process does: its cost, the stack, and how many of its matrices
    for i, (count, rows, columns) in enumerate(stacks):
        short, long = sorted((rows, columns))
        cost = short * short * (2 * long + short)
        aligned = all(n * itemsize % ALIGNED == 0 for n in (rows * columns, short * short))
        units += [(cost, i, 1)] * count if aligned else [(count * cost, i, count)]
    work = [0] * size
    counts = [[0] * len(stacks) for _ in range(size)]
    for cost, i, count in sorted(units, key=lambda unit: -unit[0]):
        rank = work.index(min(work))
        work[rank] += cost
        counts[rank][i] += count
    begin = [0] * len(stacks)
    shares = []
    for given in counts:
        end = [at + count for at, count in zip(begin, given, strict=True)]
        shares.append([slice(*ends) for ends in zip(begin, end, strict=True)])
        begin = end
    return shares
