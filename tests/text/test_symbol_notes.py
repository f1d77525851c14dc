"""What is said of symbols that are rare, or stand in the validation part only."""

import math
import random

import numpy as np
import pytest

from charlm.config import DataConfig
from charlm.text import encode_corpus, scan_text
from charlm.text.symbol_notes import added_nats, counted, may_be_unseen, rare_note, unseen_note
from tests.text.test_corpus import source_of

MANY = "".join(chr(0x4E00 + i) for i in range(300))


def read(tmp_path, text, **keys):
    data, source = DataConfig(**keys), source_of(text.encode())
    scan = scan_text(source, data)
    tokenizer = scan.tokenizer(data)
    return data, scan, encode_corpus(source, data, scan, tokenizer, tmp_path / "t"), tokenizer


def test_many_rare_symbols(tmp_path):
    text = "abcdefgh" * 50_000 + MANY + MANY[:100] * 2
    data, scan, _, _ = read(tmp_path, text)

    note = rare_note(scan, data)

    nats = added_nats(scan.counts, 5)
    assert note == (
        "300 of 308 different characters occur fewer than 5 times (200 of them once), and yet each takes "
        "time in every training step; data.min_count=5 lets 300 share one symbol, and adds about "
        f"{nats:.1g} nats to the loss"
    )
    assert rare_note(scan, DataConfig(min_count=2)) is None


def test_if_joining_all_is_dear_those_that_occur_once_are_joined():
    text = "abcdefgh" * 10_000 + MANY[:100] * 4 + MANY[100:200]
    data = DataConfig()
    scan = scan_text(source_of(text.encode()), data)

    assert added_nats(scan.counts, 5) > 0.02 > added_nats(scan.counts, 2)
    assert "data.min_count=2 lets 100 share one symbol" in rare_note(scan, data)


@pytest.mark.parametrize("text", ["ab" * 500 + MANY, "abcdefgh" * 50_000 + MANY[:40]])
def test_no_note_if_it_is_dear_or_they_are_few(text):
    assert rare_note(scan_text(source_of(text.encode()), DataConfig()), DataConfig()) is None


def test_the_cost_of_joining_by_hand():
    counts = np.array([96, 1, 3, 0])  # shares of 0.01 and 0.03 apart, or of 0.04 and a code point
    apart = 0.01 * math.log(100) + 0.03 * math.log(100 / 3)

    joined = 0.04 * (math.log(25) + math.log(0x110000))
    assert added_nats(counts, 4) == pytest.approx(joined - apart)
    assert added_nats(counts, 1) == 0


def test_a_border_is_no_unseen_symbol(tmp_path):
    _, scan, corpus, tokenizer = read(
        tmp_path, "ab\n" * 2 + "ba", records="lines", val_fraction=0.4
    )

    assert unseen_note(scan, corpus, tokenizer) is None


def test_what_only_the_test_part_has_too_is_not_seen(tmp_path):
    text = "ab" * 4000 + ("a" * 24 + "é") * 80
    keys = {"val_fraction": 0.1, "test_fraction": 0.1}
    _, scan, corpus, tokenizer = read(tmp_path, text, **keys)

    note = unseen_note(scan, corpus, tokenizer)

    assert note is not None
    assert note.startswith("1 character stands in the validation part only ('é'; 40 times), where")


@pytest.mark.parametrize("records", ["none", "lines"])
def test_symbols_of_the_validation_part_only(tmp_path, records):
    rng = random.Random(0)
    lines = ["".join(rng.choices("abc", k=9)) for _ in range(900)]
    lines += ["".join(rng.choices("abcé☃", k=9)) for _ in range(50)] + ["ab"] * 50
    text = "\n".join(lines)
    keys = {"records": records, "shuffle": False, "val_fraction": 0.1}
    data, scan, corpus, tokenizer = read(tmp_path, text, **keys)
    val = corpus.splits["val"]

    note = unseen_note(scan, corpus, tokenizer)

    chars = text.count("é") + text.count("☃")
    each = math.log(len(corpus.splits["train"]))
    assert note == (
        f"2 characters stand in the validation part only ('é', '☃'; {chars} times), where no model can learn from "
        f"it: about {each / math.log(2):.0f} bits each time, {chars * each / len(val):.2g} nats of the "
        "whole loss"
    )
    assert may_be_unseen(scan, data)


def test_a_seen_symbol_is_no_news(tmp_path):
    rng = random.Random(0)
    text = "".join(rng.choices("abcdé", (9, 9, 9, 9, 1), k=3000))
    data, scan, corpus, tokenizer = read(tmp_path, text)

    assert may_be_unseen(scan, data) or scan.counts[ord("é")] > 100
    assert unseen_note(scan, corpus, tokenizer) is None


def test_an_escape_is_no_unseen_symbol(tmp_path):
    text = "ab" * 1000 + MANY[:20] * 2
    _, scan, corpus, tokenizer = read(tmp_path, text, min_count=5)

    assert unseen_note(scan, corpus, tokenizer) is None


def test_nothing_is_said_of_bytes_or_without_a_validation_part(tmp_path):
    text = "ab" * 1000 + MANY[:9]
    data, scan, corpus, tokenizer = read(tmp_path, text, unit="bytes")
    assert unseen_note(scan, corpus, tokenizer) is None
    assert rare_note(scan, data) is None
    assert not may_be_unseen(scan, data)
    data = DataConfig(val_fraction=0)
    assert not may_be_unseen(scan_text(source_of(text.encode()), data), data)


def test_ids_are_counted_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("charlm.text.symbol_notes.CHUNK", 7)
    _, scan, corpus, tokenizer = read(tmp_path, "hello world", val_fraction=0)

    found = counted(corpus.splits["train"], tokenizer.vocab_size)

    assert found.tolist() == [scan.counts[ord(c)] for c in tokenizer.alphabet]
