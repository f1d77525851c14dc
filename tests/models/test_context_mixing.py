"""Context mixing: every way of asking gives the same probabilities, and learning never looks ahead."""

import numpy as np
import pytest
import torch

from charlm.config import AdaptConfig, ContextMixingConfig
from charlm.config.context_mixing import table_bits
from charlm.errors import Stopped
from charlm.models import build_model, context_mixing
from charlm.models.bit_mixing import new_mixer
from charlm.models.bit_reading import (
    LEARN,
    NO_OFFERS,
    NOTHING,
    REMEMBER,
    begin_anew,
    offer,
    read,
)
from charlm.models.context_mixing import ContextMixingModel, LearningMixer
from charlm.models.mean_weights import TIMES
from charlm.models.symbol_tree import grow_tree, walks_of
from charlm.models.view import classes_of
from charlm.text import CharTokenizer, IdArray

FIRST = "The cat sat.\nA cat\n\nHAT: a Cat sat;\n the\n\nCat: that\nhat\n" * 3
SECOND = "that cat: sat\n\nThe hat,\n  a cat\ntea\n\n"
TOKENS = CharTokenizer(FIRST + SECOND)
V = TOKENS.vocab_size
CONTEXTS = ("lines", "1", "1 2", "1 2 3", "word gap", "paragraph 1", "above 1", "after-1 1")


def fitted(text=FIRST, contexts=CONTEXTS):
    config = ContextMixingConfig(type="context-mixing", block_size=64, contexts=contexts)
    model = build_model(config, V)
    model.fit(IdArray(TOKENS.encode(text)), classes_of(TOKENS))
    return model.eval()


def counted(mixer):
    """What a mixer holds that depends on the text alone."""
    passages = mixer.passages._asdict()
    del passages["match"]  # what is matched changes where a text begins anew
    names = ("slots", "runs", "sure", "maps")
    return passages | {name: getattr(mixer.contexts, name) for name in names}


def assert_same(found, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def ids_of(text):
    return torch.from_numpy(TOKENS.encode(text).astype(np.int64))[None]


def test_probabilities_sum_to_one_and_can_be_looked_up():
    model, idx = fitted(), ids_of(SECOND)

    log_p = model(idx[:, :-1])

    torch.testing.assert_close(log_p.exp().sum(dim=-1), torch.ones(1, len(SECOND) - 1))
    looked_up = model.log_probability(idx[:, :-1], idx[:, 1:])
    torch.testing.assert_close(looked_up, log_p.gather(-1, idx[:, 1:, None])[..., 0])


def test_it_learns_the_text():
    likely = fitted().log_probability(ids_of("the cat sa"), ids_of("he cat sat"))

    assert likely[0, 4:].exp().median() > 0.9


def test_a_reader_that_learns_ends_where_a_fit_to_both_texts_begins():
    reader = fitted().adaptive(AdaptConfig())
    reader.go_on(TOKENS.encode(SECOND))

    # The trees of both texts may differ: take the same one.
    both = ContextMixingModel(V, 64, CONTEXTS)
    text = torch.from_numpy(TOKENS.encode(FIRST + SECOND)).to(torch.uint8)
    both.load_state_dict({**fitted().state_dict(), "text": text})
    mixer = both.mixer()

    # Only the history: matches may go on from one text to the next.
    ours, theirs = reader.mixer.passages, mixer.passages
    assert ours.clock == theirs.clock == len(FIRST + SECOND)
    np.testing.assert_array_equal(ours.history, theirs.history)


def test_a_fork_learns_no_more():
    model, ids = fitted(), TOKENS.encode(SECOND)
    reader = model.adaptive(AdaptConfig())
    static = reader.fork().go_on(ids)

    assert torch.equal(reader.fork().go_on(ids), static)
    reader.go_on(ids)
    forks = [reader.fork().go_on(ids) for _ in range(2)]
    assert torch.equal(forks[0], forks[1])
    assert not torch.equal(forks[0], static)


def test_reading_in_pieces_changes_no_bit_and_the_model_stays():
    model, ids = fitted(), TOKENS.encode(SECOND)
    before = model(ids_of(SECOND))

    whole = model.adaptive(AdaptConfig()).go_on(ids)
    reader = model.adaptive(AdaptConfig())
    pieces = torch.cat([reader.go_on(part) for part in np.split(ids, [1, 2, 20])])
    state, read = model.start(1), []
    for part in ids_of(SECOND).split([3, 1, 30, len(ids) - 34], dim=1):
        logits, state = model.go_on(part, state)
        read.append(logits)

    assert torch.equal(pieces, whole)
    assert torch.equal(torch.cat(read, dim=1), before)
    assert torch.equal(model(ids_of(SECOND)), before)
    assert reader.learned == ("counts",)
    still = model.adaptive(AdaptConfig(counts=False)).go_on(ids)
    torch.testing.assert_close(still, before[0], atol=1e-6, rtol=1e-6)


def test_a_window_is_counted_while_it_is_read_and_forgotten_afterwards():
    model, text = fitted(), "tea eat ate\n" * 4
    fresh = fitted().mixer()

    nats = -model.log_probability(ids_of(text[:-1]), ids_of(text[1:]))[0]
    model.log_probability(ids_of(SECOND[:-1]), ids_of(SECOND[1:]))
    begin_anew(model.mixer())

    assert nats[-12:].mean() < 0.6 * nats[:12].mean()
    assert_same(counted(model.mixer()), counted(fresh))
    np.testing.assert_array_equal(model.mixer().weights, fresh.weights)


def test_a_later_character_changes_no_earlier_prediction():
    ids = TOKENS.encode(SECOND)
    other = ids.copy()
    other[20] = (other[20] + 1) % V

    found, moved = (fitted().adaptive(AdaptConfig()).go_on(some) for some in (ids, other))

    assert torch.equal(found[:20], moved[:20])
    assert not torch.equal(found[20:], moved[20:])


def test_what_it_has_read_helps_when_it_comes_again():
    reader, ids = fitted().adaptive(AdaptConfig()), TOKENS.encode(SECOND * 2)

    log_p = reader.go_on(ids)[:-1]

    loss = -log_p[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:].astype(np.int64))]
    assert loss[len(SECOND) :].mean() < 0.6 * loss[: len(SECOND)].mean()


