"""Killed or asked to stop at any instant, a run loses little and ends with the same bits."""

import errno
import signal
import sys

import pytest

from charlm.runs.metrics import read_metrics
from tests.torture.lives import Lives, Plan
from tests.torture.trials import (
    REFUSALS,
    SAVE_EVERY,
    Tally,
    begin,
    command,
    crowded,
    half,
    halfway,
    killed,
    larger_than_memory,
    outcome,
    read_beside,
    refused,
    saved_step,
    signalled,
    straight,
)

NAMES = ("bigram", "gpt2, dropout, accumulation", "modern, muon", "mixture")


@pytest.fixture(scope="module")
def lives():
    with Lives() as lives:
        yield lives


@pytest.fixture(scope="module")
def undisturbed(lives, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return {name: straight(lives, folder / str(i), name) for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    lives, undisturbed, tmp_path, name
):
    tally, seed = Tally(), 0
    while tally.kills < 10:
        killed(lives, tmp_path / str(seed), undisturbed[name], seed, tally)
        seed += 1

    assert tally.failures == []
    assert tally.inside
    assert max(tally.redone) <= SAVE_EVERY


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_asked_to_stop_loses_no_step(lives, undisturbed, tmp_path, name):
    tally = Tally()
    for seed in range(5):
        signalled(lives, tmp_path / str(seed), undisturbed[name], seed, tally)

    assert tally.failures == []


@pytest.mark.parametrize("broken", ["random batches", "no cut of the log"])
def test_killing_shows_what_is_missing(lives, undisturbed, tmp_path, broken):
    tally, seed = Tally(), 0
    while not tally.failures:
        killed(lives, tmp_path / str(seed), undisturbed["bigram"], seed, tally, broken)
        seed += 1
        assert seed < 50


def test_asking_shows_what_is_missing(lives, undisturbed, tmp_path):
    tally, seed = Tally(), 0
    like = undisturbed["gpt2, dropout, accumulation"]  # most of its life is steps
    while not tally.failures:
        signalled(lives, tmp_path / str(seed), like, seed, tally, "no flag")
        seed += 1
        assert seed < 50


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("how", REFUSALS)
def test_whatever_the_disk_refuses_no_older_checkpoint_is_harmed(
    lives, undisturbed, tmp_path, error, how
):
    tally, like = Tally(), undisturbed["bigram"]
    begun = halfway(lives, tmp_path / "half", like)
    for operation in range(error % 23, half(like) + 1, 25):
        refused(lives, tmp_path / str(operation), like, begun, operation, error, how, tally)

    assert tally.failures == []


def test_of_many_that_start_at_once_one_begins(lives, tmp_path):
    tally = Tally()

    crowded(lives, tmp_path / "crowd", 12, tally)

    assert tally.failures == []
    assert len(tally.waited) == 11


def test_who_reads_a_run_that_saves_and_prunes_finds_a_whole_checkpoint(lives, tmp_path):
    tally = Tally()

    read_beside(lives, tmp_path / "read", 16, tally)

    assert tally.failures == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_text_larger_than_memory_is_trained_on_in_little_of_it(tmp_path):
    figures, failures = larger_than_memory(tmp_path / "run")

    assert failures == []
    assert figures["MiB of disk"] < 1


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this system")
def test_usr1_saves_and_the_run_goes_on(lives, undisturbed, tmp_path):
    like = undisturbed["modern, muon"]
    run = begin(tmp_path / "a", like.name)

    life = lives.live(tmp_path / "a", *command(run), plan=Plan(step=13, number=signal.SIGUSR1))

    assert life.code == 0
    assert 13 in [r["step"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "save"]
    assert outcome(run) == like.outcome
    assert saved_step(run) == 30
