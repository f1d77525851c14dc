"""Compressed texts, against the modules and programs that made them."""

import bz2
import gzip
import hashlib
import io
import lzma
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard  # another implementation of zstd than the one that charlm reads it by
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import DataConfig
from charlm.errors import DataError
from charlm.text import encode_corpus, open_source, reading, scan_text
from charlm.text.unpacking import format_of, unpacked
from tests.text.test_corpus import make_corpus, source_of, whole

PACKERS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
TEXT = "".join(f"{i} héllo wörld {i * i % 977}\r\n" for i in range(2000)).encode()
kinds = pytest.mark.parametrize("kind", PACKERS)


def unpack(packed, chunk=1000, size=64):
    """Unpack a file that is read in chunks."""
    file = io.BytesIO(packed)
    head = file.read(chunk)
    found = [*unpacked(format_of(head), head, lambda: file.read(chunk), "packed", size)]
    assert all(0 < len(one) <= size for one in found)
    return b"".join(found)


@kinds
@given(data=st.binary(max_size=500) | st.just(b"a" * 5000), chunk=st.integers(20, 60))
def test_what_was_packed_comes_back(kind, data, chunk):
    assert unpack(PACKERS[kind](data), chunk) == data


@kinds
@pytest.mark.parametrize("between", [b"", bytes(512)])
def test_a_file_of_several_streams_is_read_to_its_end(kind, between):
    pack = PACKERS[kind]

    for chunk in (20, 21, 22, 1 << 20):
        packed = between.join([pack(b"one " * 9), pack(b""), pack(b"two")]) + between
        assert unpack(packed, chunk) == b"one " * 9 + b"two"


def test_frames_of_zstd_that_hold_no_data_are_skipped():
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"

    assert unpack(skipped + PACKERS["zstd"](b"text") + skipped) == b"text"


def test_a_frame_of_zstd_may_look_back_far():
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = stream.compress(b"far " * 1000) + stream.flush()  # of a size that it does not know

    with pytest.raises(zstandard.ZstdError, match="memory"):  # 128 MiB are its limit
        zstandard.ZstdDecompressor().decompress(packed, max_output_size=4000)
    assert unpack(packed) == b"far " * 1000


@kinds
def test_a_packed_text_is_the_text(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 100)
    plain, tokenizer = make_corpus(tmp_path / "plain", TEXT)

    packed, _ = make_corpus(tmp_path / "packed", PACKERS[kind](TEXT))

    assert packed.facts["source_sha256"] == hashlib.sha256(TEXT).hexdigest()
    assert whole(packed).tolist() == whole(plain).tolist()
    assert tokenizer.decode(whole(packed)) == TEXT.decode()


def test_parts_may_be_packed_and_plain(tmp_path):
    parts = [b"one\n", *(pack(b"two\n") for pack in PACKERS.values()), b"three\n"]

    corpus, tokenizer = make_corpus(tmp_path / "t", *parts)

    assert tokenizer.decode(whole(corpus)) == "one\n" + "two\n" * 4 + "three\n"


@kinds
def test_bytes_are_read_as_they_are_unless_asked_to_be_unpacked(kind):
    packed = PACKERS[kind](TEXT)

    plain, asked = (scan_text(source_of(packed), DataConfig(unit="bytes", unpack=unpack))
                    for unpack in ("auto", True))  # fmt: skip

    assert (plain.size, plain.sha256) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert (asked.size, asked.sha256) == (len(TEXT), hashlib.sha256(TEXT).hexdigest())


@kinds
def test_a_truncated_file_is_refused(kind):
    packed = PACKERS[kind](TEXT)

    for length in (20, len(packed) // 2, len(packed) - 1):
        with pytest.raises(DataError) as caught:
            scan_text(source_of(b"fine", packed[:length]), DataConfig())
        assert str(caught.value) == f"part1: truncated {kind} file; get a complete copy"


@kinds
def test_a_damaged_file_is_refused(kind):
    packed = bytearray(PACKERS[kind](TEXT))
    packed[len(packed) // 2] ^= 255

    with pytest.raises(DataError, match=rf"^part0: damaged {kind} file \(.+\); get a sound copy$"):
        scan_text(source_of(bytes(packed)), DataConfig())


@kinds
def test_the_checksum_at_the_end_is_compared(kind):
    packed = bytearray(PACKERS[kind](b"text " * 100))
    places = {"gzip": -6, "bzip2": -3, "xz": -13, "zstd": -2}  # a byte of the checksum of the data

    packed[places[kind]] ^= 4

    with pytest.raises(DataError, match=f"damaged {kind} file"):
        unpack(bytes(packed))


@kinds
def test_what_follows_a_stream_and_is_none_is_refused(kind):
    # Python's own readers of bzip2 and xz end in silence here, and so lose a damaged second stream.
    with pytest.raises(DataError, match=rf"(damaged|truncated) {kind} file"):
        unpack(PACKERS[kind](b"text") + b"no stream at all, but words")


def test_a_text_that_begins_like_a_signature_is_a_text():
    for text in (b"BZhang wrote this", b"BZh9 pages", b"(\xc2\xb5/", b"P*M"):
        assert scan_text(source_of(text), DataConfig()).size == len(text.decode())


def test_an_archive_in_a_packed_file_is_named():
    for inside, kind in [(gzip.compress(b"a"), "gzip"), (b"a".ljust(257, b"\0") + b"ustar", "tar")]:
        with pytest.raises(DataError, match=f"part0: looks like {kind}; unpack it first"):
            scan_text(source_of(gzip.compress(inside)), DataConfig())


@kinds
def test_progress_counts_bytes_of_the_disk(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1000)
    data, seen = DataConfig(), {"reading": 0, "encoding": 0}
    source = source_of(packed := PACKERS[kind](TEXT))

    def progress(what, read):
        seen[what] += read

    scan = scan_text(source, data, progress)
    encode_corpus(source, data, scan, scan.tokenizer(data), tmp_path / "t", progress)

    assert set(seen.values()) == {len(packed)}


def test_a_packed_file_that_changes_while_it_is_read_is_said_to_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_BYTES", 200)
    path = tmp_path / "text.gz"
    path.write_bytes(packed := gzip.compress(TEXT))

    def progress(what, read):
        path.write_bytes(packed[:500])

    with pytest.raises(DataError, match=r"text\.gz: changed while it was being read; try again"):
        scan_text(open_source(str(path)), DataConfig(), progress)


MEASURE = """
from pathlib import Path
from charlm.config import DataConfig
from charlm.text import encode_corpus, open_source, scan_text
for name in ["small", "large"]:
    data = DataConfig(source=name)
    source = open_source(name)
    scan = scan_text(source, data)
    encode_corpus(source, data, scan, scan.tokenizer(data), Path(name + "-tokens"))
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(status["VmHWM"].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="where Linux tells the peak")
@kinds
def test_a_file_that_unpacks_to_much_takes_no_more_memory(tmp_path, kind):
    small, large = (9, 24) if kind == "xz" else (1, 16)  # xz looks back on 8 MiB
    for name, mebibytes in [("small", small), ("large", large)]:
        (tmp_path / name).write_bytes(
            PACKERS[kind](b"words, words, words\n" * (mebibytes * 52_000))
        )

    command = [sys.executable, "-c", MEASURE]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout

    small, large = map(int, output.split())  # KiB
    assert large - small < 10 << 10
