"""Records on disk, in parts, and as rows of batches."""

import re
import tracemalloc
from collections import Counter
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import DataConfig
from charlm.errors import DataError
from charlm.text import open_corpus, records, scan_text, shuffling
from charlm.text.batches import RecordBatches, window_starts
from charlm.text.borders import Borders
from charlm.text.records import END_OF_PART, Cutter, keys_of
from charlm.text.rows import Pieces, groups, pieces_of, rows_of
from charlm.text.shuffling import Sorter
from charlm.text.tokens import IdArray, Split
from tests.text.test_corpus import make_corpus, source_of

NAMES = [f"{a}{b}" for a in ("an", "be", "cora", "d") for b in ("na", "li", "x", "", "mmmmmm")]
OF_LINES = st.text("ab\n\r", max_size=40)


def cut(kind, text, size=3):
    """Cut a text that is read in chunks; return its records."""
    codes = np.array([ord(c) for c in text], np.uint32)
    chunks = [codes[i : i + size] for i in range(0, len(codes), size)]
    found = []
    for symbols, lengths in Cutter(kind, "here").cut(iter(chunks)):
        whole, ends = "".join(map(chr, symbols)), np.cumsum(lengths)
        found += [whole[a:b] for a, b in zip(ends - lengths, ends, strict=True)]
    return found


def texts_of(corpus, tokenizer, part="train"):
    """Return the records of a part."""
    split = corpus.splits[part]
    text = tokenizer.decode(split.read(0, len(split)))
    boundary = tokenizer.alphabet[-1]
    assert not text or text[0] == text[-1] == boundary
    assert [m.start() for m in re.finditer(boundary, text)] == [
        int(b) for b in Borders(split).read(0, len(Borders(split)))
    ]
    return text[1:-1].split(boundary) if text else []


def without_returns(text):
    """Return a text whose lines end with newlines alone."""
    return re.sub(r"\r(?=\n|\Z)", "", text)


@given(OF_LINES, st.integers(1, 5))
def test_lines(text, size):
    assert cut("lines", text, size) == [one for one in without_returns(text).split("\n") if one]


@given(OF_LINES, st.integers(1, 5))
def test_paragraphs(text, size):
    plain = without_returns(text).strip("\n")

    assert cut("paragraphs", text, size) == [one for one in re.split("\n{2,}", plain) if one]


def test_each_file_is_a_record(tmp_path):
    corpus, tokenizer = make_corpus(
        tmp_path / "t",
        b"one\n",
        b"",
        b"two\n\nlines",
        records="files",
        val_fraction=0,
        shuffle=False,
    )

    assert texts_of(corpus, tokenizer) == ["one\n", "two\n\nlines"]


def test_lines_end_with_their_file(tmp_path):
    corpus, tokenizer = make_corpus(
        tmp_path / "t", b"a\nb", b"c\r\n\n", records="lines", val_fraction=0, shuffle=False
    )

    assert texts_of(corpus, tokenizer) == ["a", "b", "c"]


