"""The order in which gradients are added, beside the tree drawn by hand."""

import pytest
import torch

from charlm.config.shares import check_shares
from charlm.errors import Stopped, UsageError
from charlm.training.ranks import ONE
from charlm.training.summing import StepSums, TreeSum, added

BATCH = ("train.batch_size=8", "train.micro_batch_size=1", "run.fused=false")


def level_by_level(leaves):
    """Add neighbours, then neighbouring sums, until one is left."""
    while len(leaves) > 1:
        pairs = [leaves[i : i + 2] for i in range(0, len(leaves), 2)]
        leaves = [f"({pair[0]}+{pair[1]})" if len(pair) == 2 else pair[0] for pair in pairs]
    return leaves[0]


def in_tree(leaves):
    tree = TreeSum(lambda left, right: f"({left}+{right})")
    for leaf in leaves:
        tree.push(leaf)
    return tree.total()


@pytest.mark.parametrize("count", range(1, 20))
def test_neighbours_are_added_first(count):
    leaves = [str(i) for i in range(count)]

    assert in_tree(leaves) == level_by_level(leaves)


@pytest.mark.parametrize(
    ("count", "size"), [(8, 2), (8, 4), (8, 8), (12, 3), (12, 6), (6, 3), (5, 5)]
)
def test_branches_of_equal_size_add_up_to_the_same_tree(count, size):
    leaves, share = [str(i) for i in range(count)], count // size

    branches = [in_tree(leaves[i : i + share]) for i in range(0, count, share)]

    assert in_tree(branches) == level_by_level(leaves)
    check_shares(count, size, exact=True)


@pytest.mark.parametrize(("count", "size"), [(12, 2), (6, 2), (9, 3), (12, 4), (4, 3), (2, 4)])
def test_branches_of_other_sizes_are_refused(count, size):
    leaves, share = [str(i) for i in range(count)], -(-count // size)
    branches = [in_tree(leaves[i : i + share]) for i in range(0, count, share)]

    assert in_tree(branches) != level_by_level(leaves) or count % size
    with pytest.raises(UsageError, match=f"^{size} processes: cannot share {count} micro-batches"):
        check_shares(count, size, exact=True)


def test_without_the_tree_any_divisor_will_do():
    check_shares(12, 4, exact=False)
    with pytest.raises(UsageError, match="start 1, 2, 3, 4, 6 or 12 of them"):
        check_shares(12, 5, exact=False)


def test_sparse_gradients_keep_one_row_for_each_that_was_looked_up():
    def rows(places, value):
        values = torch.full((len(places), 2), value)
        return torch.sparse_coo_tensor(
            torch.tensor([places]), values, (9, 2), is_coalesced=True, check_invariants=True
        )

    sums = added({"": torch.tensor(1.0), "t": rows([1, 4], 1.0)}, {"t": rows([4, 7], 0.5)})

    assert sums[""] == 1
    assert sums["t"].is_coalesced()
    assert sums["t"].indices().tolist() == [[1, 4, 7]]
    assert sums["t"].values()[:, 0].tolist() == [1.0, 1.5, 0.5]


@pytest.mark.parametrize("extra", [(), ("model.n_gram=3",)])
def test_a_step_adds_the_gradients_of_micro_batches_in_the_tree(make_loop, extra):
    learner = make_loop(*BATCH, *extra).learner
    learner.model.train()
    leaves = []
    for micro_batch in range(8):
        for parameter in learner.parameters.values():
            parameter.grad = None
        loss = learner._accumulate(micro_batch)
        found = {name: p.grad.to_dense() for name, p in learner.parameters.items()}
        leaves.append([loss, *found.values()])
    quarters = [[x + y for x, y in zip(*leaves[i : i + 2], strict=True)] for i in range(0, 8, 2)]
    halves = [[x + y for x, y in zip(*quarters[i : i + 2], strict=True)] for i in (0, 2)]
    loss, *sums = [x + y for x, y in zip(*halves, strict=True)]

    found = learner.sums.of(learner._accumulate, lambda: False)

    assert torch.equal(found, loss)
    for parameter, wanted in zip(learner.parameters.values(), sums, strict=True):
        assert torch.equal(parameter.grad.to_dense(), wanted)
    in_order = [sum(column[1:], column[0]) for column in zip(*leaves, strict=True)]
    assert not all(map(torch.equal, in_order[1:], sums))  # else the order would not matter here


def test_inexact_sums_leave_the_order_to_torch(make_loop):
    exact = make_loop(*BATCH, out="exact").learner
    fast = make_loop(*BATCH, "train.exact=false", out="fast").learner

    exact.gradients()
    fast.gradients()

    found = [[p.grad for p in one.parameters.values()] for one in (exact, fast)]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert not all(map(torch.equal, *found))


def test_a_stop_between_micro_batches_ends_the_step():
    parameter, seen = torch.nn.Parameter(torch.zeros(1)), []

    def gradient(micro_batch):
        seen.append(micro_batch)
        return torch.zeros(())

    with pytest.raises(Stopped):
        StepSums({"p": parameter}, 4, True, ONE).of(gradient, lambda: len(seen) == 2)

    assert seen == [0, 1]
