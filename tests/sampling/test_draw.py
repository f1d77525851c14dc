import numpy as np
import pytest

from charlm.models import BigramModel
from charlm.sampling import Drawing, Settings, Task, Text
from charlm.sampling.draw import AT_ONCE, WORTH
from charlm.text import CharTokenizer

ALPHABET = CharTokenizer("abcdefg")


@pytest.fixture
def drawing(generator):
    model = BigramModel(7, 8, generator=generator).eval()
    task = Task(Settings(), 5)

    def make(**options):
        return Drawing(model, ALPHABET, np.array([0]), task, **options)

    return make


def test_each_text_depends_on_its_seed_alone(drawing):
    together = drawing(texts=WORTH).draw(range(WORTH))

    alone = [drawing().draw([seed])[0] for seed in range(WORTH)]
    assert [text.text() for text in together] == [text.text() for text in alone]
    assert [text.seed for text in together] == list(range(WORTH))


def test_many_texts_are_drawn_in_groups(drawing):
    many = drawing(texts=AT_ONCE + 1).groups(range(AT_ONCE + 1))

    assert [len(group) for group in many] == [AT_ONCE, 1]
    assert [len(group) for group in drawing(texts=2).groups([4, 5])] == [1, 1]


def test_a_text_that_is_shown_is_not_kept(drawing):
    shown = []

    (text,) = drawing().draw([1], shown.extend)

    assert len(shown) == 5
    assert text.pieces == shown[-1:]


def test_the_best_has_the_highest_mean(drawing):
    texts = drawing(texts=9).draw(range(9))

    assert drawing(texts=9).best(range(9)).seed == max(texts, key=Text.mean_logprob).seed


def test_a_stop_keeps_what_was_drawn(drawing):
    asked = iter([False, False, True])

    (text,) = drawing(should_stop=lambda: next(asked)).draw([1])

    assert len(text.pieces) == 2


def test_an_empty_text_has_no_mean():
    assert Text(1).mean_logprob() is None


def test_the_time_of_texts_that_are_drawn_together_is_shared(drawing, monkeypatch):
    clock = iter([10.0, 16.0, 20.0, 26.0])
    monkeypatch.setattr("charlm.sampling.draw.time.perf_counter", lambda: next(clock))

    texts = drawing(texts=WORTH).draw(range(6))
    (shown,) = drawing().draw([1], lambda pieces: None)

    assert [text.seconds for text in texts] == pytest.approx([1.0] * 6)
    assert shown.seconds == 6.0


def test_the_best_of_several_took_the_time_of_all(drawing, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("charlm.sampling.draw.time.perf_counter", lambda: next(clock))

    best = drawing(texts=9).best(range(9))

    assert best.seconds == 3  # between the first look at the clock and the fourth
