"""The work of Muon in several processes, beside the same in one; the processes are threads here."""

import pytest
import torch
from torch import nn

from charlm.training.muon import Muon
from charlm.training.ranks import LostError, Ranks
from charlm.training.sharing import SharedMuon, shares_of
from tests.training.together import in_threads

SHAPES = [(24, 8), (8, 8), (24, 8), (8, 32), (24, 8), (5, 33), (8, 8), (5, 33), (24, 8), (1, 3)]
SHAPES += [(24, 50), (8, 9)] * 4


def updated(make):
    """Return matrices and momenta after two updates."""
    generator = torch.Generator().manual_seed(1)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = make(matrices, lr=0.1)
    for _ in range(2):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()
    return [*matrices, *(optimizer.state[matrix]["momentum_buffer"] for matrix in matrices)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_any_number_of_processes_leaves_the_bits_of_one(size, dtype):
    alone = updated(lambda matrices, lr: Muon(matrices, lr, dtype=dtype))

    found = in_threads(
        size,
        lambda ranks: updated(lambda matrices, lr: SharedMuon(ranks, matrices, lr, dtype=dtype)),
    )

    assert all(all(map(torch.equal, one, alone)) for one in found)


def test_one_that_has_lost_the_others_finishes_the_step():
    class Lonely(Ranks):
        rank, size = 1, 3

        def gather(self, own):
            raise LostError("process 1 of 3", "process 0 ended")

    found = updated(lambda matrices, lr: SharedMuon(Lonely(), matrices, lr))

    assert all(map(torch.equal, found, updated(Muon)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64])
def test_each_matrix_is_in_one_share(size):
    stacks = [(4, 384, 128), (4, 128, 128), (3, 5, 33), (1, 128, 512)]

    shares = shares_of(stacks, size, 4)

    for i, (count, *_) in enumerate(stacks):
        assert [n for share in shares for n in range(count)[share[i]]] == list(range(count))
    assert sum(range(3)[share[2]] == range(3) for share in shares) == 1  # not divided


@pytest.mark.parametrize(
    ("shape", "dtype", "divided"),
    [
        ((24, 50), torch.bfloat16, False),  # every other matrix begins between two multiples of 64
        ((24, 50), torch.float32, True),
        ((8, 9), torch.float32, False),
        ((8, 32), torch.bfloat16, True),
        ((4, 32), torch.float32, True),
        ((4, 32), torch.bfloat16, False),  # the products do
    ],
)
def test_a_stack_is_divided_only_if_all_begin_at_multiples_of_64_bytes(shape, dtype, divided):
    shares = shares_of([(4, *shape)], 2, dtype.itemsize)

    assert (shares[0] == [slice(0, 2)]) == divided


def test_shares_take_equally_long():
    preset = [(4, 384, 128), (4, 128, 128), (4, 512, 128), (4, 128, 512)]  # of `gpt`

    first, second = shares_of(preset, 2, 2)

    assert [part.stop - part.start for part in first] == [2, 2, 2, 2]
    assert [part.stop - part.start for part in second] == [2, 2, 2, 2]
