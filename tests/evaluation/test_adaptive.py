"""The protocol `adaptive`: each character is scored before it is learned from."""

import numpy as np
import pytest
import torch

from charlm.config import AdaptConfig, NGramConfig
from charlm.evaluation import score_text
from charlm.evaluation.protocols import choose
from charlm.evaluation.unknown import LeftOut
from charlm.models import build_model
from charlm.text import IdArray
from tests.evaluation.fakes import Window, one_by_one

V = 7
BEFORE = np.random.default_rng(0).integers(V, size=80) // 2
TEXT = np.random.default_rng(1).integers(V, size=50) // 2


@pytest.fixture(autouse=True)
def short_readings(monkeypatch):
    monkeypatch.setattr("charlm.evaluation.protocols.CHARS_A_READING", 8)


def reader():
    model = build_model(NGramConfig(type="ngram", order=4), V)
    return model.adaptive(AdaptConfig(), IdArray(BEFORE))


def scored(text, its_reader=None, **options):
    """Return the score and the nats of each character."""
    model, nats = Window(V), []
    score = score_text(
        model,
        IdArray(text),
        choose(model, "adaptive"),
        reader=its_reader or reader(),
        each=lambda some: nats.extend(some.nats.tolist()),
        **options,
    )
    return score, np.array(nats)


def test_it_equals_a_new_reader_for_each_character():
    score, nats = scored(TEXT)

    slow = [-reader().go_on(TEXT[:t])[-1, TEXT[t]].item() for t in range(1, len(TEXT))]
    np.testing.assert_allclose(nats, slow, atol=1e-6)
    assert score.loss_nats == pytest.approx(np.mean(slow), abs=1e-6)
    assert score.chars == len(TEXT) - 1


def test_a_later_character_moves_no_earlier_score():
    other = TEXT.copy()
    other[30] = V - 1

    (_, nats), (_, moved) = scored(TEXT), scored(other)

    assert np.array_equal(nats[:29], moved[:29])  # the first character has no score
    assert (nats[29:] != moved[29:]).all()


def test_a_model_that_learns_nothing_has_the_loss_of_one_reading():
    model = Window(V, block_size=64)

    score, nats = scored(TEXT, model.adaptive(AdaptConfig()))

    slow = one_by_one(model, TEXT, lambda i: 0)
    np.testing.assert_allclose(nats, slow, atol=1e-5)
    assert score.loss_nats == pytest.approx(slow.mean(), abs=1e-5)


def test_unknown_characters_are_neither_read_nor_learned_from():
    unknown = LeftOut(np.array([5, 5, 20]), np.array([V, V, V]), np.arange(V), 2.5)

    score, nats = scored(TEXT, left_out=unknown)

    assert (score.chars, score.unknown) == (len(TEXT) + 2, 3)
    assert np.delete(nats, [4, 5, 21]) == pytest.approx(scored(TEXT)[1])
    assert nats[[4, 5, 21]].tolist() == [2.5] * 3


def test_each_character_comes_with_what_was_likelier():
    found = []
    model = Window(V)

    score_text(model, IdArray(TEXT), choose(model, "adaptive"), reader=reader(), each=found.append)

    log_p = reader().go_on(TEXT[:-1])
    p = np.concatenate([some.likeliest.p for some in found])
    assert p[:, 0] == pytest.approx(log_p.exp().max(dim=1).values.double().numpy())
    assert torch.equal(
        torch.from_numpy(np.concatenate([some.likeliest.ids for some in found])[:, 0]),
        log_p.argmax(dim=1),
    )
