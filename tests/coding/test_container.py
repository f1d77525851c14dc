import io
import struct

import pytest

from charlm.coding.container import Block, ContainerReader, ContainerWriter, Digest
from charlm.errors import DataError

TEXTS = [b"first", b"second part"]


def written(texts=TEXTS):
    """Return a container whose code is the text backwards."""
    file, whole = io.BytesIO(), Digest()
    writer = ContainerWriter(file, {"model": "none"})
    for number, text in enumerate(texts, 1):
        whole.add(text)
        writer.add(Block.of(number, text, text[::-1]))
    writer.end(whole)
    assert writer.size == len(file.getvalue())
    return file.getvalue()


def read(data):
    container, whole = ContainerReader(io.BytesIO(data), "a.clm"), Digest()
    for block in container.blocks():
        text = block.code[::-1]
        assert block.is_of(text)
        whole.add(text)
    container.check(whole)
    return whole.size


@pytest.mark.parametrize("texts", [[], [b"x"], TEXTS])
def test_what_was_written_is_read(texts):
    assert read(written(texts)) == sum(map(len, texts))


def test_each_shorter_file_is_refused_as_cut_off():
    data = written()

    for length in range(8, len(data)):
        with pytest.raises(
            DataError, match=r"^a\.clm: is cut off in (its header|block \d|its end); get"
        ):
            read(data[:length])


def test_each_changed_byte_is_found():
    data = written()

    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x10
        with pytest.raises((DataError, AssertionError)):  # AssertionError: the text's own checksum
            read(bytes(changed))


def test_a_damaged_block_is_named():
    data = written()
    place = data.index(TEXTS[1][::-1])

    with pytest.raises(DataError, match=r"^a\.clm: is damaged in block 2; get another copy of it$"):
        read(data[:place] + b"?" + data[place + 1 :])


def test_a_damaged_length_asks_for_no_memory():
    data = written()
    start = data.index(TEXTS[0][::-1]) - 16

    with pytest.raises(DataError, match="is damaged in block 1"):
        read(data[:start] + struct.pack("<II", 5, 1 << 31) + data[start + 8 :])


def test_a_missing_block_is_found_by_the_whole():
    first, both = written(TEXTS[:1]), written()
    without_first = (
        first[: first.index(TEXTS[0][::-1]) - 16] + both[both.index(TEXTS[1][::-1]) - 16 :]
    )

    with pytest.raises(
        DataError, match="is damaged: its blocks do not make up the whole text of 16 bytes"
    ):
        read(without_first)


@pytest.mark.parametrize("size", [-1, 2**63, None])
def test_a_size_that_is_none_is_not_told(size):
    ContainerWriter(file := io.BytesIO(), {}, size)

    assert ContainerReader(io.BytesIO(file.getvalue()), "a.clm").text_size is None


def test_what_follows_the_end_is_refused():
    with pytest.raises(DataError, match="has more data after its end"):
        read(written() + b"\n")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a file that charlm compress wrote"),
        (b"any other text", "not a file that charlm compress wrote"),
        (written().replace(b"\r\n", b"\n", 1), "not a file that charlm compress wrote"),
        (written()[:8] + b"\x02" + written()[9:], "has format 2, but this charlm reads format 1"),
    ],
)
def test_other_files_are_refused(data, what):
    with pytest.raises(DataError, match=what):
        read(data)
