import math
import struct

import numpy as np
import pytest
import torch
from constriction import stream

from charlm.coding.modelled import ModelCoder
from charlm.coding.ranges import distribution
from charlm.coding.symbols import Symbols, one_thread
from charlm.config import NGramConfig
from charlm.errors import NonFiniteError
from charlm.models.adaptive import AdaptiveReader, uniform
from charlm.models.growing import GrowingNGram
from charlm.text import CharTokenizer
from tests.conftest import TEXT

LETTERS = CharTokenizer(TEXT)


def growing():
    """A reader that begins with nothing."""
    return GrowingNGram(NGramConfig(type="ngram", order=4), LETTERS.vocab_size)


def quiet(size):
    pass


def test_blocks_come_back_and_the_reader_goes_on_learning():
    encoder, decoder = (ModelCoder(Symbols(growing()), LETTERS, "utf-8") for _ in range(2))
    blocks = [TEXT[:400].encode(), "unknown: é".encode() + b"\xff", b"", TEXT[:400].encode()]

    codes = [encoder.encode(block, quiet) for block in blocks]

    assert [decoder.decode(c, len(b), quiet) for c, b in zip(codes, blocks, strict=True)] == blocks
    assert len(codes[3]) < len(codes[0]) / 2


def test_the_code_is_as_long_as_the_loss_says():
    ids = LETTERS.encode(TEXT)
    reader = growing()
    log_p = torch.cat([reader.first()[None], reader.go_on(ids)[:-1]])
    nats = -float(log_p[torch.arange(len(ids)), torch.from_numpy(ids)].double().sum())
    coder = ModelCoder(Symbols(growing()), LETTERS, "utf-8")

    coder.encode(TEXT.encode(), quiet)

    assert coder.symbols == len(ids)
    assert 8 * coder.coded_bytes * math.log(2) == pytest.approx(nats, rel=1e-3, abs=64)  # two words


class Sure(AdaptiveReader):
    """Knows one character only."""

    def first(self):
        return uniform(1)

    def go_on(self, ids):
        return torch.zeros(len(ids), 1)


def test_an_alphabet_of_one_character_costs_nothing():
    one = CharTokenizer("a")

    code = ModelCoder(Symbols(Sure()), one, "utf-8").encode(b"a" * 500, quiet)

    assert ModelCoder(Symbols(Sure()), one, "utf-8").decode(code, 500, quiet) == b"a" * 500
    assert len(code) <= 16


class Strange(AdaptiveReader):
    """Predicts alike always, but `off` at one of the first 512 characters."""

    def __init__(self, off):
        self.off, self.read = off, 0

    def first(self):
        return uniform(LETTERS.vocab_size)

    def go_on(self, ids):
        self.read += len(ids)
        return self.first()[None] + (self.off if self.read == 300 else 0.0)


def test_a_prediction_that_is_no_number_is_refused():
    coder = ModelCoder(Symbols(Strange(math.nan)), LETTERS, "utf-8")

    with pytest.raises(NonFiniteError, match="the model predicts NaN"):
        coder.encode(TEXT[:400].encode(), quiet)


def test_one_bit_changes_the_fingerprint():
    bit = float(np.spacing(np.float32(4)))

    same = {Symbols(Strange(0.0)).fingerprint() for _ in range(2)}

    assert len(same) == 1
    assert Symbols(Strange(bit)).fingerprint() not in same


def test_a_symbol_that_the_alphabet_has_not_is_refused():
    """A coder knows no alphabet of one, so words may have a second symbol."""
    encoder = stream.queue.RangeEncoder()
    encoder.encode(1, distribution(np.array([1.0, 0.0])))
    words = encoder.get_compressed().astype("<u4").tobytes()
    code = struct.pack("<II", 1, len(words)) + words

    with pytest.raises(ValueError, match="a symbol that is none"):
        ModelCoder(Symbols(Sure()), CharTokenizer("a"), "utf-8").decode(code, 1, quiet)


def test_words_that_no_text_has_are_refused():
    """As where a machine predicts otherwise than the one that encoded."""
    code = struct.pack("<II", 9, 8) + b"\xff" * 8

    with pytest.raises(ValueError, match="invalid for the employed entropy model"):
        ModelCoder(Symbols(growing()), LETTERS, "utf-8").decode(code, 9, quiet)


@pytest.mark.parametrize(
    "code", [b"", b"1234567", bytes(4) + b"\x08\0\0\0" + bytes(4), b"\xff" * 40]
)
def test_code_that_is_none_is_refused(code):
    with pytest.raises(ValueError, match=r"too short|wrong lengths"):
        ModelCoder(Symbols(growing()), LETTERS, "utf-8").decode(code, 5, quiet)


def test_one_thread_is_used_and_then_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
