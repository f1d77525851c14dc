"""Times of a step, beside closed forms; which choice is the best, and how many processes pay."""

from dataclasses import astuple, replace

import pytest

from charlm.config import load_config
from charlm.costs.cores import Times
from charlm.costs.demands import STRATEGIES, exact
from charlm.costs.devices import GPUS
from charlm.costs.devices import gpu as kind_of
from charlm.costs.estimate import best, choices, estimate, micro_batch, most_that_pay, rows
from charlm.costs.work import work_of
from charlm.errors import UsageError


@pytest.mark.parametrize("strategy", ["ddp exact", "ddp reduced"])
def test_one_process_takes_as_long_by_each_strategy(work, gpu, strategy):
    alone = estimate(work, gpu, "none", 1, 8)

    assert estimate(work, gpu, strategy, 1, 8).seconds == alone.seconds


def test_twice_the_bandwidth_takes_half_the_time_of_exchanging(work, gpu):
    fast = replace(gpu, inside=2 * gpu.inside)
    slow, quick = (estimate(work, one, "ddp reduced", 8, 8) for one in (gpu, fast))

    assert quick.exchanging == pytest.approx(slow.exchanging / 2)
    assert (quick.waiting, quick.computing) == (slow.waiting, slow.computing)


def test_a_step_adds_up_its_parts_by_hand(dense, cores):
    found = estimate(dense, cores, "ddp exact", 4, 8)  # two on each core, two micro-batches each

    bytes_sent = 3 * 4 * dense.weights + 3 / 4 * 4 * dense.hidden
    assert found.computing == pytest.approx(2 * 2 * (2 + 8 * 4))
    assert found.updating == pytest.approx(2 * (0.6 + 0.4 / 4 + 0.2))
    assert found.exchanging == pytest.approx(2 * bytes_sent * 1e-9)
    assert found.waiting == pytest.approx(2 * 3 * 3 * 0.01)
    parts = found.computing, found.updating, found.exchanging, found.waiting
    assert found.seconds == pytest.approx(sum(parts))
    assert found.chars_per_second == pytest.approx(64 * 128 / sum(parts))


def test_more_processes_than_cores_compute_no_faster(work, cores):
    two, four, eight = (estimate(work, cores, "ddp reduced", n, 4) for n in (2, 4, 8))

    assert two.computing == four.computing == eight.computing
    assert two.seconds < four.seconds < eight.seconds


def test_split_weights_are_computed_without_fused_passes(dense, cores):
    split, whole = (estimate(dense, cores, name, 2, 8) for name in ("fsdp2", "ddp reduced"))

    assert split.computing == pytest.approx(1.5 * whole.computing)
    assert split.updating == pytest.approx(0.6 / 2 + 0.4 + 0.2)


@pytest.mark.parametrize(("threads_help", "faster"), [(4, 2), (2, 1)])
def test_threads_help_split_weights_as_they_help_others(dense, cores, threads_help, faster):
    alone = Times(*(x / threads_help for x in astuple(cores.together)))
    two, four = (
        estimate(dense, one, "fsdp2", 2, 8) for one in (cores, replace(cores, count=4, alone=alone))
    )

    assert four.computing == pytest.approx(two.computing / faster)


def test_each_strategy_exchanges_in_its_own_ways(dense, cores):
    """Four processes, two on each core: 6 bytes a weight by gloo's ring, all else through memory."""
    exactly, reduced, split = (
        estimate(dense, cores, name, 4, 8) for name in ("ddp exact", "ddp reduced", "fsdp2")
    )

    results = 3 / 4 * 4 * dense.hidden
    assert exactly.exchanging == pytest.approx(2 * (12 * dense.weights + results) * 1e-9)
    assert exactly.waiting == pytest.approx(2 * 3 * 3 * 0.01)
    assert reduced.exchanging == pytest.approx(2 * (6 * dense.weights * 4e-9 + results * 1e-9))
    assert reduced.waiting == pytest.approx(2 * 3 * (2 * 0.02 + 3 * 0.01))
    assert split.exchanging == pytest.approx(2 * 4 / 3 * split.sent * 8e-9)
    demand = STRATEGIES["fsdp2"](dense, 4, 8, True)
    assert split.waiting == pytest.approx(2 * 2 * demand.calls * 0.03)


def test_large_products_on_a_gpu_take_their_operations_over_what_it_reaches(gpu):
    work = work_of(load_config("nanogpt-gpu", ["train.batch_size=8192"]), 65)

    found = estimate(work, gpu, "none", 1, 8192)

    flops = work.flops * work.batch_chars
    assert found.computing == pytest.approx(flops / (0.5 * 989e12))


def test_a_gpu_exchanges_while_it_computes_split_weights_only(work, gpu):
    split, whole = (estimate(work, gpu, name, 8, 8) for name in ("fsdp2", "ddp reduced"))

    longer = max(split.computing, split.exchanging + split.waiting)
    assert split.seconds == pytest.approx(longer + split.updating)
    assert whole.seconds > whole.computing + whole.exchanging


def test_between_nodes_the_network_counts(work, gpu):
    near, far = (estimate(work, gpu, "ddp exact", n, 1) for n in (8, 16))

    sent = exact(work, 16, 1, False).sent / exact(work, 8, 1, False).sent
    assert far.exchanging / near.exchanging == pytest.approx(sent * gpu.inside / gpu.between)


def test_the_best_choice_is_the_shortest_step_that_fits(work, gpu):
    for processes in (1, 4, 64):
        every = list(choices(work, gpu, processes))

        found = best(work, gpu, processes)

        assert found.seconds == min(one.seconds for one in every)
        assert all(work.windows % (one.micro * processes) == 0 for one in every)
    assert best(work, replace(gpu, memory=1e6), 4) is None


def test_processes_pay_while_each_step_is_a_tenth_faster(work, gpu):
    slow = replace(gpu, peak=gpu.peak / 1e4)  # computing is what takes long
    cut_off = replace(slow, inside=1e3, between=1e3)

    assert most_that_pay(work, slow, 64).processes == 64
    assert most_that_pay(work, cut_off, 64).processes == 1


def test_a_micro_batch_is_the_share_of_a_process_unless_it_is_given():
    free, given = load_config("gpt"), load_config("gpt", ["train.micro_batch_size=3"])

    assert [micro_batch(free, n) for n in (1, 4, 12)] == [12, 3, 1]
    assert [micro_batch(given, n) for n in (1, 4)] == [3, 3]
    with pytest.raises(
        UsageError, match="5 processes: cannot share 12 windows in a step; start 1, "
    ):
        micro_batch(free, 5)
    with pytest.raises(UsageError, match="12 processes: cannot share 4 micro-batches in a step"):
        micro_batch(given, 12)


def test_a_model_without_blocks_is_not_split(gpu):
    config = load_config("lstm", ["train.batch_size=64"])

    names = [one.strategy for one in rows(config, work_of(config, 65), gpu, 4)]

    assert names == ["none", "ddp exact", "ddp reduced"]


def test_each_gpu_has_a_source_and_an_unknown_one_is_refused_with_the_kinds():
    assert all("datasheet" in one.source or "whitepaper" in one.source for one in GPUS.values())
    assert kind_of("H100") is GPUS["h100"]
    with pytest.raises(UsageError, match="gpus: unknown kind 'gtx'; choose a100, h100, h200, b200"):
        kind_of("gtx")