def test_before_a_fit_every_bit_is_even():
    log_p = ContextMixingModel(4, 64, ("1", "word")).adaptive(AdaptConfig()).first()

    torch.testing.assert_close(log_p.exp(), torch.full((4,), 0.25), atol=0.001, rtol=0)


def test_its_weights_are_the_text_that_it_has_counted():
    model = fitted()
    other = ContextMixingModel(V, 64, CONTEXTS)

    other.load_state_dict(model.state_dict())

    assert torch.equal(other(ids_of(SECOND)), model(ids_of(SECOND)))
    assert model.state_dict()["text"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("text", torch.tensor([0, 200], dtype=torch.uint8), "text has numbers outside"),
        ("text", torch.tensor([0, 1]), "text is .* torch.int64, expected"),
        ("classes", torch.full((2, V), -1, dtype=torch.int32), "classes has numbers outside"),
        ("classes", torch.zeros(1, dtype=torch.int32), "classes is"),
        ("tree", torch.zeros(V - 1, 2, dtype=torch.int32), "the characters do not form a tree"),
    ],
)
def test_a_state_that_is_no_text_of_this_alphabet_is_refused(name, tensor, said):
    state = fitted().state_dict()

    with pytest.raises(ValueError, match=said):
        ContextMixingModel(V, 64, CONTEXTS).load_state_dict({**state, name: tensor})


def test_a_stop_leaves_the_model_as_it_was():
    model, idx = fitted(), ids_of(SECOND)
    before = model(idx)

    with pytest.raises(Stopped):
        model.fit(IdArray(TOKENS.encode(SECOND)), classes_of(TOKENS), should_stop=lambda: True)

    assert torch.equal(model(idx), before)


def test_recounting_a_text_gives_all_that_mixing_does_not_change():
    model = fitted()
    mixed, text = model.mixer(), TOKENS.encode(FIRST).astype(np.int64)
    recounted = new_mixer(walks_of(model.tree.numpy()), classes_of(TOKENS), model.codes, 10)

    read(recounted, text, NO_OFFERS, NOTHING, REMEMBER)

    assert_same(counted(recounted), counted(mixed))


def test_the_probability_of_the_next_character_can_be_looked_up_while_it_learns():
    ids, other = TOKENS.encode(SECOND), TOKENS.encode(SECOND[::-1])
    for targets in (ids[1:], other[1:]):  # of the text itself, and of others
        reader, at_once = (fitted().adaptive(AdaptConfig()) for _ in range(2))

        found = reader.log_probability(ids[:-1], targets)

        expected = at_once.go_on(ids[:-1])[torch.arange(len(targets)), targets]
        torch.testing.assert_close(found, expected)
        assert_same(counted(reader.mixer), counted(at_once.mixer))
        np.testing.assert_array_equal(reader.mixer.weights, at_once.mixer.weights)


