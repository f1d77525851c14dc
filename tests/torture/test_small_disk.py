"""A disk that is really full, or really read-only: what `tests.training.test_full_disk` only feigns."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.torture.lives import ROOT

APART = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if (
        not shutil.which(APART[0])
        or subprocess.run([*APART, "true"], capture_output=True).returncode
    ):
        pytest.skip("no mounts of one's own on this system")
    done = subprocess.run(
        [*APART, sys.executable, "-m", "tests.torture.small_disk", tmp_path_factory.mktemp("disk")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def error(command):
    """The code and the one line of a command that was refused."""
    (line,) = command["said"]
    return command["code"], line.removeprefix("charlm: error: ")


def test_a_run_that_does_not_fit_is_refused_before_it_begins(found):
    code, line = error(found["too large to begin"])

    assert code == 5
    assert line.startswith("run: this run needs about 40.01 MiB of disk and 3.98")


def test_a_disk_that_is_full_for_a_while_costs_saves_and_a_sample_but_no_step(found):
    said = "\n".join(found["full for a while"]["said"])

    assert found["full for a while"]["code"] == 0
    assert said.count("a save failed; training continues, step 10 is saved: ") == 2
    assert (
        said.count(
            "a sample could not be saved; training continues: run/samples/step-20.txt: No space"
        )
        == 1
    )
    assert found["saved"] == [25, 30]
    assert found["undisturbed"] == {"code": 0, "said": []}
    assert found["equal"] == [True, True]


def test_a_full_disk_is_refused_and_can_be_read_from(found):
    code, line = error(found["full"])

    assert code == 5
    assert line == "run: No space left on device; free some space there or choose another place"
    assert error(found["full, new"])[0] == 5
    assert not found["left behind"]
    assert found["saved when full"] == found["saved"]
    assert [reader["code"] for reader in found["full, read"]] == [0, 0, 0]


def test_a_read_only_disk_is_refused_and_can_be_read_from(found):
    for name in ("read-only", "read-only, new"):
        code, line = error(found[name])
        assert code == 5
        assert line.endswith("Read-only file system; the disk is read-only; choose another place")
    assert [reader["code"] for reader in found["read-only, read"]] == [0, 0, 0]


def test_once_there_is_room_the_run_goes_on(found):
    assert found["in the end"] == {
        "code": 0,
        "said": ["charlm: note: changed from here on: train.max_steps 30 -> 35"],
    }
