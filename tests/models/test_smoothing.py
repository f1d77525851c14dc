"""Every method beside a dictionary of n-grams worked through as its paper writes it."""

from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.models import smoothing
from charlm.models.counts import Counts, Level, count_ngrams
from charlm.models.ngram import NGramModel
from charlm.models.smoothing import discounts, smooth
from charlm.text.tokens import IdArray

METHODS = ("kneser-ney", "witten-bell", "add-k")


def fit(text, vocab_size, order, method="kneser-ney", **options):
    counts = count_ngrams(IdArray(np.array(text)), vocab_size, order)
    model = NGramModel(vocab_size, 8, order, backs_off=method != "add-k")
    model.set_tables(smooth(counts, method, **options))
    return model


class Slow:
    """p(w | h) for one context at a time; n-grams and contexts are tuples of ids."""

    def __init__(self, text, vocab_size, order, k=1.0, min_count=1):
        self.vocab_size, self.order, self.k = vocab_size, order, k
        self.occur = [Counter() for _ in range(order + 1)]
        left = [defaultdict(set) for _ in range(order + 1)]
        for n in range(1, order + 1):
            for i in range(len(text) - n + 1):
                gram = tuple(text[i : i + n])
                self.occur[n][gram] += 1
                left[n][gram].add(text[i - 1] if i else "edge")
        # N1+(. w) of Kneser and Ney for all orders but the highest
        self.places = [Counter({g: len(s) for g, s in some.items()}) for some in left]
        self.places[order] = self.occur[order]
        self.kept = lambda gram: len(gram) == 1 or self.occur[len(gram)][gram] >= min_count

    def followers(self, table, context):
        n = len(context) + 1
        return {g[-1]: c for g, c in table[n].items() if g[:-1] == context}

    def lower(self, p, symbol, context):
        return p(symbol, context[1:]) if context else 1 / self.vocab_size

    def kneser_ney(self, symbol, context):
        """Chen and Goodman 1998, equations for modified Kneser-Ney, section 3."""
        counts = self.followers(self.places, context)
        if not counts:
            return self.lower(self.kneser_ney, symbol, context)
        d = self.discount(len(context) + 1)
        total = sum(counts.values())
        shares = {w: (c - d[min(c, 3)]) / total for w, c in counts.items()}
        gamma = sum(d[min(c, 3)] for c in counts.values()) / total
        return self.interpolated(self.kneser_ney, symbol, context, shares, gamma)

    def discount(self, n):
        n1, n2, n3, n4 = (sum(c == i for c in self.places[n].values()) for i in (1, 2, 3, 4))
        found = {0: 0.0}
        for i, (here, above) in enumerate([(n1, n2), (n2, n3), (n3, n4)], start=1):
            y = n1 / (n1 + 2 * n2) if n1 else 0
            d = i - (i + 1) * y * above / here if n1 and here else 0
            found[i] = d if 0 < d < i else i / 2
        return found

    def witten_bell(self, symbol, context):
        """Chen and Goodman 1998, section 2.5: lambda = T / (T + N), T kinds among N followers."""
        counts = self.followers(self.occur, context)
        if not counts:
            return self.lower(self.witten_bell, symbol, context)
        kinds, total = len(counts), sum(counts.values())
        shares = {w: c / (total + kinds) for w, c in counts.items()}
        gamma = kinds / (total + kinds)
        return self.interpolated(self.witten_bell, symbol, context, shares, gamma)

    def interpolated(self, p, symbol, context, shares, gamma):
        gamma += sum(share for w, share in shares.items() if not self.kept((*context, w)))
        own = shares.get(symbol, 0.0) if self.kept((*context, symbol)) else 0.0
        return own + gamma * self.lower(p, symbol, context)

    def add_k(self, symbol, context):
        counts = self.followers(self.occur, context)
        total = sum(counts.values()) + self.k * self.vocab_size
        seen = {w: c for w, c in counts.items() if self.kept((*context, w))}
        gone = sum(counts.values()) - sum(seen.values())
        return (seen.get(symbol, 0) + self.k + gone / self.vocab_size) / total


def distributions(method, text, window, vocab_size, order, k=1.0, min_count=1):
    """(T, V): at the start of a window, what models of lower orders lead to, each of its own."""
    found = []
    for t in range(len(window)):
        own = min(order, t + 2)
        if t == 0 or own < order or t + 2 == order:
            slow = Slow(text, vocab_size, own, k, min_count)
            p = cache(getattr(slow, method.replace("-", "_")))
        context = tuple(window[t + 2 - own : t + 1])
        found.append([p(w, context) for w in range(vocab_size)])
    return found


