"""Which process reads which windows, for numbers of processes that no machine here could start."""

import numpy as np
import pytest
from torch.distributed import HashStore

from charlm.config.shares import can_share, check_shares, own_share
from charlm.errors import UsageError
from charlm.text.batches import window_starts
from charlm.training.ranks import Group
from charlm.training.summing import StepSums


@pytest.mark.parametrize("processes", [1, 2, 8, 64, 256, 1024])
@pytest.mark.parametrize("each", [1, 4])
def test_each_window_of_a_step_is_read_by_one_process(processes, each):
    micro, micro_batches = 3, processes * each
    batch_size, windows = micro * micro_batches, 10**6
    read = []
    for rank in range(processes):
        ranks = Group(HashStore(), rank, processes)  # never opened
        for micro_batch in StepSums({}, micro_batches, True, ranks).own:
            first = micro_batch * micro
            read += [*window_starts(7, 5, batch_size, windows, first, micro)]

    np.testing.assert_array_equal(read, window_starts(7, 5, batch_size, windows))


@pytest.mark.parametrize("micro_batches", [1, 6, 12, 1024])
def test_shares_are_neighbours_of_equal_number_in_the_order_of_ranks(micro_batches):
    for processes in (n for n in range(1, 1025) if micro_batches % n == 0):
        shares = [own_share(micro_batches, rank, processes) for rank in range(processes)]

        assert [i for share in shares for i in share] == [*range(micro_batches)]
        assert len({len(share) for share in shares}) == 1


def test_an_exact_sum_needs_whole_branches_and_a_refusal_names_what_will_do():
    assert [n for n in range(1, 25) if can_share(24, n, exact=True)] == [1, 3, 6, 12, 24]
    assert [n for n in range(1, 25) if can_share(24, n, exact=False)] == [1, 2, 3, 4, 6, 8, 12, 24]
    with pytest.raises(UsageError, match="24 micro-batches in a step; start 1, 3, 6, 12 or 24 of"):
        check_shares(24, 1024, exact=True)
