"""Tests of how torch's threads wait on a busy machine."""

import os
import subprocess
import sys

import pytest

from charlm.config import cores


@pytest.fixture
def running(tmp_path, monkeypatch):
    """Return a function that says how many threads run on a machine of four cores, own two."""
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(cores, "own_cores", lambda: 2)
    monkeypatch.setattr(cores, "BETWEEN", 0.0)

    def write(count):
        path = tmp_path / "loadavg"
        path.write_text(f"0.00 0.01 0.05 {count}/123 4567\n")
        return path

    return write


@pytest.mark.parametrize(("count", "taken"), [(1, False), (3, False), (4, True), (9, True)])
def test_cores_are_taken_when_others_leave_too_few(running, count, taken):
    assert cores.cores_are_taken(running(count)) is taken


def test_an_unknown_system_is_taken_for_a_quiet_one(tmp_path):
    (tmp_path / "odd").write_text("something else")

    assert not cores.cores_are_taken(tmp_path / "missing")
    assert not cores.cores_are_taken(tmp_path / "odd")


@pytest.mark.parametrize(
    ("given", "taken", "then"), [("1000", True, "0"), ("1000", False, "1000"), ("77", True, "77")]
)
def test_threads_sleep_at_once_on_a_busy_machine_unless_told_otherwise(
    monkeypatch, given, taken, then
):
    monkeypatch.setenv("GOMP_SPINCOUNT", given)
    monkeypatch.setattr(cores, "cores_are_taken", lambda: taken)
    cores.let_waiting_threads_sleep()

    assert os.environ["GOMP_SPINCOUNT"] == then


@pytest.mark.parametrize(
    ("given", "then"),
    [({}, cores.SPINS), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_spin_briefly_unless_told_otherwise(given, then):
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import charlm, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=plain | given, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == then
