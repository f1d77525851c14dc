import codecs
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from charlm.config import DataConfig
from charlm.errors import CheckpointError, DataError, MachineError
from charlm.storage import read_manifest
from charlm.text import (
    CharTokenizer,
    Source,
    encode_corpus,
    open_corpus,
    open_source,
    reading,
    scan_text,
)
from charlm.text.parts import check_lengths, check_parts, split_bounds
from charlm.text.sources import Part
from charlm.text.tokens import id_dtype

# Signatures need a few bytes at once, and the start of a text is where they are looked for.
chunk_sizes = st.integers(min_value=4, max_value=20)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), min_size=1).filter(
    lambda text: not text.startswith(("BZh", "PK\x03\x04", "%PDF-"))
)


def source_of(*parts, name="here"):
    return Source(
        name, tuple(Part(f"part{i}", lambda d=data: io.BytesIO(d)) for i, data in enumerate(parts))
    )


def make_corpus(folder, *parts, **keys):
    data = DataConfig(**keys)
    source = source_of(*parts)
    scan = scan_text(source, data)
    tokenizer = scan.tokenizer(data)
    return encode_corpus(source, data, scan, tokenizer, folder), tokenizer


def whole(corpus):
    return np.concatenate([split.read(0, len(split)) for split in corpus.splits.values()])


@pytest.fixture
def chunk(monkeypatch):
    """Read in chunks of so many bytes."""
    return lambda size: monkeypatch.setattr(reading, "CHUNK_BYTES", size)


@given(texts, chunk_sizes, st.sampled_from(["utf-8", "utf-16", "utf-32"]))
def test_any_text_comes_back_whatever_the_chunks_cut(tmp_path_factory, text, size, encoding):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", size)
        folder = tmp_path_factory.mktemp("corpus") / "tokens"

        corpus, tokenizer = make_corpus(folder, text.encode(encoding), encoding=encoding)

    assert tokenizer.decode(whole(corpus)) == text
    assert corpus.facts["size"] == len(text)