def test_its_weights_are_the_mean_over_the_last_tenth_of_its_text():
    model, text = fitted(FIRST * 3), TOKENS.encode(FIRST * 3).astype(np.int64)
    end = len(text) - len(text) // context_mixing.END
    bits = table_bits(CONTEXTS, len(text), model.room)
    mixer = model._new(model.tree.numpy(), model.classes.numpy(), bits)
    read(mixer, text[:end], NO_OFFERS, NOTHING, LEARN)
    weights = []
    for symbol in text[end:]:
        read(mixer, np.array([symbol]), NO_OFFERS, NOTHING, LEARN)
        weights.append(mixer.weights.astype(float))

    found = model.mixer().weights

    assert TIMES <= len(weights) < 2 * TIMES  # so that every character is a time to add
    assert np.abs(found - np.mean(weights, axis=0)).max() <= 0.5
    assert np.abs(found - weights[-1]).max() > 1


def test_the_loss_of_a_fit_is_that_of_reading_the_text_with_nothing_known():
    model, ids = ContextMixingModel(V, 64, CONTEXTS), TOKENS.encode(FIRST)

    loss = model.fit(IdArray(ids), classes_of(TOKENS))

    bits = table_bits(CONTEXTS, len(ids), model.room)
    reader = LearningMixer(model._new(model.tree.numpy(), model.classes.numpy(), bits))
    log_p = torch.cat([reader.first()[None], reader.go_on(ids[:-1])])
    assert loss == pytest.approx(-log_p[torch.arange(len(ids)), ids].mean().item(), abs=1e-5)


def test_readers_of_one_model_do_not_disturb_each_other():
    model, ids = fitted(), TOKENS.encode(SECOND)
    one, other = (model.adaptive(AdaptConfig(counts=False)) for _ in range(2))
    expected = one.go_on(ids)

    read = []
    for part in np.split(ids, [5, 20]):
        read.append(other.go_on(part))
        model(ids_of(FIRST[:30]))

    assert torch.equal(torch.cat(read), expected)


def test_an_alphabet_of_one_character_is_certain():
    model = ContextMixingModel(1, 8, ("1",))
    ids = np.zeros(5, np.int64)

    for reader in (model.adaptive(AdaptConfig()), model.adaptive(AdaptConfig(counts=False))):
        assert reader.first().tolist() == [0]
        assert reader.go_on(ids).tolist() == [[0]] * 5


@pytest.mark.parametrize("text", ["\n" * 9, "a\n" * 9])
def test_an_alphabet_of_few_characters_is_saved_and_loaded(text):
    tokens = CharTokenizer(text)
    ids = tokens.encode(text)
    model, other = (ContextMixingModel(tokens.vocab_size, 8, ("1",)) for _ in range(2))
    model.fit(IdArray(ids), classes_of(tokens))

    other.load_state_dict(model.state_dict())

    idx = torch.from_numpy(ids.astype(np.int64))[None, :8]
    assert torch.equal(other(idx), model(idx))


def test_its_text_is_counted_before_the_first_prediction_and_a_stop_is_obeyed(monkeypatch):
    monkeypatch.setattr(context_mixing, "PIECE", 50)
    model, state, seen = fitted(), fitted().state_dict(), []
    model.load_state_dict(state)
    assert model.uncounted == len(FIRST)

    with pytest.raises(Stopped):
        model.prepare(seen.append, should_stop=lambda: len(seen) == 2)
    assert (seen, model.uncounted) == ([50, 50], len(FIRST))
    model.prepare(seen.append)

    assert sum(seen[2:]) == len(FIRST)
    assert model.uncounted == 0


def test_the_mixer_learns_to_trust_an_expert_that_knows():
    model, ids = fitted(), TOKENS.encode(SECOND * 4).astype(np.int64)
    mixer = new_mixer(walks_of(model.tree.numpy()), classes_of(TOKENS), model.codes, 10, experts=2)
    offers = np.full((len(ids), 2, V), np.log(0.1 / (V - 1)), np.float32)
    offers[np.arange(len(ids) - 1), 0, ids[1:]] = np.log(0.9)  # the first knows what comes next
    offers[:, 1] = np.nan  # the second says nothing
    p = np.empty((len(ids), V))

    read(mixer, ids, offers, p, LEARN)

    right = p[np.arange(len(ids) - 1), ids[1:]]
    assert right[:10].mean() < 0.5
    assert right[-50:].mean() > 0.85
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_an_offer_is_the_probability_of_each_bit():
    walks = walks_of(grow_tree(TOKENS.encode(FIRST), V))
    mixer = new_mixer(walks, classes_of(TOKENS), [], 4, experts=1)
    p = np.random.default_rng(0).dirichlet(np.ones(V))

    offer(mixer, np.log(p).astype(np.float32)[None])

    for node in range(V - 1):
        passing = dict.fromkeys((0, 1), 0.0)
        for symbol in range(V):
            for k in range(walks.length[symbol]):
                if walks.nodes[symbol, k] == node:
                    passing[walks.bits[symbol, k]] += p[symbol]
        assert abs(mixer.offered[0, node] / 4096 - passing[1] / sum(passing.values())) < 1 / 2000
