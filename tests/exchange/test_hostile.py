"""Broken, foreign and hostile files are refused in one line, at no cost, and nothing in them is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exchange import hostile

ROOT = Path(__file__).parents[2]


def test_there_are_many():
    assert len(hostile.CASES) >= 40


@pytest.mark.parametrize("case", hostile.CASES)
def test_a_broken_file_is_refused_in_one_line(charlm, case, capsys):
    options = hostile.prepare(*hostile.CASES[case])
    file = options.pop("file")

    result = charlm("import", file, *(f"--{key}={value}" for key, value in options.items()))

    assert result.code == 4, result.stderr
    assert hostile.CASES[case][0] in result.error
    assert result.stdout == ""
    assert not Path("runs").exists()
    assert not Path("trapped").exists()


def test_all_of_them_take_little_memory_and_time_and_run_nothing(tmp_path):
    """In a process of its own, whose peak is theirs."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.exchange.hostile"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    told = json.loads(found.stdout)

    assert told["done"] == []
    assert told["longest"] < 5
    assert told["after"] - told["before"] < 100  # MiB
