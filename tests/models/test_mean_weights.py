"""The mean of a mixer's weights over the end of a text."""

import numpy as np

from charlm.models.bit_mixing import new_mixer
from charlm.models.bit_reading import LEARN, NO_OFFERS, NOTHING, read
from charlm.models.mean_weights import TIMES, WEIGHTS, MeanWeights
from charlm.models.symbol_tree import grow_tree, walks_of
from charlm.models.view import classes_of, codes_of
from charlm.text import CharTokenizer

V = 4
TOKENS = CharTokenizer("abcd")


def mixer_of(ids):
    contexts = [codes_of("1"), codes_of("1 2")]
    return new_mixer(walks_of(grow_tree(ids, V)), classes_of(TOKENS), contexts, 10)


def test_it_is_the_rounded_mean_of_the_weights_when_they_were_added():
    ids = np.random.default_rng(3).integers(V, size=96)
    mixer, kept = mixer_of(ids), []
    mean = MeanWeights(mixer, len(ids))
    assert mean.every == 96 // TIMES
    for piece in np.split(ids, 4):
        read(mixer, piece, NO_OFFERS, NOTHING, LEARN)
        mean.add()
        kept.append([getattr(mixer, name).copy() for name in WEIGHTS])

    mean.use()

    for name, was in zip(WEIGHTS, zip(*kept, strict=True), strict=True):
        exact = np.mean(np.stack(was).astype(float), axis=0)
        assert np.abs(getattr(mixer, name) - exact).max() <= 0.5
        assert getattr(mixer, name).dtype == np.int32


def test_without_an_addition_the_weights_stay():
    mixer = mixer_of(np.arange(V))
    before = mixer.weights.copy()

    MeanWeights(mixer, 0).use()

    np.testing.assert_array_equal(mixer.weights, before)


def test_the_sum_of_many_large_weights_does_not_overflow():
    """A large alphabet is read in many pieces, and weights are added after each."""
    mixer = mixer_of(np.arange(V))
    mixer.weights[:] = 2**30
    mean = MeanWeights(mixer, 1)
    for _ in range(3):
        mean.add()

    mean.use()

    assert (mixer.weights == 2**30).all()
