"""What is said of lists: lengths, repeats, order, fixed widths, and texts that look like lists."""

import random
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import DataConfig
from charlm.text import scan_text, survey
from charlm.text.records import Records
from charlm.text.survey import Survey, _order
from tests.text.test_corpus import source_of

NAMES = sorted({f"{a}{b}{c}" for a in "abcdefg" for b in "oiue" for c in ("na", "rl", "tte", "s")})
NAMES += [f"{name}x" for name in NAMES]


def surveyed(lines, most=None, **keys):
    text = lines if isinstance(lines, str) else "\n".join(lines) + "\n"
    data = DataConfig(**{"records": "lines", **keys})
    return scan_text(source_of(text.encode()), data, survey=Survey(data, most)).survey


def folded(name):
    return "".join(c.lower() if c.isascii() else c for c in name)


def in_stretches(names, least):
    """Return how many names stand in stretches that rise, each with `least` different ones, slowly."""
    found, first = 0, 0
    for i in range(1, len(names) + 1):
        if i == len(names) or folded(names[i]) < folded(names[i - 1]):
            steps = sum(folded(names[k]) < folded(names[k + 1]) for k in range(first, i - 1))
            found += (i - first) * (steps >= least - 1)
            first = i
    return found


@given(st.lists(st.text("aAbBé", min_size=1, max_size=4), min_size=1), st.integers(1, 9))
def test_stretches_in_order(names, pieces):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "STRETCH", 3)
        found = Survey(DataConfig(records="lines"))
        for first in range(0, len(names), pieces):
            some = names[first : first + pieces]
            codes = np.array([ord(c) for c in "".join(some)], np.uint32)
            found.add(Records(codes, np.array([*map(len, some)])))
        found.close()

    assert found.ascending.records == in_stretches(names, 3)
    assert found.records == len(names)
    assert found.repeats == pytest.approx(1 - len(set(names)) / len(names))
    assert found.longest == max(map(len, names))


@given(st.lists(st.text("aAbé", min_size=1, max_size=6), min_size=2))
def test_neighbours_are_compared_like_strings(names):
    codes = np.array([ord(c) for c in "".join(names)], np.uint32)

    order = _order(Records(codes, np.array([*map(len, names)])))

    pairs = zip(map(folded, names), map(folded, names[1:]), strict=False)
    assert order.tolist() == [(b > a) - (b < a) for a, b in pairs]


def test_a_text_with_a_very_long_line_is_not_held_in_memory():
    assert surveyed("x" * 300_000 + "\na" * 300, records="none").is_text


def test_what_is_equal_for_very_long_is_in_no_order():
    assert surveyed(["x" * 70 + name for name in NAMES]).in_order == 0
    assert surveyed(["x" * 55 + name for name in sorted(NAMES)]).in_order == 1


@pytest.mark.parametrize(
    ("shuffle", "end"),
    [
        (
            True,
            "keep data.shuffle=true, which mixes them before the end becomes the validation part",
        ),
        (False, "data.shuffle=false makes the end of that order the validation part; use true"),
    ],
)
def test_a_sorted_list_is_told_from_a_shuffled_one(shuffle, end):
    mixed = random.Random(0).sample(NAMES, len(NAMES))
    for order in (sorted(NAMES), sorted(NAMES, reverse=True)):
        found = surveyed(order, shuffle=shuffle)
        assert found.notes() == [f"the records are in alphabetical order; {end}"]
        assert bool(found.notes(important=True)) is not shuffle
    parts = [*sorted(mixed[:100]), *mixed[100:]]
    (note,) = surveyed(parts, shuffle=shuffle).notes()

    assert "45 % of the records are in alphabetical order, in one stretch or more; " in note
    assert surveyed(mixed, shuffle=shuffle).notes() == []


def test_the_repeats_of_very_many_records_are_estimated(monkeypatch):
    names = [f"{i % 3000}" for i in range(4000)]
    assert surveyed(names).repeats == 0.25

    monkeypatch.setattr(survey, "MOST_KEYS", 800)
    assert surveyed(names).repeats == pytest.approx(0.25, abs=0.06)


def test_a_list_that_is_read_as_a_text_is_noticed():
    mixed = random.Random(0).sample(NAMES, len(NAMES))
    end = "data.records=lines makes each line a text of its own, with a beginning and an end"

    assert surveyed(mixed, records="none").notes() == [
        f"this looks like a list, an entry in each line; {end}"
    ]
    assert surveyed(sorted(NAMES), records="none").notes(important=True) == [
        f"this looks like a list, an entry in each line, and the lines are in alphabetical order; {end}"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "one two three\nfour five six\n" * 200,  # prose
        "one\ntwo\n\n" * 200,  # stanzas
        "name\n" * 100,  # too short to tell
        "x" * 300_000 + "\na" * 300,  # one very long line
        "a\U0010ffffb\n" * 300,  # no boundary is free
        "我爱你，你爱我。他也爱你\n" * 300,  # no spaces between words
        ("w" * 150 + "\n" + "u" * 190 + "\n") * 300,  # long lines
    ],
)
def test_other_texts_are_no_lists(text):
    assert surveyed(text, records="none").notes() == []


def test_lines_of_one_width():
    random.seed(0)
    sequences = ("".join(random.choices("ACGT", k=700)) for _ in range(40))
    cut = ([">s", *(s[i : i + 60] for i in range(0, 700, 60))] for s in sequences)
    text = "".join(f"{line}\n" for lines in cut for line in lines)

    assert surveyed(text, records="none").notes() == [
        "most lines have exactly 60 characters; if one text was cut into them, data.newlines=none joins it"
    ]
    assert surveyed(text, records="none").notes(important=True) == []
    assert surveyed(text, records="none", newlines="none").notes() == []


def test_only_the_start_of_a_text_is_looked_at_before_training():
    found = surveyed(["ab"] * 300_000, most=1000)

    assert 1000 <= found.symbols < 300_000


def test_bytes_are_not_looked_at():
    assert surveyed(sorted(NAMES), records="none", unit="bytes").notes() == []


def prose(width=None, blank=0):
    """Return sentences: broken into lines of a width, or with an empty line after so many."""
    chance = random.Random(0)
    words = [
        chance.choice(["the", "old", "sailor", "went", "down", "to", "sea"]) for _ in range(3000)
    ]
    if width:
        return textwrap.wrap(" ".join(words), width)
    found = []
    for at in range(0, len(words), 9):
        found += [" ".join(words[at : at + 9]), *([""] if at // 9 % blank == blank - 1 else [])]
    return found


def test_running_text_that_is_read_as_a_list_is_noted():
    note = [
        "these lines look like running text, not like a list; data.records=none reads all as one text, "
        "paragraphs reads each paragraph as one"
    ]
    chance = random.Random(1)
    sentences = [" ".join(["word"] * chance.randrange(3, 20)) + str(i) for i in range(300)]

    assert surveyed(prose(width=70)).notes(important=True) == note
    assert surveyed(prose(blank=5)).notes() == note
    assert surveyed(prose(blank=1)).notes() == []  # a list with an empty line after each
    assert surveyed(sentences).notes() == []
    assert not surveyed(NAMES).is_prose
    assert surveyed(prose(blank=5), records="paragraphs").notes() == []