@pytest.mark.parametrize("bucket", [1 << 26, 16])
def test_parts_depend_on_the_records_and_the_seed_alone(tmp_path, monkeypatch, bucket):
    monkeypatch.setattr(shuffling, "BUCKET_BYTES", bucket)
    orders = [NAMES, sorted(NAMES), NAMES[::-1]]
    found = []
    for i, names in enumerate([*orders, NAMES]):
        keys = {
            "records": "lines",
            "val_fraction": 0.3,
            "test_fraction": 0.2,
            "shuffle_seed": 7 * (i // 3),
        }
        corpus, tokenizer = make_corpus(tmp_path / f"{i}", "\n".join(names).encode(), **keys)
        found.append({part: texts_of(corpus, tokenizer, part) for part in corpus.splits})

    assert found[0] == found[1] == found[2] != found[3]
    assert Counter(chain(*found[0].values())) == Counter(NAMES)
    assert [len(part) for part in found[0].values()] == [10, 6, 4]
    assert found[0]["train"] != sorted(found[0]["train"])


@pytest.mark.parametrize("bucket", [1 << 26, 16])
@pytest.mark.parametrize("unique", [False, True])
def test_equal_records_are_in_one_part(tmp_path, monkeypatch, bucket, unique):
    monkeypatch.setattr(shuffling, "BUCKET_BYTES", bucket)
    names = NAMES * 5

    corpus, tokenizer = make_corpus(
        tmp_path / "t",
        "\n".join(names).encode(),
        records="lines",
        unique=unique,
        val_fraction=0.3,
    )

    train, val = (texts_of(corpus, tokenizer, part) for part in ("train", "val"))
    assert not set(train) & set(val)
    assert Counter(train + val) == Counter(NAMES if unique else names)
    assert open_corpus(tmp_path / "t").facts["records"] == "lines"
    found = {path.name for path in (tmp_path / "t").iterdir()}
    assert found == {"MANIFEST.json", "ids.bin", "borders.bin"}  # and nothing that was sorted


def test_without_shuffling_the_parts_follow_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffling, "BUCKET_BYTES", 16)
    keys = {"records": "lines", "shuffle": False, "val_fraction": 0.25}

    corpus, tokenizer = make_corpus(tmp_path / "t", "\n".join(NAMES).encode(), **keys)

    assert texts_of(corpus, tokenizer, "train") == NAMES[:15]
    assert texts_of(corpus, tokenizer, "val") == NAMES[15:]


def test_keys_of_other_records_differ():
    many = [f"{i}" for i in range(10_000)] + ["a", "aa", "aaa", "ab", "ba"]
    symbols = np.array([ord(c) for text in many for c in text])
    lengths = np.array([len(text) for text in many])

    keys = keys_of(records.Records(symbols, lengths), 0)

    assert len(set(keys.tolist())) == len(many)
    # Any of the bits would split the records in halves.
    ones = [int((keys >> np.uint64(i) & np.uint64(1)).sum()) for i in range(64)]
    assert all(abs(n - len(many) / 2) < 5 * len(many) ** 0.5 / 2 for n in ones)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("\n\n", "no records"), ("a\n", "1 record"), ("a\U0010ffffb\nc", "U\\+10FFFF")],
)
def test_what_is_no_list_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        make_corpus(tmp_path / "t", text.encode(), records="lines")


def test_the_notes_say_what_was_left_out():
    data = DataConfig(records="lines")

    scan = scan_text(source_of(b"a\r\n\r\nbc\r\n\n"), data)

    assert scan.notes == ["2 empty lines are left out", "3 lines end with \\r\\n, taken as \\n"]
    assert (scan.records.records, scan.records.longest, scan.size) == (2, 2, 5)


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 8), st.data())
def test_pieces_predict_each_character_once(lengths, length, data):
    stride = data.draw(st.integers(1, length))
    borders = np.concatenate([[0], np.cumsum(lengths)])

    pieces = pieces_of(borders[:-1], borders[1:], length, stride)

    assert pieces.lengths.max() <= length
    predicted = [
        start + t for start, n, skip in zip(*pieces, strict=True) for t in range(skip + 1, n + 1)
    ]
    assert sorted(predicted) == list(range(1, borders[-1] + 1))


@given(st.lists(st.integers(1, 40), min_size=1), st.sampled_from([0, 50, 10**9]))
def test_groups_hold_every_row_once(lengths, cost):
    lengths = np.array(lengths)

    found = list(groups(lengths, cost))

    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    if cost == 0:
        assert all(len(set(lengths[group].tolist())) == 1 for group in found)
    if cost == 10**9:
        assert len(found) == 1


def test_rows_are_filled_after_their_end():
    ids = np.array([9, 1, 2, 9, 3, 9, 4, 5, 6, 9])
    pieces = Pieces(np.array([0, 3, 5]), np.array([3, 2, 4]), np.zeros(3, int))

    (rows,) = rows_of(ids, pieces, fill=9, cost=10**9)

    assert rows.at.tolist() == [5, 0, 3]
    assert rows.x.tolist() == [[9, 4, 5, 6], [9, 1, 2, 9], [9, 3, 9, 9]]
    assert rows.y.tolist() == [[4, 5, 6, 9], [1, 2, 9, -100], [3, 9, -100, -100]]