@given(st.binary(min_size=1), chunk_sizes)
def test_any_bytes_come_back_whatever_the_chunks_cut(tmp_path_factory, data, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", size)
        folder = tmp_path_factory.mktemp("corpus") / "tokens"

        corpus, _ = make_corpus(folder, data, unit="bytes")

    assert whole(corpus).tobytes() == data


@given(
    st.lists(texts | st.just(""), min_size=1, max_size=4).filter(any),
    st.sampled_from(["", "\n", "ab"]),
)
def test_a_joiner_comes_between_parts_that_do_not_end_with_it(tmp_path_factory, parts, joiner):
    folder = tmp_path_factory.mktemp("corpus") / "tokens"

    corpus, tokenizer = make_corpus(folder, *(part.encode() for part in parts), joiner=joiner)

    expected = ""
    for part in parts:
        needed = part and expected and not expected.endswith(joiner)
        expected += (joiner if needed else "") + part
    assert tokenizer.decode(whole(corpus)) == expected
    assert corpus.facts["source_sha256"] == hashlib.sha256(expected.encode()).hexdigest()


def test_titles_are_not_fused_with_the_words_before_them(tmp_path):
    parts = [b"last words", b"Title 10\n", b"", b"more"]

    corpus, _ = make_corpus(tmp_path / "tokens", *parts, unit="bytes", val_fraction=0)

    assert whole(corpus).tobytes() == b"last words\nTitle 10\nmore"
    assert scan_text(source_of(*parts), DataConfig()).notes == [
        "data.joiner ('\\n') was put after 1 of 4 files, which did not end with it",
        "1 of 4 files is empty",
    ]


def test_a_scan_counts_what_is_there(chunk):
    chunk(4)
    data = "abracadabra é語😀é".encode()

    scan = scan_text(source_of(data), DataConfig())

    assert scan.size == 16
    assert {chr(c): int(scan.counts[c]) for c in np.flatnonzero(scan.counts)} == {
        " ": 1, "a": 5, "b": 2, "c": 1, "d": 1, "r": 2, "é": 2, "語": 1, "😀": 1,
    }  # fmt: skip
    assert scan.sha256 == hashlib.sha256(data).hexdigest()
    assert scan.notes == []


def test_progress_adds_up_to_the_bytes_read(chunk, tmp_path):
    chunk(5)
    data = DataConfig()
    source = source_of(b"hellowide world")
    seen = []

    def progress(what, read):
        seen.append((what, read))

    scan = scan_text(source, data, progress)
    encode_corpus(source, data, scan, scan.tokenizer(data), tmp_path / "tokens", progress)

    assert seen == [("reading", 5)] * 3 + [("encoding", 5)] * 3


# Where a text is cut


@given(
    st.integers(min_value=0, max_value=10_000),
    st.sampled_from([0, 0.1, 0.25, 0.5]),
    st.sampled_from([0, 0.1, 0.3]),
)
def test_the_parts_join_to_the_whole(size, val, test):
    bounds = split_bounds(size, DataConfig(val_fraction=val, test_fraction=test))

    (train_start, train_stop), (val_start, val_stop), (test_start, test_stop) = bounds.values()
    assert list(bounds) == ["train", "val", "test"]
    assert 0 == train_start <= train_stop == val_start <= val_stop == test_start <= test_stop
    assert test_stop == size
    # Train and test are rounded down, so validation gets what both give up.
    assert -1 < val_stop - val_start - size * val < 2
    assert val or val_start == val_stop
    assert test_stop - test_start == int(size * test)


def test_tiny_shakespeare_is_cut_as_the_published_numbers_are():
    bounds = split_bounds(1_115_394, DataConfig())

    assert bounds["train"] == (0, 1_003_854)  # nanoGPT's int(n * 0.9)
    assert bounds["val"] == (1_003_854, 1_115_394)


def test_the_alphabet_is_that_of_the_whole_text(tmp_path):
    corpus, tokenizer = make_corpus(tmp_path / "tokens", b"a" * 95 + b"abcde")

    assert tokenizer.alphabet == "abcde"
    assert tokenizer.decode(corpus.splits["val"].read(0, 10)) == "aaaaaabcde"


def test_a_part_too_short_for_a_window_is_refused_with_two_ways_to_mend_it():
    data = DataConfig(val_fraction=0.1)

    check_lengths(120, data, block_size=11)
    with pytest.raises(DataError) as caught:
        check_lengths(120, data, block_size=12)

    assert "the val part has 12 characters and needs 13" in str(caught.value)
    mend = "lower model.block_size below 12, use a longer text, or set data.val_fraction=0.11"
    assert str(caught.value).endswith(f"; {mend}")
    with pytest.raises(DataError, match=r"train part has 108 .* needs 109.*use a longer text$"):
        check_lengths(120, data, block_size=108)
    with pytest.raises(DataError, match=r"test part has 6 .*or set data.test_fraction=0.1$"):
        check_lengths(120, DataConfig(test_fraction=0.05), block_size=11)


@given(st.integers(0, 60), st.integers(1, 20), st.sampled_from([0.0, 0.1, 0.4]))
def test_other_shares_are_advised_only_where_they_help(size, block_size, test):
    for check in (partial(check_parts, size), partial(check_lengths, size, block_size=block_size)):
        data, told = DataConfig(val_fraction=0.1, test_fraction=test), ""
        try:
            check(data)
        except DataError as error:
            told = str(error.mend)
        if found := re.search(r"set data\.(\w+)=([\d.]+)$", told):
            check(data.model_copy(update={found[1]: float(found[2])}))
        elif told and not test:
            for percent in range(1, 100):
                with pytest.raises(DataError):
                    check(DataConfig(val_fraction=percent / 100))


def test_a_part_that_nobody_asked_for_may_be_empty():
    check_lengths(120, DataConfig(val_fraction=0), block_size=64)


# What is no text


@given(
    before=st.text(st.sampled_from("a\né語😀")),
    bad=st.sampled_from([b"\xff", b"\xc3a", b"\xe8\xaa(", b"\xf0\x9f\x98a", b"\xed\xa0\x80"]),
    size=chunk_sizes,
)
@example(before="a\na\n" * 3, bad=b"\xff", size=4)  # chunks without a character to decode
@example(before="é\n語\n" * 3, bad=b"\xf0\x9f\x98a", size=5)  # chunks that end inside one
def test_a_bad_byte_is_named_by_offset_and_line_wherever_chunks_end(before, bad, size):
    data = before.encode() + bad + b"\n\nmore"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", size)
        with pytest.raises(DataError) as caught:
            scan_text(source_of(data), DataConfig())

    byte, line = len(before.encode()), 1 + before.count("\n")
    assert str(caught.value).startswith(
        f"part0: not UTF-8 at byte {byte} (0x{bad[0]:02x}), line {line}; use data.encoding=latin-1"
    )


@pytest.mark.parametrize("size", [4, 5, 6, 7, 1000])
@pytest.mark.parametrize(
    ("encoding", "before", "bad"),
    [
        ("utf-8-sig", codecs.BOM_UTF8 + "é\nb".encode(), b"\xff"),
        ("utf-16", "ab\nĊ\n".encode("utf-16"), b"\x00\xd8\x61\x00"),  # U+010A holds a 0x0a byte
        ("utf-16-be", "ab\nĊ\n".encode("utf-16-be"), b"\xdc\x00"),
        ("shift_jis", "あ\nい\n".encode("shift_jis"), b"\x82\xff"),
        ("ascii", b"ab\ncd\n", b"\xe9"),
    ],
)
def test_a_bad_byte_is_found_in_other_encodings(chunk, size, encoding, before, bad):
    chunk(size)

    with pytest.raises(DataError) as caught:
        scan_text(source_of(before + bad + b"rest"), DataConfig(encoding=encoding))

    line = 1 + before.decode(encoding).count("\n")
    assert f" at byte {len(before)} (0x{bad[0]:02x}), line {line};" in str(caught.value)


def test_a_bad_byte_after_a_byte_order_mark_is_counted_from_the_files_start():
    with pytest.raises(DataError, match=r"at byte 5 \(0xff\), line 1"):
        scan_text(source_of(codecs.BOM_UTF8 + b"ab\xff"), DataConfig())


def test_the_offset_counts_from_the_start_of_the_part_it_is_in():
    with pytest.raises(DataError, match=r"part1: not UTF-8 at byte 2 .*, line 1"):
        scan_text(source_of(b"one\ntwo\n", b"ab\xff"), DataConfig())


def test_a_character_cut_off_by_the_end_is_refused():
    with pytest.raises(DataError, match=r"at byte 1 \(0xc3\)"):
        scan_text(source_of(b"a\xc3"), DataConfig())
    with pytest.raises(DataError, match="part0: not UTF-8"):  # no part lends bytes to the next
        scan_text(source_of(b"a\xc3", b"\xa9"), DataConfig())


def test_a_utf_8_byte_order_mark_is_dropped_with_a_note(tmp_path):
    corpus, tokenizer = make_corpus(tmp_path / "tokens", codecs.BOM_UTF8 + "é".encode() * 20)
    scan = scan_text(source_of(codecs.BOM_UTF8 + b"ab"), DataConfig())

    assert tokenizer.decode(whole(corpus)) == "é" * 20
    assert scan.size == 2
    assert scan.notes == ["part0: a byte order mark was dropped"]
    scan = scan_text(source_of(*[codecs.BOM_UTF8 + b"ab\n"] * 3), DataConfig())
    assert scan.notes == ["part0: a byte order mark was dropped (and from 2 more)"]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
    ],
)
def test_a_foreign_byte_order_mark_names_the_encoding_to_pass(mark, encoding):
    with pytest.raises(DataError, match=f"use data.encoding={encoding}$"):
        scan_text(source_of(mark + b"a\0\0\0"), DataConfig())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_missing_byte_order_mark_names_the_encodings_to_pass(encoding):
    data = "héllo".encode(f"{encoding}-le")

    with pytest.raises(
        DataError, match=f"not {encoding.upper()} .*use data.encoding={encoding}-le"
    ):
        scan_text(source_of(data), DataConfig(encoding=encoding))

    assert scan_text(source_of(data), DataConfig(encoding=f"{encoding}-le")).size == 5


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_carriage_returns_are_kept_with_a_note(tmp_path, newline):
    text = f"one{newline}two{newline}"

    corpus, tokenizer = make_corpus(tmp_path / "tokens", text.encode())

    assert tokenizer.decode(whole(corpus)) == text
    assert "which are learned too" in scan_text(source_of(text.encode()), DataConfig()).notes[0]
    assert scan_text(source_of(text.encode()), DataConfig(unit="bytes")).notes == []


