"""What each strategy asks of a process, beside closed forms."""

import pytest

from charlm.config import load_config
from charlm.config.size import training_bytes
from charlm.costs.demands import STRATEGIES, exact, fsdp2, none, reduced
from charlm.costs.work import work_of
from charlm.models import build_model
from charlm.models.ngram_embedding import NGramEmbedding
from charlm.training.slots import SPARE

FLOAT = 4


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_one_process_sends_nothing(work, strategy):
    demand = strategy(work, 1, 64, True)

    assert demand.sent == 0
    assert (demand.adamw, demand.muon) == (1, 1)


@pytest.mark.parametrize("processes", [2, 4, 64])
def test_bytes_are_those_of_the_closed_forms(dense, processes):
    bytes_of_gradients = FLOAT * dense.weights

    def sent(strategy):
        return strategy(dense, processes, 64 // processes, True).sent

    others = (processes - 1) / processes
    results = others * FLOAT * dense.hidden  # of Muon
    assert sent(exact) == (processes - 1) * bytes_of_gradients + results
    assert sent(reduced) == pytest.approx(2 * others * bytes_of_gradients + results)
    # Twice the blocks, once the rest, all gradients, and Muon's means.
    moved = 2 * dense.in_blocks + (dense.weights - dense.in_blocks) + dense.weights + dense.hidden
    assert sent(fsdp2) == pytest.approx(others * FLOAT * moved)


def test_an_exact_sum_of_two_sends_as_much_as_a_ring(dense):
    assert exact(dense, 2, 32, True).sent == pytest.approx(reduced(dense, 2, 32, True).sent)


@pytest.mark.parametrize("strategy", [exact, reduced])
def test_processes_share_the_work_of_muon(work, strategy):
    assert strategy(work, 4, 16, True).muon == 1 / 4
    assert strategy(work, 4, 16, True).adamw == 1


def test_what_is_split_is_whole_in_all_processes_together(work):
    alone = none(work, 1, 8, cores=False).held
    for processes in (2, 8):
        split = fsdp2(work, processes, 8, cores=False).held
        for purpose in ("weights", "gradients", "optimizer"):
            assert processes * split[purpose] == pytest.approx(alone[purpose])


@pytest.mark.parametrize("preset", ["gpt", "nanogpt-cpu", "lstm"])
def test_one_process_holds_what_training_is_estimated_to(preset):
    config = load_config(preset)
    work = work_of(config, 65)

    held = none(work, 1, config.train.batch_size, cores=False).held

    expected = training_bytes(config, 65)
    assert {name: held[name] for name in expected} == expected
    assert sum(held.values()) == sum(expected.values())


def exchange(work, processes, micro, cores):
    return exact(work, processes, micro, cores).held["exchange"] / (FLOAT * work.weights)


def test_collected_sums_need_memory_for_those_of_all_processes(dense):
    assert exchange(dense, 8, 8, cores=False) == 8 + 1  # of all, and its own in one piece
    assert exchange(dense, 8, 2, cores=False) == 8 + 1 + 2  # of 4 micro-batches, two sums wait


def test_on_one_machine_each_process_holds_two_files_however_many_there_are(dense):
    muon = dense.hidden / dense.weights
    for processes in (2, 4, 8):
        assert exchange(dense, processes, 8, cores=True) == pytest.approx(
            2 * SPARE + (3 - processes.bit_length() + 1) + muon
        )


def test_a_table_sends_the_rows_that_were_looked_up(work):
    rows = work.rows(32)

    assert work.rows(1e9) == pytest.approx(work.table / work.width)
    assert 0 < rows < 32 * 128 * 4
    expected = FLOAT * work.dense + rows * (FLOAT * work.width + 8)
    results = FLOAT * work.hidden / 2
    assert exact(work, 2, 32, True).sent == pytest.approx(expected + results)
    assert exact(work, 2, 32, False).sent == FLOAT * work.weights + results


def test_the_step_is_that_of_the_model():
    config = load_config("gpt")
    work, model = work_of(config, 65), build_model(config.model, 65)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    (table,) = [part.table.weight for part in model.modules() if isinstance(part, NGramEmbedding)]

    assert work.weights == sum(sizes.values())
    assert work.in_blocks == sum(n for name, n in sizes.items() if name.startswith("blocks."))
    assert work.blocks == len(model.blocks)
    assert (work.table, work.width, work.lookups) == (table.numel(), table.shape[1], 4)
