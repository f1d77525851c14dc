import io
import threading

import pytest

from charlm.coding.container import ContainerReader
from charlm.coding.methods import Method
from charlm.coding.whole import decode, encode
from charlm.errors import DataError, MachineError, Stopped


class Backwards:
    """A coder whose code is the text backwards, after the number of its block."""

    block_bytes = 4

    def __init__(self, wrong=None):
        self.wrong = wrong  # the block that it decodes wrongly
        self.number = self.symbols = self.coded_bytes = 0

    def encode(self, text, tick):
        self.number += 1
        self.symbols, self.coded_bytes = self.symbols + len(text), self.coded_bytes + len(text)
        tick(len(text))
        return bytes([self.number]) + text[::-1]

    def decode(self, code, size, tick):
        self.number += 1
        if code[0] != self.number:
            raise ValueError("another block")
        tick(size)
        return code[:0:-1] if self.number != self.wrong else b"?" * size


def method(wrong=None):
    return Method({"model": "backwards"}, lambda: Backwards(wrong))


def encoded(text, *, wrong=None, **options):
    out = io.BytesIO()
    coded = encode(io.BytesIO(text).read, out, method(wrong), "a.txt", **options)
    return coded, out.getvalue()


def restored(data, wrong=None, tick=lambda size: None):
    out = io.BytesIO()
    decode(ContainerReader(io.BytesIO(data), "a.clm"), out, method(wrong), tick)
    return out.getvalue()


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("text", [b"", b"abc", b"abcd", b"abcdefghij"])
def test_a_text_comes_back(text, check):
    coded, data = encoded(text, check=check)

    assert restored(data) == text
    assert (coded.size, coded.coded_size, coded.symbols) == (len(text), len(data), len(text))


def test_blocks_of_utf8_end_between_characters():
    blocks = []

    class Listening(Backwards):
        def encode(self, text, tick):
            blocks.append(text)
            return super().encode(text, tick)

    listening = Method({}, Listening)
    encode(
        io.BytesIO("abcé漢😀".encode() + b"\xff\xf0").read,
        io.BytesIO(),
        listening,
        "a",
        check=False,
    )

    assert [block.decode("utf-8", "surrogateescape") for block in blocks] == [
        "abc",
        "é漢",
        "😀",
        "\udcff\udcf0",
    ]


def test_what_is_decoded_to_another_text_is_not_written():
    with pytest.raises(MachineError, match=r"^a\.txt: block 2 was decoded to another text, so"):
        encoded(b"abcdefghijkl" * 50, wrong=2)


def test_without_a_check_it_is_found_when_it_is_decoded():
    _, data = encoded(b"abcdefghijkl", wrong=2, check=False)

    with pytest.raises(MachineError, match=r"^a\.clm: block 2 is decoded to another text here"):
        restored(data, wrong=2)


def test_each_block_is_checked_on_another_thread_while_others_are_encoded():
    met = threading.Barrier(2, timeout=200)

    class Meeting(Backwards):
        def encode(self, text, tick):
            if self.number == 1:
                met.wait()  # until the first block is being decoded
            return super().encode(text, tick)

        def decode(self, code, size, tick):
            if self.number == 0:
                met.wait()
            return super().decode(code, size, tick)

    encode(io.BytesIO(b"abcdefgh").read, out := io.BytesIO(), Method({}, Meeting), "a.txt")

    assert restored(out.getvalue()) == b"abcdefgh"


def test_a_tick_tells_each_byte_once_for_each_pass():
    told = []
    _, data = encoded(b"abcdefghij", tick=told.append)
    assert sum(told) == 20

    told.clear()
    restored(data, tick=told.append)
    assert sum(told) == 10


def test_a_stop_ends_both_threads():
    def stop(size):
        raise Stopped

    with pytest.raises(Stopped):
        encoded(b"abcdefghij", tick=stop)


def test_a_mistake_while_encoding_ends_the_check():
    class Full(io.BytesIO):
        def write(self, data):
            if b"dcba" in data:
                raise OSError(28, "No space left on device")
            return super().write(data)

    threads = threading.active_count()

    with pytest.raises(OSError, match="No space"):
        encode(io.BytesIO(b"abcd" * 100).read, Full(), method(), "a.txt")

    assert threading.active_count() == threads


def test_a_text_that_is_not_whole_is_refused_after_its_last_sound_block():
    _, data = encoded(b"abcdefgh")
    out = io.BytesIO()

    with pytest.raises(DataError, match="is cut off in block 2"):
        decode(ContainerReader(io.BytesIO(data[:-50]), "a.clm"), out, method())

    assert out.getvalue() == b"abcd"
