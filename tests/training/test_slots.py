"""Memory that processes share; the processes are threads here, and the memory is a folder on the disk."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from charlm.training import slots
from charlm.training.slots import ALIGNED, Slots, bytes_of, pack, unpack

PARTS = [
    torch.tensor(3.5),
    torch.arange(15.0).view(3, 5),
    torch.arange(4, dtype=torch.int64),
    torch.ones(2, 3, 4, dtype=torch.bfloat16),
]


def equal(found, wanted):
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


def opened(size, name="a"):
    """Return the slots of each process."""
    met, said = threading.Barrier(size, timeout=20), [False] * size

    def one(rank):
        def all_did(own):
            said[rank] = own
            met.wait()
            answer = all(said)
            met.wait()
            return answer

        return Slots(name, rank, size, all_did)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "PLACE", tmp_path)
    return tmp_path


def test_tensors_come_back_and_begin_where_an_allocator_could_have_put_them():
    buffer = torch.zeros(bytes_of(PARTS), dtype=torch.uint8)

    pack(PARTS, buffer)
    found = unpack(buffer, PARTS)

    assert equal(found, PARTS)
    assert all((x.data_ptr() - buffer.data_ptr()) % ALIGNED == 0 for x in found)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_the_first_dimension_may_differ(length):
    sent = [torch.randn(length, 3), torch.tensor(1.0), torch.arange(length)]
    buffer = torch.zeros(bytes_of(sent) + 64, dtype=torch.uint8)  # more than it needs

    pack(sent, buffer)

    assert equal(unpack(buffer, [torch.empty(4, 3), torch.tensor(0.0), torch.arange(2)]), sent)


def test_each_process_reads_what_the_others_wrote_also_after_a_file_grew():
    first, second = opened(2)
    for turn, size in ((0, 10), (1, 20), (0, 300_000)):
        sent = [torch.randn(size), torch.arange(size)]

        assert first.write(turn, sent)
        found = unpack(second.read(0, turn, bytes_of(sent)), sent)

        assert equal(found, sent)


def test_what_was_read_stays_while_the_other_turn_is_written():
    first, second = opened(2)
    first.write(0, [torch.zeros(9)])
    (read,) = unpack(second.read(0, 0, bytes_of([torch.zeros(9)])), [torch.zeros(9)])

    first.write(1, [torch.ones(9)])

    assert not read.any()


def test_no_file_has_a_name_once_all_have_opened_it(place):
    opened(3)

    assert list(place.iterdir()) == []


def test_a_place_that_one_process_cannot_write_is_used_by_none(place, monkeypatch):
    (place / "charlm-a-1-0").touch()  # another has the name

    with pytest.raises(OSError, match="different file systems"):
        opened(2)

    assert [path.name for path in place.iterdir()] == ["charlm-a-1-0"]


def test_a_second_file_that_cannot_be_made_leaves_no_first_one(place):
    (place / "charlm-a-0-1").touch()
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(OSError, match="different file systems"):
        opened(2)

    assert [path.name for path in place.iterdir()] == ["charlm-a-0-1"]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def room(monkeypatch):
    """Memory of so many bytes; returns how often it was asked for."""
    asked = []

    def of(size):
        def allocate(_number, _at, wanted):
            asked.append(wanted)
            if wanted > size:
                raise OSError(28, "No space left on device")
            os.truncate(_number, wanted)

        monkeypatch.setattr("os.posix_fallocate", allocate)
        return asked

    return of


def test_full_memory_is_told_and_not_asked_again(room):
    first, _ = opened(2)
    asked = room(160)

    assert not first.write(0, PARTS)
    before = len(asked)
    assert not first.write(0, PARTS)

    assert len(asked) == before
    assert first.write(0, [torch.ones(1)])  # what is smaller may fit


def test_what_fits_without_spare_room_is_written(room):
    first, second = opened(2)
    room(bytes_of(PARTS))

    assert first.write(0, PARTS)

    assert equal(unpack(second.read(0, 0, bytes_of(PARTS)), PARTS), PARTS)
