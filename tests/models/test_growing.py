"""Growing counts predict what counting everything anew would."""

import numpy as np
import pytest
import torch

from charlm.config import AdaptConfig, NGramConfig
from charlm.models import NGramModel, build_model
from charlm.models.counts import count_ngrams
from charlm.models.growing import GrowingNGram
from charlm.models.smoothing import discounts, smooth
from charlm.text.tokens import IdArray

V = 5


def config(order, smoothing="kneser-ney", min_count=1, **more):
    return NGramConfig(
        type="ngram", order=order, smoothing=smoothing, min_count=min_count, add_k=0.3, **more
    )


def draw(seed, size):
    """Return a text with many repeats, in which one character never occurs."""
    random = np.random.default_rng(seed)
    return np.abs(np.cumsum(random.integers(-1, 2, size)) + random.integers(0, 2, size)) % (V - 1)


def fitted(made_of, text):
    """Return the model counted from one text, all at once."""
    model = NGramModel(V, 8, made_of.order, backs_off=made_of.smoothing != "add-k")
    counts = count_ngrams(IdArray(text), V, made_of.order)
    model.set_tables(
        smooth(counts, made_of.smoothing, k=made_of.add_k, min_count=made_of.min_count)
    )
    return model


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell", "add-k"])
@pytest.mark.parametrize(("order", "min_count"), [(1, 1), (2, 1), (4, 1), (4, 2)])
def test_from_nothing_each_prediction_is_that_of_a_fit_to_all_before_it(
    smoothing, order, min_count
):
    made_of, text = config(order, smoothing, min_count), draw(0, 150)

    found = GrowingNGram(made_of, V).go_on(text)

    for t in [*range(12), 50, 149]:
        so_far = text[: t + 1]
        anew = fitted(made_of, so_far)(torch.from_numpy(so_far)[None])[0, -1]
        torch.testing.assert_close(found[t], anew, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell", "add-k"])
def test_a_fork_predicts_as_a_fit_to_what_its_reader_has_read(smoothing):
    made_of, text, other = config(4, smoothing), draw(0, 150), draw(1, 40)
    reader = GrowingNGram(made_of, V)
    reader.go_on(text)

    found = reader.fork().go_on(other)

    whole = torch.from_numpy(np.concatenate([text, other]))
    fit = fitted(made_of, text)(whole[None])[0]
    torch.testing.assert_close(found, fit[len(text) :], atol=1e-6, rtol=1e-6)


def predicted(texts, order, context):
    """Return p after `context`, the beginning of a text, by the definition of Kneser-Ney."""
    counted = [
        [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
        for n in range(1, order + 1)
    ]
    p = np.full(V, 1 / V)
    longest = min(len(context), order - 1)
    for k in range(longest + 1):
        counts = {}
        if k == longest:
            for gram in counted[k]:
                counts[gram] = counts.get(gram, 0) + 1
        else:
            for longer in set(counted[k + 1]):
                counts[longer[1:]] = counts.get(longer[1:], 0) + 1
            for text in texts:  # a text's start stands before its first k-gram
                start = tuple(text[: k + 1])
                counts[start] = counts.get(start, 0) + (len(start) == k + 1)
        taken = discounts(np.array([count for count in counts.values() if count]))
        end = tuple(context[len(context) - k :])
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == end and count}
        if total := sum(after.values()):
            p *= sum(taken[min(3, count)] for count in after.values()) / total
            for symbol, count in after.items():
                p[symbol] += (count - taken[min(3, count)]) / total
    return p


@pytest.mark.parametrize("order", [1, 3])
def test_the_text_that_is_read_is_counted_as_a_second_one(order):
    before, text = draw(1, 60), draw(2, 40)

    found = GrowingNGram(config(order), V, IdArray(before)).go_on(text)

    for t in [0, 1, 2, 3, 20, 39]:
        so_far = text[: t + 1]
        slow = predicted([before.tolist(), so_far.tolist()], order, so_far.tolist())
        np.testing.assert_allclose(found[t].exp().numpy(), slow, atol=1e-6)


def test_only_the_last_characters_of_the_first_text_are_counted():
    before, text = draw(1, 60), draw(2, 10)

    found = GrowingNGram(config(3, last_chars=20), V, IdArray(before)).go_on(text)

    assert torch.equal(found, GrowingNGram(config(3), V, IdArray(before[-20:])).go_on(text))


def test_a_later_character_moves_no_earlier_prediction_and_all_later_ones():
    text = draw(3, 100)
    other = text.copy()
    other[50] = V - 1

    found, moved = (GrowingNGram(config(4), V).go_on(ids) for ids in (text, other))

    assert torch.equal(found[:50], moved[:50])
    assert bool((found[50:] != moved[50:]).any(dim=1).all())


def test_in_pieces_it_predicts_the_same_bits():
    text = draw(4, 3000)  # more than there is room for at first
    whole = GrowingNGram(config(6), V).go_on(text)

    reader = GrowingNGram(config(6), V)
    pieces = [reader.go_on(part) for part in np.split(text, [1, 2, 700, 701])]

    assert torch.equal(torch.cat(pieces), whole)


def test_a_model_gives_a_reader_of_the_text_it_was_fitted_to(generator):
    made_of, text = config(4), draw(5, 200)
    model = build_model(made_of, V)
    empty = model.adaptive(AdaptConfig())
    model.load_state_dict(fitted(made_of, text).state_dict())

    reader = model.adaptive(AdaptConfig(), IdArray(text))

    assert reader.learned == ("counts",)
    assert torch.equal(empty.first(), torch.full((V,), 1 / V).log())
    shares = np.bincount(text, minlength=V) / len(text)
    assert (reader.first().exp().numpy().argsort() == shares.argsort()).all()
    still = model.adaptive(AdaptConfig(counts=False), IdArray(text))
    torch.testing.assert_close(still.go_on(text), model(torch.from_numpy(text)[None])[0])
    with pytest.raises(ValueError, match="needs the text that it was fitted to"):
        model.adaptive(AdaptConfig())


def test_counts_that_need_more_memory_than_there_is_are_refused(monkeypatch):
    from charlm.errors import MachineError

    monkeypatch.setattr("charlm.models.growing.machine_bytes", lambda: 20_000)

    with pytest.raises(MachineError, match=r"model\.order: counts that grow need .* of memory"):
        GrowingNGram(config(6), V).go_on(draw(6, 3000))
