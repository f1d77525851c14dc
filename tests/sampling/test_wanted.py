"""Texts are drawn until enough of them are wanted."""

from itertools import chain, count, islice, repeat

import pytest

from charlm.evaluation.known import Known
from charlm.models import BigramModel
from charlm.sampling import Drawing, Settings, Task, Wanted, draw_wanted, encode_prompt, wanted
from tests.evaluation.test_known import LETTERS, part_of

RECORDS = ["a", "b", "ab", "ba"]
KNOWN = Known.of_part(part_of(RECORDS), LETTERS)


@pytest.fixture
def drawing(generator):
    model = BigramModel(4, 8, generator=generator).eval()

    def make(prompt="", chars=50, **options):
        task = Task(Settings(), chars)
        return Drawing(model, LETTERS, encode_prompt(LETTERS, prompt), task, **options)

    return make


def one_by_one(drawing, best_of, known, unique):
    """Yield the seeds and texts that are wanted, each drawn alone."""
    seen = set()
    for first in count(0, best_of):
        text = drawing.best(range(first, first + best_of))
        whole = drawing.begun + text.text()
        if known and (whole in RECORDS or not whole or text.ended != "boundary"):
            continue
        if unique and whole in seen:
            continue
        seen.add(whole)
        yield text.seed, text.text()


@pytest.mark.parametrize("prompt", ["", "a"])
@pytest.mark.parametrize("best_of", [1, 3])
@pytest.mark.parametrize(("known", "unique"), [(KNOWN, False), (None, True), (KNOWN, True)])
def test_they_are_those_of_a_slow_search(drawing, prompt, best_of, known, unique):
    for number in (2, 30):
        expected = list(islice(one_by_one(drawing(prompt), best_of, known, unique), number))
        which = Wanted(known, unique)

        found = list(draw_wanted(drawing(prompt, texts=number), 0, number, which, best_of))

        assert [(text.seed, text.text()) for text in found] == expected
        assert which.drawn == number + which.recited + which.repeated + which.unfinished


def test_what_was_drawn_before_is_a_repeat_later(drawing):
    which = Wanted(unique=True)

    first = list(draw_wanted(drawing(texts=9), 0, 9, which))
    again = list(draw_wanted(drawing(texts=9), 0, 9, which))

    assert not {text.text() for text in first} & {text.text() for text in again}
    assert len(again) == 9


@pytest.mark.parametrize("number", [1, 20])
def test_it_ends_where_nothing_more_is_found(drawing, monkeypatch, number):
    monkeypatch.setattr(wanted, "MOST_DRAWS", 7)
    which = Wanted(unique=True)

    found = list(draw_wanted(drawing(chars=1, texts=number), 0, number, which))

    assert len(found) == min(4, number)  # nothing, a, b, c
    assert number < 20 or which.drawn == 140


def test_a_record_that_is_cut_off_is_not_new(drawing, monkeypatch):
    monkeypatch.setattr(wanted, "MOST_DRAWS", 7)
    which = Wanted(KNOWN)

    found = list(draw_wanted(drawing(chars=1, texts=9), 0, 9, which))

    assert found == []
    assert (which.drawn, which.unfinished) == (63, 63)
    assert str(which) == "63 drawn: 63 cut off"


def test_a_stop_ends_the_search(drawing):
    asked = iter([False] * 30 + [True] * 99)
    which = Wanted(KNOWN)

    found = list(draw_wanted(drawing(should_stop=lambda: next(asked)), 0, 500, which))

    assert 0 < len(found) < 20
    asked = chain([False, False], repeat(True))
    together = drawing(should_stop=lambda: next(asked), texts=500)
    (text,) = draw_wanted(together, 0, 500, Wanted(unique=True))
    assert text.ended == "interrupted"


def test_it_says_what_was_left_out():
    assert str(Wanted(drawn=1500)) == "1,500 drawn"
    found = str(Wanted(drawn=1500, recited=1200, repeated=1))
    assert found == "1,500 drawn: 1,200 in the training part, 1 repeated"
