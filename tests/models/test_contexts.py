"""Hashes of contexts agree with what the contexts mean, told slowly."""

import numpy as np
import pytest

from charlm.config.contexts import PARTS
from charlm.models.contexts import advance, alphabet_of, reset, start
from charlm.text import ByteTokenizer, CharTokenizer

TEXT = (
    "The cat's hat.\n\nHAT: a Cat sat; on\n the\n\nCat:  that hat the\nhat\n\n\nthe cat's hat that"
)
TOKENS = CharTokenizer(TEXT)
CONTEXTS = [
    0,
    1,
    2,
    5,
    12,
    *([name] for name in PARTS),
    [1],
    [3],
    ["word", "last"],
    [1, 2, "after-2"],
]


def words(text):
    return "".join(c.lower() if c.isalnum() or c == "'" else " " for c in text).split(" ")


def meaning(part, text):
    """Return a part of what has been read, straight from its meaning."""
    if isinstance(part, int):
        return text[-part] if part <= len(text) else None
    line, whole = text.rpartition("\n")[2], [word for word in words(text)[:-1] if word]
    before = text.split("\n")[-2] + "\n" if "\n" in text else ""
    if part.startswith("word"):
        back = int(part[5:] or 0)
        return words(text)[-1] if back == 0 else whole[-back] if back <= len(whole) else None
    if part.startswith("after"):
        order, past = int(part[6:]), "\0" * 3 + text
        ends = [i for i in range(3, len(past)) if past[i - order : i] == past[len(past) - order :]]
        return [past[i] for i in ends][-2:]
    if part == "gap":
        now = words(text)[-1]
        rest = text[: len(text) - len(now)]
        return rest[len(rest.rstrip("\n .:;,")) :]
    if part == "paragraph":
        read = text.rpartition("\n\n")[2]
        return next((word for word in words(read)[:-1] if word), None)
    return {
        "line": line[:4],
        "column": len(line),
        "above": before[len(line)] if len(line) < len(before) else None,
        "lines": ("\n" + text).rpartition("\n")[0].endswith("\n"),
        "last": text[-1] if text and not words(text)[-1] else None,
    }[part]


def test_hashes_are_equal_where_the_meanings_are_and_only_there():
    past = start(CONTEXTS, alphabet_of(TOKENS))
    hashes, meanings = [past.hashes.copy()], []
    for symbol in TOKENS.encode(TEXT):
        advance(past, symbol, True)
        hashes.append(past.hashes.copy())

    for t in range(len(TEXT) + 1):
        of_all = []
        for context in CONTEXTS:
            parts = range(1, context + 1) if isinstance(context, int) else context
            of_all.append(repr([meaning(part, TEXT[:t]) for part in parts]))
        meanings.append(of_all)

    for i, context in enumerate(CONTEXTS):
        pairs = {(int(hashes[t][i]), meanings[t][i]) for t in range(len(TEXT) + 1)}
        assert len({h for h, _ in pairs}) == len({m for _, m in pairs}) == len(pairs), context
    assert len({m[0] for m in meanings}) == 1
    assert all(len({m[i] for m in meanings}) > 1 for i in range(1, len(CONTEXTS)))


def test_a_reset_forgets_the_text_and_keeps_what_followed_contexts():
    past, fresh = (start([1, ["word-1"], ["after-1"]], alphabet_of(TOKENS)) for _ in range(2))
    ids = TOKENS.encode("cat hat")
    for symbol in ids:
        advance(past, symbol, True)

    reset(past)
    assert np.array_equal(past.hashes[:2], fresh.hashes[:2])
    assert past.hashes[2] != fresh.hashes[2]  # a "c" followed the start of a text
    for symbol in ids:
        advance(past, symbol, False)
        advance(fresh, symbol, True)

    assert np.array_equal(past.hashes[:2], fresh.hashes[:2])
    again = start([["after-1"]], alphabet_of(TOKENS))
    for symbol in ids:
        advance(again, symbol, False)
    assert np.array_equal(again.after, np.zeros_like(again.after))


def test_symbols_have_lower_case_and_a_newline():
    tokens = CharTokenizer("aAÄäB'\n.1")

    letter, folded, newline = alphabet_of(tokens)
    of_bytes, folded_bytes, newline_byte = alphabet_of(ByteTokenizer())

    assert {c for c, is_one in zip(tokens.alphabet, letter, strict=True) if is_one} == set(
        "aAÄäB'1"
    )
    small = {c: tokens.alphabet[i] for c, i in zip(tokens.alphabet, folded, strict=True)}
    assert small == {**{c: c for c in tokens.alphabet}, "A": "a", "Ä": "ä"}
    assert (tokens.alphabet[newline], newline_byte) == ("\n", 10)
    assert alphabet_of(CharTokenizer("ab")).newline == -1
    assert of_bytes[[10, 32, 97, 90, 0xC3]].tolist() == [0, 0, 1, 1, 1]
    assert folded_bytes[ord("Z")] == ord("z")
    assert (folded_bytes[128:] == np.arange(128, 256)).all()


def test_a_line_may_be_longer_than_the_columns_that_are_told_apart():
    tokens = CharTokenizer("ab\n")
    past = start([["column"], ["above"]], alphabet_of(tokens))

    for symbol in tokens.encode("a" * 300 + "\n" + "b" * 300):
        advance(past, symbol, True)

    assert past.lines.shape == (2, 256)


@pytest.mark.parametrize("learn", [True, False])
def test_it_computes_the_same_on_every_run(learn):
    found = []
    for _ in range(2):
        past = start(CONTEXTS, alphabet_of(TOKENS))
        for symbol in TOKENS.encode(TEXT):
            advance(past, symbol, learn)
        found.append(past.hashes)

    assert np.array_equal(*found)
