import bz2
import math
import string
import sys
from pathlib import Path

import numpy as np
import pyppmd
import pytest

from charlm.evaluation import climb, compressors
from charlm.evaluation.compressors import added_bytes, utf8
from charlm.text import ByteTokenizer, CharTokenizer, IdArray
from tests.conftest import TEXT

SOURCE = (
    Path(__file__).read_text(encoding="utf-8").encode()
)  # unlike TEXT, it does not repeat itself
ALL = compressors.compressors()
each = pytest.mark.parametrize("new", ALL.values(), ids=ALL)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(compressors, "BZIP3_BLOCK", 1 << 18)  # making a large one takes 0.1 s


def test_one_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "bz3.backends", None)

    assert [*compressors.compressors()] == ["gzip", "bzip2", "xz", "PPMd, order 6"]


@pytest.mark.parametrize(
    "tokenizer",
    [
        CharTokenizer(string.ascii_lowercase),
        CharTokenizer(map(chr, range(0x4E00, 0x4E00 + 26))),  # three bytes each in UTF-8
        ByteTokenizer(),
    ],
    ids=["letters", "Chinese", "bytes"],
)
def test_no_compressor_costs_less_than_the_entropy_of_random_characters(tokenizer):
    rng, V = np.random.default_rng(0), tokenizer.vocab_size
    train, held_out = (IdArray(rng.integers(0, V, size)) for size in (30_000, 3_000))

    rungs = [rung for rung in climb(train, held_out, tokenizer).rungs if rung.adaptive]

    assert [rung.name for rung in rungs] == [*ALL]
    for rung in rungs:
        assert rung.score.chars == 3_000
        assert 0.995 * math.log(V) < rung.score.loss_nats < 1.5 * math.log(V)
        assert rung.score.bits_per_byte == pytest.approx(
            rung.score.bits_per_symbol * 3_000 / len(utf8(held_out.ids, tokenizer))
        )


def test_ppmd_with_unequal_memory_would_cost_less_than_the_entropy(monkeypatch):
    rng = np.random.default_rng(0)
    before, after = (bytes(rng.integers(97, 123, size).tolist()) for size in (30_000, 3_000))
    memory = iter([1 << 24, 1 << 17])  # of both texts and of the first, as if chosen by length

    def unequal():
        return pyppmd.PpmdCompressor(16, next(memory), variant="H")

    assert 8 * added_bytes(unequal, before, after) / 3_000 < math.log2(26)
    asked = []
    monkeypatch.setattr(
        pyppmd, "PpmdCompressor", lambda *a, **k: asked.append((a, k)) or bz2.BZ2Compressor()
    )
    added_bytes(ALL["PPMd, order 6"], before, after)
    assert asked == [((6, compressors.PPMD_MEMORY), {"variant": "H"})] * 2


@each
def test_an_empty_or_tiny_text_costs_what_it_adds_and_is_no_danger(new):
    for before in (b"", b"a", SOURCE):
        for after in (b"", b"a", b"\0", b"\0\0\0", "\u00e9".encode(), bytes(range(256))):
            assert 0 <= added_bytes(new, before, after) <= 2 * len(after) + 40


@each
def test_a_text_in_pieces_is_compressed_as_a_whole(new, monkeypatch):
    before, after = SOURCE[:-1000], SOURCE[-1000:]
    whole = added_bytes(new, before, after)
    monkeypatch.setattr(compressors, "PIECE", 100)

    assert added_bytes(new, before, after) == whole > 0


def test_more_of_the_same_costs_a_compressor_nothing():
    before, after = TEXT[:-300].encode(), TEXT[-300:].encode()

    assert len(bz2.compress(before + after)) < len(bz2.compress(before))
    assert added_bytes(bz2.BZ2Compressor, before, after) == 0


def test_the_characters_count_as_their_bytes_in_utf_8():
    text = "a\u00e9\u20ac\U0001f600a"
    tokenizer = CharTokenizer(text)
    data = np.arange(256, dtype=np.uint8)

    assert utf8(tokenizer.encode(text), tokenizer) == text.encode()
    assert utf8(data, ByteTokenizer()) == bytes(range(256))