def test_latin_1_is_read_where_it_is_asked_for(tmp_path):
    corpus, tokenizer = make_corpus(tmp_path / "tokens", b"caf\xe9\n", encoding="latin-1")

    assert tokenizer.decode(whole(corpus)) == "café\n"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        # Without the time, which would be in the test's name: processes must agree on names.
        (gzip.compress(b"text", mtime=0), "gzip"),
        (b"PK\x03\x04rest", "zip"),
        (b"BZh91AY&SYrest", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"%PDF-1.7", "PDF"),
        (b"name".ljust(257, b"\0") + b"ustar  ", "tar"),
    ],
)
def test_packed_files_are_recognised_and_readable_as_bytes(data, kind):
    with pytest.raises(DataError, match=f"part0: looks like {kind}; unpack it"):
        scan_text(source_of(data), DataConfig(unpack=False))

    assert scan_text(source_of(data), DataConfig(unit="bytes")).size == len(data)


def test_a_stray_nul_is_text_and_many_are_not():
    stray = b"a" * 1000 + b"\0"

    assert scan_text(source_of(stray), DataConfig()).size == 1001
    with pytest.raises(DataError, match=r"looks binary \(8 NULs in its first 16 bytes\)"):
        scan_text(source_of(b"\0a" * 8), DataConfig())
    with pytest.raises(DataError, match=r"part1: looks binary .*=bytes, or name only texts, for "):
        scan_text(source_of(b"a", b"\0a" * 8), DataConfig())


