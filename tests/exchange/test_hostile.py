"""Broken, foreign and hostile files are refused in one line, at no cost, and nothing in them is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exchange.hostile import CASES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What importing each of them did, in a process of its own, whose peak of memory is theirs."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.exchange.hostile"],
        cwd=tmp_path_factory.mktemp("hostile"),
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_broken_file_is_refused_in_one_line_and_runs_nothing(told, case):
    found = told["cases"][case]

    assert found["code"] == 4, found
    assert found["stdout"] == ""
    assert found["stderr"].startswith(f"charlm: error: {case.split(':')[0]}: "), found
    assert found["stderr"].count("\n") == 1, found
    assert found["done"] == []
    assert found["seconds"] < 5


def test_all_of_them_take_little_memory_and_leave_nothing(told):
    good = told["cases"]["good"]
    assert (good["code"], len(CASES) >= 40) == (0, True), good
    assert any(event == "open" for event, _ in good["done"])  # of the new run: the hook hears it
    assert told["after"] - told["before"] < 100  # MiB
    assert told["left"] == ["ckpt.pt", "config.json", "meta.pkl", "model.pt", "text.txt"]
