"""Rare characters share one id, and which they were is kept beside the ids."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import DataConfig, load_config
from charlm.errors import CheckpointError, DataError, UsageError
from charlm.storage import read_manifest
from charlm.text import CharTokenizer, IdArray, load_tokenizer, open_corpus, scan_text
from charlm.text.escapes import count_escapes, escaped, utf8_size
from charlm.text.tokenizer import BOUNDARY, ESCAPE
from tests.text.test_corpus import make_corpus, source_of, whole

SOME = st.text("aaaabb\nc\n\x80é\u07ff\u0800☃\uffff\U00010000😀", min_size=3, max_size=60)


def given_back(split, tokenizer):
    """Return the text of a part, its rare characters put back."""
    rare = iter("".join(map(chr, np.concatenate([np.empty(0, int), *escaped(split)]).tolist())))
    text = tokenizer.decode(split.read(0, len(split)))
    back = "".join(next(rare) if char == "\ufffd" else char for char in text)
    assert next(rare, None) is None
    return back


@given(SOME, st.integers(2, 5), st.sampled_from([0.0, 0.3]))
def test_the_text_is_the_same_but_for_rare_characters(tmp_path_factory, text, least, share):
    counts = Counter(text)
    kept = {char for char, count in counts.items() if count >= least}
    folder = tmp_path_factory.mktemp("corpus") / "tokens"
    keys = {"min_count": least, "val_fraction": share}
    if not kept:
        with pytest.raises(DataError, match=f"no character of .* occurs {least} times"):
            make_corpus(folder, text.encode(), **keys)
        return

    _, tokenizer = make_corpus(folder, text.encode(), **keys)
    corpus = open_corpus(folder)

    assert tokenizer.alphabet == "".join(sorted(kept)) + ESCAPE
    assert tokenizer.escape == len(kept)
    assert tokenizer.decode(whole(corpus)) == "".join(c if c in kept else "\ufffd" for c in text)
    assert "".join(given_back(s, tokenizer) for s in corpus.splits.values()) == text
    assert corpus.facts["distinct"] == len(counts)
    assert corpus.facts["escapes"] == sum(n for n in counts.values() if n < least)
    for split in corpus.splits.values():
        back = given_back(split, tokenizer)
        for first in range(0, len(split), 5):
            codes = [c for some in escaped(split, first, min(9, len(split) - first)) for c in some]
            assert [*map(chr, codes)] == [c for c in back[first : first + 9] if c not in kept]
        if len(split) > 2:
            assert given_back(split.part(1, len(split) - 1), tokenizer) == back[1:-1]


@given(st.lists(st.text("aabcé☃😀", min_size=1, max_size=6), min_size=4, unique=True))
def test_records_with_rare_characters_are_in_the_parts_they_would_be_in(tmp_path_factory, names):
    data, folder = "\n".join(names).encode(), tmp_path_factory.mktemp("corpus")
    keys = {"records": "lines", "val_fraction": 0.3}
    plain, its = make_corpus(folder / "plain", data, **keys)
    kept = {c for c, n in Counter("".join(names)).items() if n >= 3}
    if not kept:
        return

    corpus, tokenizer = make_corpus(folder / "rare", data, **keys, min_count=3)

    assert tokenizer.alphabet == "".join(sorted(kept)) + ESCAPE + BOUNDARY
    for name, split in corpus.splits.items():
        other = plain.splits[name]
        assert given_back(split, tokenizer) == its.decode(other.read(0, len(other)))
        assert np.array_equal(
            split.read(0, len(split)) == tokenizer.boundary,
            other.read(0, len(other)) == its.boundary,
        )


def test_an_alphabet_with_an_escape_knows_every_character(tmp_path):
    tokenizer = CharTokenizer("abe", escape=True)

    assert tokenizer.encode("aéx\U0010fffe").tolist() == [0, 3, 3, 3]
    assert tokenizer.encode("aéx", "nearest").tolist() == [0, 2, 3]
    assert tokenizer.encode("aéx", "skip").tolist() == [0]
    assert tokenizer.decode([0, 3, 1]) == "a\ufffdb"
    assert [tokenizer.stream_decoder()(i) for i in (3, 0, None)] == ["\ufffd", "a", ""]
    (tmp_path / "t.json").write_text(tokenizer.to_json())
    assert load_tokenizer(tmp_path / "t.json").escape == 3
    assert "escape" not in CharTokenizer("abe").to_json()


def test_the_escape_comes_before_the_boundary():
    tokenizer = CharTokenizer("ab", boundary=True, escape=True)

    assert (tokenizer.escape, tokenizer.boundary, tokenizer.vocab_size) == (2, 3, 4)


def test_a_text_with_the_escape_is_refused_only_if_it_has_that_meaning():
    source = source_of("aa\U0010fffe".encode())

    assert len(scan_text(source, DataConfig()).tokenizer(DataConfig()).alphabet) == 2
    with pytest.raises(DataError, match=r"holds U\+10FFFE.*data.min_count=1"):
        scan_text(source, DataConfig(min_count=2))


def test_a_damaged_manifest_is_refused(tmp_path):
    make_corpus(tmp_path / "t", b"aaab", min_count=2)
    path = tmp_path / "t" / "MANIFEST.json"
    path.write_text(json.dumps(read_manifest(tmp_path / "t") | {"escape": 2}))

    with pytest.raises(CheckpointError, match=r"its manifest is incomplete .*escape"):
        open_corpus(tmp_path / "t")


def test_the_rare_characters_of_ids_in_memory_are_not_known():
    ids = IdArray(np.array([0, 2, 1, 2, 2]), escape=2)

    assert [*map(list, escaped(ids, 2))] == [[0xFFFD, 0xFFFD]]
    assert [*escaped(IdArray(ids.ids))] == []
    assert count_escapes(ids.ids, 2) == 3
    assert ids.part(1, 3).escape == 2


@given(st.text())
def test_sizes_are_those_of_utf_8(text):
    codes = np.array([ord(c) for c in text], np.uint32)

    assert utf8_size(codes) == len(text.encode())


def test_too_many_characters_can_be_made_fewer():
    data = DataConfig(max_vocab=2)
    scan = scan_text(source_of(b"aabbcd"), data)

    with pytest.raises(DataError, match=r"data.max_vocab=4, data.min_count=2 or data\.unit=bytes"):
        scan.tokenizer(data)
    assert scan.tokenizer(DataConfig(max_vocab=2, min_count=2)).alphabet == "ab" + ESCAPE


def test_bytes_have_no_rare_symbols():
    with pytest.raises(UsageError, match="bytes have no rare symbols"):
        load_config("gpt", ["data.unit=bytes", "data.min_count=2"])