def test_an_empty_text_is_refused():
    for parts in [(), (b"",), (b"", b""), (codecs.BOM_UTF8,)]:
        with pytest.raises(DataError, match=r"here: empty \(0 bytes\)"):
            scan_text(source_of(*parts), DataConfig())


def test_an_empty_part_among_others_is_nothing():
    assert scan_text(source_of(b"", b"ab", b""), DataConfig()).size == 2


def test_one_distinct_symbol_is_remarked_on():
    for unit in ("chars", "bytes"):
        scan = scan_text(source_of(b"aaaa"), DataConfig(unit=unit))
        assert scan.notes == ["only one distinct symbol: there is nothing to learn"]


def test_a_disk_that_fails_while_reading_is_a_machine_error():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(MachineError, match="bad disk: Input/output error"):
        scan_text(Source("here", (Part("bad disk", Failing),)), DataConfig())


def test_a_file_that_went_away_is_a_machine_error(tmp_path):
    gone = Part("gone", (tmp_path / "gone").open)

    with pytest.raises(MachineError, match="gone: No such file"):
        scan_text(Source("here", (gone,)), DataConfig())


# Alphabets


def test_more_symbols_than_allowed_are_refused_with_the_rarest():
    data = DataConfig(source="here", max_vocab=3)

    with pytest.raises(DataError) as caught:
        scan_text(source_of("aaabbé語語".encode()), data).tokenizer(data)

    assert str(caught.value) == (
        "here: 4 distinct characters (rarest: 'é' (1x), 'b' (2x), '語' (2x)), more than the limit of "
        "3; set data.max_vocab=4, data.min_count=2 or data.unit=bytes"
    )
    assert scan_text(source_of(b"abc"), data).tokenizer(data).vocab_size == 3


@pytest.mark.parametrize(
    ("symbols", "width"), [(1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 4)]
)
def test_ids_are_as_wide_as_their_number_needs(symbols, width):
    assert id_dtype(symbols).itemsize == width
    assert id_dtype(symbols).byteorder in "|<" or sys.byteorder == "little"
    assert np.iinfo(id_dtype(symbols)).max >= symbols - 1


@pytest.mark.parametrize(("symbols", "width"), [(200, 1), (300, 2), (66_000, 4)])
def test_wide_alphabets_are_written_with_wider_ids(tmp_path, symbols, width):
    text = "".join(map(chr, range(0x10000, 0x10000 + symbols)))

    corpus, tokenizer = make_corpus(tmp_path / "tokens", text.encode(), max_vocab=100_000)

    assert (tmp_path / "tokens" / "ids.bin").stat().st_size == symbols * width
    assert whole(corpus).tolist() == list(range(symbols))
    assert tokenizer.vocab_size == symbols


# The second pass, and opening what it wrote


def test_a_text_that_changes_between_the_passes_is_refused(tmp_path):
    data = DataConfig()
    versions = [b"hello", b"hallo"]
    source = Source("here", (Part("part", lambda: io.BytesIO(versions.pop(0))),))
    scan = scan_text(source, data)

    with pytest.raises(DataError, match="here: changed while it was being read"):
        encode_corpus(source, data, scan, scan.tokenizer(data), tmp_path / "tokens")

    assert list(tmp_path.iterdir()) == []


def test_many_files_are_opened_once(tmp_path):
    opened = []

    def opening(name):
        opened.append(name)
        return io.BytesIO(b"a few words")

    source = Source("here", tuple(Part(n, lambda n=n: opening(n)) for n in "abc"))
    scan = scan_text(source, DataConfig())

    corpus = encode_corpus(source, DataConfig(), scan, scan.tokenizer(DataConfig()), tmp_path / "t")

    assert opened == ["a", "b", "c"]
    assert corpus.facts["size"] == len("a few words\n" * 3) - 1


