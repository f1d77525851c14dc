"""Memory that stays between steps."""

import os
import resource
import time
from pathlib import Path

import pytest
import torch

from charlm.training import kept_memory
from tests.training.conftest import state_hash

CAN = kept_memory.can_keep_memory.__wrapped__  # a fixture puts another in its place
TIMES = kept_memory.fill_times.__wrapped__
of_glibc = pytest.mark.skipif(not CAN(), reason="the C library is not glibc")


@pytest.fixture
def possible(monkeypatch):
    """A machine where keeping memory is possible and saves time."""
    monkeypatch.setattr(kept_memory, "can_keep_memory", lambda: True)
    monkeypatch.setattr(kept_memory, "fill_times", lambda: (2.0, 1.0))


def allocate_and_free():
    """Allocate 144 MiB in many blocks, as a step does."""
    _ = [torch.ones(2**21) for _ in range(18)]


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@of_glibc
def test_memory_that_is_kept_is_not_faulted_in_again_and_is_returned_afterwards(possible):
    kept_memory.keep_memory(True)
    for _ in range(3):
        allocate_and_free()
    before, kept = faults(), resident_mib()
    allocate_and_free()
    again = faults() - before

    kept_memory.keep_memory(False)
    before, returned = faults(), resident_mib()
    allocate_and_free()
    anew = faults() - before

    assert again < 16
    assert kept - returned > 128
    assert anew >= 64  # in the largest pages that there are, 2 MiB


@of_glibc
def test_only_steps_keep_memory_and_no_bit_depends_on_it(make_loop, possible):
    kept, hashes = {}, set()

    for keep in ("true", "false"):
        loop = make_loop(
            f"run.keep_memory={keep}", "train.sample_every=2", "train.save_every=1", out=keep
        )
        kept[keep] = {(record.kind, kept_memory._kept) for record in loop.records()}
        hashes.add(state_hash(loop))
        assert not kept_memory._kept

    others = {("eval", False), ("sample", False), ("save", False)}
    assert kept == {"true": others | {("train", True)}, "false": others | {("train", False)}}
    assert len(hashes) == 1


@pytest.mark.parametrize(("new", "keeps"), [(1.4, False), (1.6, True)])
def test_memory_is_kept_only_where_new_memory_is_slow(new, keeps, possible, monkeypatch):
    calls = []

    class Library:
        def mallopt(self, name, value):
            calls.append((name, value))

        def malloc_trim(self, pad):
            calls.append("trim")

    monkeypatch.setattr(kept_memory, "fill_times", lambda: (new, 1.0))
    monkeypatch.setattr(kept_memory.ctypes, "CDLL", lambda name: Library())

    kept_memory.keep_memory(True)
    kept_memory.keep_memory(True)
    first, calls[:] = [*calls], []
    kept_memory.keep_memory(False)
    kept_memory.keep_memory(False)

    assert first == (list(kept_memory.KEPT.items()) if keeps else [])
    assert calls == ([*kept_memory.RETURNED.items(), "trim"] if keeps else [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.rtld.nns=4:glibc.malloc.hugetlb=1")],
)
def test_what_the_user_has_set_stays(name, value, monkeypatch):
    monkeypatch.setenv(name, value)

    assert not CAN()


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_other_c_libraries_are_left_alone(system, monkeypatch):
    monkeypatch.setattr(kept_memory.os, "environ", {})
    monkeypatch.setattr(kept_memory.os, "name", system)
    monkeypatch.setattr(kept_memory.ctypes, "CDLL", lambda name: object())  # without its functions

    assert not CAN()


def test_filling_memory_takes_time():
    began = time.perf_counter()
    new, used = TIMES()

    assert new > 0
    assert used > 0
    assert new + used < time.perf_counter() - began
