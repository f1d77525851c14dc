import os

import numpy as np
import pytest

from charlm.errors import DataError, MachineError
from charlm.text import IdArray, Split, TokenFile
from charlm.text import tokens as module

IDS = np.arange(100, dtype="<u2") * 600


@pytest.fixture
def file(tmp_path):
    IDS.tofile(tmp_path / "ids.bin")
    with_file = TokenFile(tmp_path / "ids.bin", np.dtype("<u2"), 100)
    yield with_file
    with_file.close()


@pytest.mark.parametrize(("start", "count"), [(0, 100), (0, 0), (99, 1), (37, 21), (100, 0)])
def test_any_stretch_is_read_as_it_was_written(file, start, count):
    ids = file.read(start, count)

    assert ids.dtype == np.dtype("<u2")
    assert ids.tolist() == IDS[start : start + count].tolist()


@pytest.mark.parametrize("change", [-1, 1, -200])
def test_a_file_of_another_size_than_its_manifest_says_is_refused(tmp_path, file, change):
    os.truncate(file.path, 200 + change)

    with pytest.raises(DataError, match=rf"ids\.bin: {200 + change} bytes, its manifest says 200"):
        TokenFile(file.path, file.dtype, file.size)


def test_a_file_that_is_not_there_is_a_machine_error(tmp_path):
    with pytest.raises(MachineError, match=r"gone\.bin: No such file"):
        TokenFile(tmp_path / "gone.bin", np.dtype("u1"), 1)


def test_a_file_that_shrank_while_open_is_a_short_read(file):
    os.truncate(file.path, 100)

    assert file.read(0, 50).tolist() == IDS[:50].tolist()
    with pytest.raises(DataError, match="cut short while in use: 20 of 40 bytes at byte 80"):
        file.read(40, 20)


@pytest.mark.skipif(not hasattr(os, "pread"), reason="positioned reads only")
def test_a_read_that_comes_in_pieces_is_put_together(file, monkeypatch):
    real = os.pread
    monkeypatch.setattr(module.os, "pread", lambda fd, n, offset: real(fd, min(n, 7), offset))

    assert file.read(3, 50).tolist() == IDS[3:53].tolist()


@pytest.mark.parametrize("dtype", ["u1", "<u4"])
def test_positions_beyond_four_gibibytes_are_read(tmp_path, dtype):
    path, last = tmp_path / "sparse.bin", (1 << 32) + 12_345
    width = np.dtype(dtype).itemsize
    with path.open("wb") as file:
        file.seek(last * width)
        file.write(np.array([200], dtype).tobytes())

    tokens = TokenFile(path, np.dtype(dtype), last + 1)
    split = Split(tokens, 1 << 32, last + 1)

    assert len(split) == 12_346
    assert split.read(12_343, 3).tolist() == [0, 0, 200]
    tokens.close()


def test_a_split_reads_from_its_own_start(file):
    assert Split(file, 90, 100).read(0, 10).tolist() == IDS[90:].tolist()


def as_split(file):
    return Split(file, 20, 30)


def as_array(file):
    return IdArray(IDS[20:30])


@pytest.mark.parametrize("make", [as_split, as_array])
@pytest.mark.parametrize(("first", "count"), [(-1, 2), (9, 2), (10, 1), (0, 11), (5, -1)])
def test_ids_outside_a_part_are_refused(file, make, first, count):
    with pytest.raises(IndexError, match=f"ids {first} to {first + count} of a text of 10"):
        make(file).read(first, count)


@pytest.mark.parametrize("make", [as_split, as_array])
def test_ids_inside_a_part_are_read(file, make):
    ids = make(file)

    assert len(ids) == 10
    assert ids.read(0, 10).tolist() == IDS[20:30].tolist()
    assert ids.read(9, 1).tolist() == [IDS[29]]
    assert ids.read(10, 0).tolist() == []
