"""Checkpoints in parts, as DCP writes them."""

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from charlm.errors import CheckpointError, MachineError
from charlm.runs.parts import OFFSETS, Parts, in_parts, part_files, write_about
from charlm.runs.weights import load_tensors, load_whole

FILE = "model.safetensors"
WHOLE = {
    "matrix": torch.arange(33.0).view(11, 3),
    "one": torch.ones(1),
    "step": torch.tensor(7.0),
    "bytes": torch.arange(5, dtype=torch.uint8),
}
SHAPES = {f"{FILE}/{name}": x.shape for name, x in WHOLE.items()}


def write_part(folder, number, pieces):
    """Write tensors with their first rows, by name."""
    offsets = {
        f"{FILE}/{name}": {"saved_offsets": [at] + [0] * (x.ndim - 1) if x.ndim else []}
        for name, (at, x) in pieces.items()
    }
    tensors = {f"{FILE}/{name}": x.contiguous() for name, (_, x) in pieces.items()}
    tensors["other.safetensors/x"] = torch.zeros(2)
    offsets["other.safetensors/x"] = {"saved_offsets": [2 * number - 2]}
    facts = {"format": "pt", OFFSETS: json.dumps(offsets)}
    save_file(tensors, folder / f"shard-{number:05}-model-00001-of-00001.safetensors", facts)


@pytest.fixture
def parts(tmp_path):
    """The parts of three processes, of which the last has rows of one tensor only."""
    matrix = WHOLE["matrix"]
    write_part(tmp_path, 1, {"matrix": (0, matrix[:4]), "one": (0, WHOLE["one"])})
    rest = {"step": (0, WHOLE["step"]), "bytes": (0, WHOLE["bytes"])}
    write_part(tmp_path, 2, {"matrix": (4, matrix[4:8]), "one": (1, torch.empty(0)), **rest})
    write_part(tmp_path, 3, {"matrix": (8, matrix[8:]), "one": (1, torch.empty(0))})
    write_about(tmp_path, {FILE: {"version": "2"}}, 3, SHAPES)
    return tmp_path


def test_parts_are_put_together_bit_for_bit(parts):
    assert in_parts(parts)

    tensors, facts = load_whole(parts / FILE)

    assert facts == {"version": "2"}
    assert tensors.keys() == WHOLE.keys()
    for name, x in WHOLE.items():
        assert tensors[name].dtype == x.dtype
        assert torch.equal(tensors[name], x)


def test_parts_are_read_as_pytorch_reads_them(parts):
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    theirs = {f"{FILE}/{name}": torch.zeros_like(x) for name, x in WHOLE.items()}
    with warnings.catch_warnings(action="ignore"):
        load(theirs, storage_reader=HuggingFaceStorageReader(str(parts)), no_dist=True)

    for name, x in load_tensors(parts / FILE).items():
        assert torch.equal(theirs[f"{FILE}/{name}"], x)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_part_that_is_missing_is_noticed(parts, which):
    part_files(parts)[which].unlink()

    with pytest.raises(CheckpointError, match="has 2 parts of 3"):
        load_whole(parts / FILE)


@pytest.mark.parametrize(("number", "rows"), [(2, slice(4, 7)), (3, slice(8, 10))])
def test_rows_that_are_missing_are_refused(parts, number, rows):
    write_part(parts, number, {"matrix": (rows.start, WHOLE["matrix"][rows])})

    with pytest.raises(CheckpointError, match="rows of matrix are missing"):
        load_whole(parts / FILE)


def test_a_tensor_that_is_missing_is_noticed(parts):
    write_part(parts, 2, {"matrix": (4, WHOLE["matrix"][4:8])})

    with pytest.raises(CheckpointError, match="rows of step are missing"):
        load_whole(parts / FILE)


def test_parts_of_before_their_number_was_written_are_read(parts):
    (parts / "parts.json").write_text(json.dumps({FILE: {"version": "2"}}))

    assert torch.equal(load_tensors(parts / FILE)["matrix"], WHOLE["matrix"])


def test_parts_move_only_if_all_are_there(parts, tmp_path):
    (there := tmp_path / "there").mkdir()

    with pytest.raises(MachineError, match="has 3 parts, and 4 processes have written one each"):
        Parts(parts, 4, SHAPES).move(there, {FILE: {}})
    assert list(there.iterdir()) == []

    Parts(parts, 3, SHAPES).move(there, {FILE: {}})
    assert torch.equal(load_tensors(there / FILE)["matrix"], WHOLE["matrix"])


def test_rows_that_are_there_twice_are_refused(parts):
    write_part(parts, 4, {"matrix": (8, WHOLE["matrix"][8:])})
    write_about(parts, {FILE: {}}, 4, SHAPES)

    with pytest.raises(CheckpointError, match="rows of matrix are missing or do not fit together"):
        load_whole(parts / FILE)


@pytest.mark.parametrize("offsets", ["", "[]", "{}", '{"model.safetensors/a": 3}'])
def test_a_part_that_does_not_say_where_it_belongs_is_refused(tmp_path, offsets):
    path = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
    save_file({f"{FILE}/a": torch.ones(2)}, path, {OFFSETS: offsets})
    write_about(tmp_path, {FILE: {}}, 1, {})

    with pytest.raises(CheckpointError, match="does not say where its rows belong") as caught:
        load_whole(tmp_path / FILE)

    assert caught.value.where == path


@pytest.mark.parametrize(
    "about", ["", "[]", "{}", '{"model.safetensors": 1}', '{"model.safetensors": {}, "shapes": 1}']
)
def test_damaged_facts_are_refused(parts, about):
    (parts / "parts.json").write_text(about)

    with pytest.raises(CheckpointError, match="damaged; use an earlier checkpoint"):
        load_whole(parts / FILE)