@pytest.mark.parametrize("change", [b"shorter", b"the same"[::-1], b"longer than it was before"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change):
    path = tmp_path / "text"
    path.write_bytes(b"the same" * 100)
    os.utime(path, (1, 1))
    monkeypatch.setattr(reading, "CHUNK_BYTES", 10)

    def progress(what, read):
        path.write_bytes(change * 100 if len(change) != 7 else change)

    with pytest.raises(DataError, match="text: changed while it was being read; try again"):
        scan_text(open_source(str(path)), DataConfig(), progress)


def test_a_file_of_the_kernel_that_says_it_is_empty_is_read(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("Linux only")

    assert scan_text(open_source("/proc/self/status"), DataConfig()).size > 100


def test_a_character_outside_a_given_alphabet_is_refused_before_anything_is_written(tmp_path):
    data = DataConfig()
    scan = scan_text(source_of("abé".encode()), data)

    for alphabet, named in [
        ("ab", r"'é' \(U\+00E9\) is not in"),
        ("a", r"'b' \(U\+0062\), 'é' \(U\+00E9\) are not in"),
    ]:
        with pytest.raises(DataError, match=named):
            encode_corpus(source_of(b""), data, scan, CharTokenizer(alphabet), tmp_path / "tokens")

    assert list(tmp_path.iterdir()) == []


def test_a_corpus_opens_as_it_was_written(tmp_path):
    made, _ = make_corpus(tmp_path / "tokens", b"hello world" * 10, test_fraction=0.1)

    opened = open_corpus(tmp_path / "tokens")

    assert {name: (s.start, s.stop) for name, s in opened.splits.items()} == {
        "train": (0, 88),
        "val": (88, 99),
        "test": (99, 110),
    }
    assert opened.facts == made.facts
    assert whole(opened).tolist() == whole(made).tolist()
    assert (
        opened.facts["source_sha256"]
        == scan_text(source_of(b"hello world" * 10), DataConfig()).sha256
    )


def test_a_damaged_corpus_is_refused(tmp_path):
    make_corpus(tmp_path / "tokens", b"hello world")
    (tmp_path / "tokens" / "ids.bin").write_bytes(b"\0" * 11)

    with pytest.raises(CheckpointError, match=r"ids\.bin: SHA-256 differs"):
        open_corpus(tmp_path / "tokens")


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "nonsense"},
        {"dtype": None, "size": None},
        {"size": "many"},
        {"size": float("inf")},
        {"splits": []},
        {"splits": {"train": [0]}},
        {"splits": {"train": [0, "all"]}},
        {"splits": None},
    ],
    ids=str,
)
def test_a_corpus_with_a_hostile_manifest_is_refused(tmp_path, changes):
    make_corpus(tmp_path / "tokens", b"hello world")
    path = tmp_path / "tokens" / "MANIFEST.json"
    path.write_text(json.dumps(read_manifest(tmp_path / "tokens") | changes))

    with pytest.raises(CheckpointError, match="its manifest is incomplete"):
        open_corpus(tmp_path / "tokens")


# Memory

MEASURE = """
import sys
from pathlib import Path
from charlm.config import DataConfig
from charlm.text import Batches, encode_corpus, open_source, scan_text
for name in ["small", "large"]:
    data = DataConfig(source=name)
    source = open_source(name)
    scan = scan_text(source, data)
    corpus = encode_corpus(source, data, scan, scan.tokenizer(data), Path(name + "-tokens"))
    batches = Batches(corpus.splits["train"], block_size=64, batch_size=32, seed=0)
    for step in range(200):
        batches.get(step)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(status["VmHWM"].split()[0])
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="where Linux tells the peak")
def test_a_large_text_takes_no_more_memory_than_a_small_one(tmp_path):
    # Not ru_maxrss: a child inherits its parent's.
    line = "the quick brown fox jumps over the lazy dog; ça va, naïve café?\n".encode()
    for name, mebibytes in [("small", 1), ("large", 64)]:
        (tmp_path / name).write_bytes(line * ((mebibytes << 20) // len(line)))

    command = [sys.executable, "-c", MEASURE]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout

    small, large = map(int, output.split())  # KiB
    assert large - small < 16 << 10


@given(size=st.integers(0, 10_000), tenths=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_the_cut_is_exact_for_any_fractions(size, tenths):
    val, test = tenths
    assume(val + test < 10)
    data = DataConfig(val_fraction=val / 10, test_fraction=test / 10)

    (start, train), (_, middle), (_, end) = split_bounds(size, data).values()

    assert (start, end) == (0, size)
    assert middle == size - size * test // 10
    assert train == (size * (10 - val - test) // 10 if val else middle)
