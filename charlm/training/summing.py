"""Adding up the gradients of micro-batches, in an order that does not depend on who computed them.

Floating-point sums depend on their order. So the gradients of the micro-batches of a step are the
leaves of one binary tree: neighbours are added first, then neighbouring sums, and so on; one that has
no neighbour goes up as it is. A process that computed 2^k neighbours has added up a whole branch, so
processes that exchange their branches, and add these up in the same way, come to the same bits as one
that computed all leaves.

The sums of a step's losses and gradients are named by parameter; the loss has the name "".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.config.shares import check_shares, own_share
from charlm.errors import Stopped
from charlm.training.ranks import Ranks

LOSS = ""  # its name among the sums

Sums = dict[str, Tensor]  # a gradient is dense, or sparse and coalesced
Summand = TypeVar("Summand")


class TreeSum(Generic[Summand]):
    """Adds up summands as they come, in the order of a binary tree.

    Like a binary counter, it keeps one sum for each size, at most log2 of their number.

    Args:
        add: Returns the sum of two neighbours; it may overwrite the first.
    """

    def __init__(self, add: Callable[[Summand, Summand], Summand]) -> None:
        self._add = add
        self._branches: list[tuple[int, Summand]] = []  # with their heights, the highest first

    def push(self, leaf: Summand) -> None:
        """Add the next leaf."""
        height, branch = 0, leaf
        while self._branches and self._branches[-1][0] == height:
            branch = self._add(self._branches.pop()[1], branch)
            height += 1
        self._branches.append((height, branch))

    def total(self) -> Summand:
        """Return the sum of all leaves, at least one; there are none afterwards."""
        _, total = self._branches.pop()
        while self._branches:
            total = self._add(self._branches.pop()[1], total)
        return total


def added(left: Sums, right: Sums) -> Sums:
    """Return the sums of two micro-batches or branches; dense ones of `left` are overwritten."""
    both = [name for name, x in left.items() if name in right and not x.is_sparse]
    if both:
        torch._foreach_add_([left[name] for name in both], [right[name] for name in both])
    for name, x in right.items():
        if name not in left:
            left[name] = x
        elif x.is_sparse:
            left[name] = left[name] + x
    return left


def joined(left: Sums, right: Sums) -> Sums:
    """Return the sums of the branches of two processes, which stay as they are."""
    return {name: x + right[name] for name, x in left.items()}


class StepSums:
    """Adds up the losses and gradients of the micro-batches of a step, over all processes.

    Args:
        parameters: Of the model, by name.
        micro_batches: In a step, over all processes.
        exact: Whether to add in the order of the tree; else in whichever takes the least time.
        ranks: The processes.

    Raises:
        UsageError: So many processes cannot share so many micro-batches.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], micro_batches: int, exact: bool, ranks: Ranks
    ) -> None:
        check_shares(micro_batches, ranks.size, exact)
        self.parameters, self.exact, self.ranks = parameters, exact, ranks
        self.own = own_share(micro_batches, ranks.rank, ranks.size)

    def of(self, gradient: Callable[[int], Tensor], should_stop: Callable[[], bool]) -> Tensor:
        """Return the sum of the losses of a step; that of each gradient is left in `.grad`.

        Args:
            gradient: Computes a micro-batch: it adds to the gradients, and returns the loss.
            should_stop: Asked between micro-batches; then all processes raise `Stopped`.
        """
        try:
            sums = self._own_sums(gradient, should_stop)
        except Stopped:
            self.ranks.give_up()
            raise
        if self.ranks.size > 1:
            sums = self._of_all(sums)
        for name, parameter in self.parameters.items():
            parameter.grad = sums.get(name)
        return sums[LOSS]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm of all gradients together."""
        return torch.nn.utils.get_total_norm(gradients)

    def _own_sums(self, gradient: Callable[[int], Tensor], should_stop: Callable[[], bool]) -> Sums:
        """Return the sums over the micro-batches of this process."""
        tree = TreeSum(added)
        self._clear()
        in_place = None  # the losses of gradients that PyTorch has added up
        for micro_batch in self.own:
            if micro_batch != self.own[0] and should_stop():
                raise Stopped
            loss = gradient(micro_batch)
            if self.exact:
                tree.push({LOSS: loss, **self._taken()})
            else:
                in_place = loss if in_place is None else in_place + loss
        return tree.total() if in_place is None else {LOSS: in_place, **self._taken()}

    def _of_all(self, own: Sums) -> Sums:
        """Return the sums over all processes."""
        dense = {name: x for name, x in own.items() if not x.is_sparse}
        tables = {name: x for name, x in own.items() if x.is_sparse}
        sums: Sums = {}
        if not self.exact:
            sums = dict(zip(dense, self.ranks.all_reduce([*dense.values()]), strict=True))
            dense = {}
        rows = [part for x in tables.values() for part in (x.indices()[0], x.values())]
        tree = TreeSum(joined)
        for parts in self.ranks.gather([*dense.values(), *rows]):
            found = iter(parts)
            branch = {name: next(found) for name in dense}
            for name, like in tables.items():
                branch[name] = _table(next(found), next(found), like)
            tree.push(branch)
        return sums | tree.total()

    def _clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _taken(self) -> Sums:
        """Take the gradients out of the parameters."""
        found = {}
        for name, parameter in self.parameters.items():
            if (x := parameter.grad) is not None:
                found[name] = x.coalesce() if x.is_sparse else x
                parameter.grad = None
        return found


def _table(rows: Int[Tensor, "K"], values: Float[Tensor, "K C"], like: Tensor) -> Tensor:
    """Return the gradient of a table, of the shape of another, that is 0 but in some rows."""
    return torch.sparse_coo_tensor(
        rows[None], values, like.shape, is_coalesced=True, check_invariants=False
    )
