"""The parts of a text that contexts name: brought up to date character by character, they mean what they say."""

import numpy as np
import pytest

from charlm.models.view import CODES, LETTER, NEWLINE, OTHER, SIZE, classes_of, codes_of, part, see
from charlm.text import ByteTokenizer, CharTokenizer

TEXT = "The cat sat.\nA cat\n\nHAT: a Cat sat;\n the\n\nCat: that\nhat, 'tis (a) hat\n"
TOKENS = CharTokenizer(TEXT)
EVERY = [*"125", *(name for name in CODES if not name.startswith("after"))]


def words(text):
    return "".join(c.lower() if c.isalnum() or c == "'" else " " for c in text).split(" ")


def slow_part(part, text):
    """Return a part of what has been read, straight from its meaning."""
    if part.isdecimal():
        return text[-int(part)] if int(part) <= len(text) else None
    line = text.rpartition("\n")[2]
    if part == "word":
        return words(text)[-1]
    if part.startswith("word-"):
        whole = [word for word in words(text)[:-1] if word]
        back = int(part[5:])
        return whole[-back] if back <= len(whole) else None
    if part == "gap":
        end = len(text) - len(words(text)[-1])
        begin = end
        while begin and not (text[begin - 1].isalnum() or text[begin - 1] == "'"):
            begin -= 1
        return text[begin:end] or None
    if part == "last":
        return None if words(text)[-1] else text[-1:] or None
    if part == "lines":
        ended = text.count("\n")
        return ended and 1 + (text.removeprefix("\n").rpartition("\n")[0].endswith("\n"))
    if part == "line":
        return line[:4]
    if part == "column":
        return len(line)
    if part == "above":
        above = text.split("\n")[-2] if "\n" in text else ""
        return above[len(line)] if len(line) < len(above) else None
    paragraph = text.removeprefix("\n").rpartition("\n\n")[2]
    return next((word for word in words(paragraph)[:-1] if word), None)


@pytest.mark.parametrize("name", EVERY)
def test_two_places_agree_in_a_part_where_it_means_the_same(name):
    view, (code,), classes = np.zeros(SIZE, np.uint64), codes_of(name), classes_of(TOKENS)
    found = [int(part(view, code))]
    for symbol in TOKENS.encode(TEXT):
        see(view, symbol, classes)
        found.append(int(part(view, code)))
    meant = [slow_part(name, TEXT[:t]) for t in range(len(TEXT) + 1)]

    pairs = {}
    for number, meaning in zip(found, meant, strict=True):
        assert pairs.setdefault(meaning, number) == number
    assert len(set(pairs.values())) == len(pairs) > 1
    assert pairs.get(None, 0) == 0


def test_symbols_have_classes_and_lower_case():
    tokens = CharTokenizer("aAÄäB'\n.1")

    kinds, lower = classes_of(tokens)
    of_bytes, lower_bytes = classes_of(ByteTokenizer())

    expected = {"\n": NEWLINE, ".": OTHER} | dict.fromkeys("aAÄäB'1", LETTER)
    assert {c: kinds[i] for i, c in enumerate(tokens.alphabet)} == expected
    folded = {c: tokens.alphabet[lower[i]] for i, c in enumerate(tokens.alphabet)}
    assert folded == {**{c: c for c in tokens.alphabet}, "A": "a", "Ä": "ä"}
    assert [of_bytes[b] for b in b"\n .aZ\xc3"] == [NEWLINE, OTHER, OTHER, LETTER, LETTER, LETTER]
    assert lower_bytes[ord("Z")] == ord("z")
    assert (lower_bytes[128:] == np.arange(128, 256)).all()