@pytest.fixture
def names(tmp_path):
    corpus, tokenizer = make_corpus(
        tmp_path / "t", "\n".join(NAMES).encode(), records="lines", val_fraction=0.1
    )
    return corpus.splits["train"], tokenizer


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("block_size", [3, 20])
def test_rows_of_a_batch_are_records_or_pieces_of_long_ones(names, monkeypatch, held, block_size):
    split, tokenizer = names
    if not held:
        monkeypatch.setattr("charlm.text.batches.HELD", 0)
    batches = RecordBatches(split, block_size, 4, seed=1)
    known = set(texts_of_part(split, tokenizer))

    for step in range(20):
        total = 0
        for x, y in batches.groups(step):
            for row, targets in zip(x, y, strict=True):
                n = int((targets >= 0).sum())
                assert (targets[:n] >= 0).all()
                assert (row[1:n] == targets[: n - 1]).all()
                text = tokenizer.decode(np.append(row[0], targets[:n]))
                assert len(text) <= block_size + 1
                assert any(
                    text in f"{tokenizer.alphabet[-1]}{name}{tokenizer.alphabet[-1]}"
                    for name in known
                )
                total += n
        assert total == batches.chars(step)
        assert total <= 4 * block_size


def texts_of_part(split, tokenizer):
    return tokenizer.decode(split.read(0, len(split)))[1:-1].split(tokenizer.alphabet[-1])


def test_slices_of_a_batch_are_the_batch(names):
    split, _ = names
    batches = RecordBatches(split, 12, 6, seed=3)

    def rows(*which):
        return sorted(
            tuple(row[t >= 0]) + tuple(t[t >= 0])
            for x, y in batches.groups(5, *which)
            for row, t in zip(x, y, strict=True)
        )

    assert rows() == sorted(rows(0, 2) + rows(2, 4))


