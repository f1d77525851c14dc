"""Ordinary checkpoints from those in parts."""

import pytest
import torch

from charlm.errors import CheckpointError
from charlm.runs import RunFolder
from charlm.runs.merging import merge_run
from charlm.runs.parts import in_parts, part_files, write_about
from charlm.runs.state import OPTIMIZER
from charlm.runs.weights import WEIGHTS, load_tensors
from charlm.storage import new_folder, verify_folder
from tests.runs.test_parts import SHAPES, WHOLE, write_part


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints, each in one part."""
    run = RunFolder(tmp_path)
    run.checkpoints.folder.mkdir()
    for step in (1, 2, 3):
        with new_folder(run.checkpoints.path(step), {"kind": "checkpoint", "step": step}) as folder:
            write_part(folder, 1, {name: (0, x) for name, x in WHOLE.items()})
            write_about(folder, {WEIGHTS: {}, OPTIMIZER: {}}, 1, SHAPES)
    return run


def test_the_others_are_merged_beside_one_that_is_damaged(run):
    (damaged,) = part_files(run.checkpoints.path(1))
    damaged.write_bytes(damaged.read_bytes()[:-1])

    with pytest.raises(CheckpointError, match="step-1"):
        merge_run(run)

    assert in_parts(run.checkpoints.path(1))
    for step in (2, 3):
        path = run.checkpoints.path(step)
        verify_folder(path)
        assert not in_parts(path)
        assert torch.equal(load_tensors(path / WEIGHTS)["matrix"], WHOLE["matrix"])


def test_a_second_time_there_is_nothing_to_merge(run):
    assert merge_run(run) == [1, 2, 3]

    assert merge_run(run) == []