@st.composite
def problems(draw):
    """A text to fit, a window to predict with symbols that the text may lack, V and the order."""
    vocab_size = draw(st.integers(1, 5))
    text = st.lists(st.integers(0, draw(st.integers(0, vocab_size - 1))), min_size=1, max_size=60)
    window = st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=9)
    return draw(text), draw(window), vocab_size, draw(st.integers(1, 6))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60)
@given(problems(), st.integers(1, 3), st.sampled_from([0.01, 1.0, 20.0]))
def test_probabilities_are_those_of_the_papers(method, problem, min_count, k):
    text, window, vocab_size, order = problem
    slow = distributions(method, text, window, vocab_size, order, k, min_count)

    model = fit(text, vocab_size, order, method, k=k, min_count=min_count)

    expected = torch.tensor(slow, dtype=torch.float64)
    found = model(torch.tensor([window]))[0].double().exp()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("vocab_size", "order"), [(65, 7), (256, 32), (65_536, 12)])
def test_they_sum_to_one_within_a_millionth_and_are_never_zero(method, vocab_size, order):
    draw = np.random.default_rng(0)
    text = draw.zipf(1.5, 3000) % (vocab_size // 2)  # half of the symbols never occur

    model = fit(text, vocab_size, order, method)

    window = torch.from_numpy(np.append(text[500 : 500 + 40], [vocab_size - 1, 0, 1]))[None]
    log_p = model(window).double()
    assert (log_p.exp().sum(dim=-1) - 1).abs().max() < 1e-6
    assert log_p.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_no_repetition_is_long_enough_to_make_another_character_impossible(method):
    model = fit([0] * 3000, 2, 32, method, k=1e-6)
    window = torch.zeros(1, 40, dtype=torch.int64)

    log_p = model(window)

    assert log_p.isfinite().all()
    if method == "witten-bell":  # every order leaves 1 / (n + 1) of n occurrences to the next
        seen = [3000, *(3001 - k for k in range(2, 33))]
        assert log_p[0, -1, 1].item() == pytest.approx(
            -np.log([n + 1.0 for n in seen]).sum() - np.log(2)
        )


def test_discounts_are_worked_out_by_hand():
    # n_1 = 4, n_2 = 2, n_3 = 1, n_4 = 1: Y = 4 / (4 + 2 * 2) = 1/2
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4, 900, 0])

    assert discounts(counts) == pytest.approx(
        [0, 1 - 2 / 2 * 2 / 4, 2 - 3 / 2 * 1 / 2, 3 - 4 / 2 * 1 / 1]
    )


@pytest.mark.parametrize("counts", [[], [0], [5, 6], [1], [2, 3], [1, 2, 2, 2, 2, 2, 2]])
def test_counts_of_counts_that_give_no_discount_fall_back(counts):
    found = discounts(np.array(counts, np.int64))

    assert all(0 < found[i] < i for i in (1, 2, 3))
    assert found[3] == 1.5


def test_counts_beyond_32_bits_give_exact_shares():
    many = 3 * 2**40
    levels = [
        Level(np.array([0, 1]), np.array([many + 1, 2])),
        Level(np.array([0, 1, 2]), np.array([many, 1, 2])),
    ]
    counts = Counts(levels, 2, [0, 0])

    _, second = smooth(counts, "add-k", k=1.0)

    assert second.share.tolist() == [np.float32(many / (many + 3)), np.float32(1 / (many + 3)), 0.5]


@pytest.mark.parametrize("method", METHODS)
def test_a_level_larger_than_a_stretch_gives_the_same_tables(method, monkeypatch):
    text = np.random.default_rng(1).integers(0, 4, 300)
    whole = fit(text, 5, 4, method, min_count=2).state_dict()
    asked = []
    monkeypatch.setattr(smoothing, "STRIDE", 7)

    parts = fit(text, 5, 4, method, min_count=2, should_stop=lambda: asked.append(1)).state_dict()

    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert len(asked) > 20


@pytest.mark.parametrize("method", METHODS)
def test_rare_ngrams_are_left_out_and_their_contexts_stay(method):
    text = np.random.default_rng(1).integers(0, 4, 300)
    occur = count_ngrams(IdArray(text), 5, 4).levels

    tables = smooth(count_ngrams(IdArray(text), 5, 4), method, min_count=3)

    sizes = [len(table.keys) for table in tables]
    assert sizes == [5, *(int((level.counts >= 3).sum()) for level in occur[1:])]