def test_each_character_is_in_a_batch_equally_often():
    """In the mean over all places where a window can begin."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 12, 400)
    ids = np.concatenate([[9], *([*random.integers(0, 9, n), 9] for n in lengths)])
    block_size = 40
    batches = RecordBatches(IdArray(ids, boundary=9), block_size, len(ids) - 1, seed=0)
    # Every place once instead of at random.
    places = np.arange(len(ids) - 1)
    seen = np.zeros(len(ids))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charlm.text.batches.window_starts", lambda *_: places)
        _, pieces = batches._draw(0, 0, len(places))
    windows = pieces.starts // (block_size + 1)
    before = Borders(IdArray(ids, boundary=9)).before(places)
    for window, start, n in zip(
        windows, pieces.starts % (block_size + 1), pieces.lengths, strict=True
    ):
        seen[before[window] + start + 1 : before[window] + start + n + 1] += 1

    inside = seen[100:-100]  # at the ends of the text, fewer windows are near
    of_short = [inside[i] for i in range(len(inside))]
    assert abs(np.mean(of_short) - np.mean(seen[1:])) < 0.05 * np.mean(seen[1:])
    long = np.concatenate([np.full(n + 1, n) for n in lengths])[99:-100]
    assert abs(inside[long > 8].mean() / inside[long < 4].mean() - 1) < 0.1


@pytest.mark.parametrize("micro", [8, 4])
def test_a_step_draws_each_micro_batch_once(micro, monkeypatch):
    batches = RecordBatches(IdArray(np.array([9, 1, 2, 9, 3, 9] * 5), boundary=9), 4, 8, seed=0)
    drawn = []
    starts = window_starts

    def counted(*args):
        drawn.append(args[-2:])
        return starts(*args)

    monkeypatch.setattr("charlm.text.batches.window_starts", counted)
    for first in range(0, 8, micro):
        list(batches.groups(3, first, micro))
        batches.chars(3)
    batches.chars(3)

    assert sorted(drawn) == sorted({(0, 8), *((first, micro) for first in range(0, 8, micro))})


def test_a_division_keeps_records_whole(names):
    split, tokenizer = names
    everything = texts_of_part(split, tokenizer)

    for at in range(1, len(split)):
        early, late = split.divided(at)
        assert min(early.records, late.records) > 0
        if min(len(early), len(late)) > 1:
            assert texts_of_part(early, tokenizer) + texts_of_part(late, tokenizer) == everything
        assert early.joined(late) == split
        assert isinstance(late, Split)


def test_a_file_after_a_file_is_told_apart():
    assert cut("files", "a" + chr(1) + "b") == ["a\x01b"]
    codes = np.array([97, END_OF_PART, 98], np.uint32)
    found = list(Cutter("files", "here").cut(iter([codes])))
    assert np.concatenate([one.lengths for one in found]).tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["lines", "files", "paragraphs"])
def test_a_long_record_is_not_copied_with_each_chunk(kind, monkeypatch):
    copied = 0
    join = np.concatenate

    def counted(arrays, *args, **options):
        nonlocal copied
        copied += sum(map(len, arrays))
        return join(arrays, *args, **options)

    monkeypatch.setattr(np, "concatenate", counted)
    chunk, many = np.full(100, ord("a"), np.uint32), 1000

    found = list(Cutter(kind, "here").cut(chunk for _ in range(many)))

    assert sum(len(one.symbols) for one in found) == 100 * many
    assert copied <= 3 * 100 * many + 100 * many  # at most each symbol in each of three steps


def sorted_by(texts, unique, **sizes):
    """Return records in the order in which a sorter yields them, and its counts."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        for name, size in sizes.items():
            patch.setattr(shuffling, name, size)
        codes = [np.array([ord(c) for c in text], np.uint32) for text in texts]
        lengths = np.array([*map(len, codes)], np.int64)
        sorter = Sorter(Path(folder), np.dtype("<u2"), int(lengths.sum()), len(texts))
        for i in range(0, len(texts), 7):
            some = records.Records(np.concatenate(codes[i : i + 7]), lengths[i : i + 7])
            sorter.add(some, keys_of(some, 0))
        counts = sorter.count(unique)
        found = []
        for symbols, own in sorter.sorted(unique):
            whole, ends = "".join(map(chr, symbols)), np.cumsum(own)
            found += [whole[a:b] for a, b in zip(ends - own, ends, strict=True)]
        assert not any(Path(folder).iterdir())
        assert counts == len(found)
        return found


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd" * 9, "e"]) | st.text("xy", min_size=1)))
@pytest.mark.parametrize("unique", [False, True])
def test_records_are_sorted_in_files_of_any_size(unique, texts):
    if not texts:
        return
    keys = {
        t: int(keys_of(records.Records(np.array([*map(ord, t)]), np.array([len(t)])), 0)[0])
        for t in texts
    }
    expected = sorted(set(texts) if unique else texts, key=keys.get)

    whole = sorted_by(texts, unique)
    pieces = sorted_by(texts, unique, BUCKET_BYTES=64, MOST_BYTES=100, PIECE=5, FACTS=2)

    assert whole == pieces == expected


def test_memory_does_not_grow_with_the_repeats_of_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffling, "MOST_BYTES", 1 << 16)
    monkeypatch.setattr(shuffling, "PIECE", 1 << 12)
    lengths = np.full(1 << 12, 6)
    some = records.Records(np.tile(np.arange(6, dtype=np.uint8), len(lengths)), lengths)
    few = records.Records(np.arange(6, dtype=np.uint8)[::-1], np.array([6]))
    sorter = Sorter(tmp_path, np.dtype("u1"), 6 << 18, 1 << 18)
    for k in range(64):
        sorter.add(some, keys_of(some, 0))
        sorter.add(few, keys_of(few, k % 2))  # the same first bits, or others

    tracemalloc.start()
    read = [len(one.lengths) for one in sorter.sorted(False)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert sum(read) == 64 * (1 << 12) + 64
    assert most < 1 << 21  # of 6 MiB
