"""A run in the lower layer of a real overlay file system, as in a container's image."""

import shutil
import subprocess
import sys

import pytest

from tests.torture.lives import ROOT
from tests.torture.test_small_disk import APART

# Its layers must not be on an overlay themselves, as /tmp is in a container.
INSIDE = """\
set -e
mount -t tmpfs tmpfs layers
mkdir layers/upper layers/work
mount -t overlay overlay -o userxattr,lowerdir=lower,upperdir=layers/upper,workdir=layers/work whole
cd whole
"$PYTHON" -m charlm train --resume --out runs/tiny -q train.max_steps=12 train.save_every=1
echo more >> text.txt
"$PYTHON" -m charlm train --resume --out runs/tiny -q train.max_steps=14 --allow-new-data
"$PYTHON" -m charlm verify runs/tiny
ls -A runs/tiny runs/tiny/checkpoints
"""


@pytest.mark.slow
def test_a_run_of_an_image_goes_on_from_a_damaged_checkpoint_and_with_another_text(
    trained, tmp_path
):
    if (
        not shutil.which(APART[0])
        or subprocess.run([*APART, "true"], capture_output=True).returncode
    ):
        pytest.skip("no mounts of one's own on this system")
    weights = trained / "checkpoints/step-6/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    place = tmp_path / "place"
    shutil.copytree(tmp_path, place / "lower", ignore=lambda *_: ["place"])
    (place / "layers").mkdir()
    (place / "whole").mkdir()

    done = subprocess.run(
        [*APART, "sh", "-c", INSIDE],
        cwd=place,
        env={"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    left = done.stdout.splitlines()
    assert {"damaged-step-6", "step-13", "step-14"} < set(left)
    assert not [name for name in left if name.startswith((".tmp-", "step-3", "damaged  "))]
