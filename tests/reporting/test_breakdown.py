from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from charlm.evaluation import score_text
from charlm.evaluation.protocols import windows
from charlm.evaluation.scoring import Surprisals
from charlm.models import BigramModel
from charlm.reporting import breakdown
from charlm.reporting.breakdown import Scored, by_kind, by_place, by_symbol, count_pairs, embeddings
from charlm.reporting.glyphs import Glyphs
from charlm.reporting.opened import open_run
from charlm.runs import RunFolder
from charlm.text import ByteTokenizer, CharTokenizer, IdArray


@pytest.fixture
def opened(trained):
    return open_run(RunFolder(trained), "cpu")


def scored(text, nats=None):
    """Return a text as if each character but the first had been predicted."""
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text).astype(np.int64)
    costs = np.ones(len(ids) - 1) if nats is None else np.array(nats, float)
    places = np.arange(len(ids) - 1)
    return Scored(len(ids), Surprisals(costs, ids[1:], ids[:-1], places)), tokenizer


def test_the_loss_by_place_is_that_of_eval(opened):
    whole = score_text(opened.model, opened.val, windows(8), by_position=True)

    found = breakdown.score(opened)
    places = by_place(found)

    assert found.loss_nats == pytest.approx(whole.loss_nats, abs=1e-6)
    assert places.nats == pytest.approx(whole.by_position, abs=1e-6)
    assert places.first.tolist() == places.last.tolist() == list(range(1, 9))
    assert places.chars.sum() == len(opened.val) - 1
    assert (places.low < places.nats).all()
    assert (places.high > places.nats).all()


def test_far_places_are_joined_and_none_is_lost():
    generator = np.random.default_rng(0)
    places = np.tile(np.arange(300), 5)
    nats = generator.random(len(places))
    ids = np.zeros(len(places), np.int64)

    found = by_place(Scored(300, Surprisals(nats, ids, ids, places)))

    assert found.first[0] == 1
    assert found.first[1:].tolist() == (found.last[:-1] + 1).tolist()
    assert found.last[-1] == 300
    assert (found.last[:8] == found.first[:8]).all()
    for first, last, mean, count in zip(
        found.first, found.last, found.nats, found.chars, strict=True
    ):
        inside = (places + 1 >= first) & (places + 1 <= last)
        assert count == inside.sum()
        assert mean == pytest.approx(nats[inside].mean())
    assert (found.last / found.first)[8:].max() < 1.2


def test_kinds_of_characters_are_counted_and_first_letters_are_apart():
    text = "xThe cat,\t42 Äx+\n\x07é"
    found, tokenizer = scored(text)

    groups = by_kind(found, Glyphs(tokenizer), tokenizer.vocab_size)

    # The first character is not predicted; "The" follows "x", so its letters are later ones.
    assert {group.name: group.chars for group in groups} == {
        "later letters": 3 + 2 + 1,
        "first letters of words": 3,  # c, Ä, é
        "digits": 2,
        "spaces": 3,
        "line ends": 1,
        "punctuation": 1,
        "other signs": 1,
        "control characters": 1,
    }
    assert sum(group.share for group in groups) == pytest.approx(1)
    assert [group.chars for group in groups] == sorted((g.chars for g in groups), reverse=True)


def test_symbols_are_counted_with_their_mean_and_their_share_of_the_loss():
    text = "abcabcaab "
    nats = np.arange(1.0, len(text))
    found, tokenizer = scored(text, nats)

    groups = by_symbol(found, Glyphs(tokenizer), tokenizer.vocab_size)

    counts = Counter(text[1:])
    assert [(group.name, group.chars) for _, group in groups] == [
        ("a", 3),
        ("b", 3),
        ("c", 2),
        ("␣", 1),
    ]
    for idx, group in groups:
        symbol = tokenizer.decode([idx])
        costs = [cost for c, cost in zip(text[1:], nats, strict=True) if c == symbol]
        assert group.chars == counts[symbol]
        assert group.nats == pytest.approx(np.mean(costs))
        assert group.share == pytest.approx(sum(costs) / nats.sum())


def test_bytes_beyond_ascii_are_a_kind_of_their_own():
    data = np.frombuffer("aé b".encode(), np.uint8).astype(np.int64)
    places = np.arange(len(data) - 1)
    one = Scored(8, Surprisals(np.ones(len(places)), data[1:], data[:-1], places))

    groups = by_kind(one, Glyphs(ByteTokenizer()), 256)

    counts = {group.name: group.chars for group in groups}
    assert counts == {"bytes beyond ASCII": 2, "spaces": 1, "first letters of words": 1}


def test_pairs_are_counted_across_the_pieces_that_are_read(monkeypatch):
    monkeypatch.setattr(breakdown, "CHUNK", 7)
    ids = np.random.default_rng(3).integers(5, size=100)
    pairs = Counter(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))

    found = count_pairs(IdArray(ids), np.array([4, 0, 2]), 5)

    for i, a in enumerate((4, 0, 2)):
        for j, b in enumerate((4, 0, 2)):
            assert found[i, j] == pairs[a, b]
        assert found[i, 3] == pairs[a, 1] + pairs[a, 3]


def test_the_learned_table_of_a_bigram_model_is_its_table(opened):
    size = opened.tokenizer.vocab_size
    model = BigramModel(size, 8)
    torch.nn.init.normal_(model.table.weight, generator=torch.Generator().manual_seed(1))
    object.__setattr__(opened.saved, "model", model)
    ids = np.array([0, 3, 5])

    found = breakdown.bigrams(opened, ids)

    expected = model.table.weight.softmax(dim=-1)[ids][:, ids].detach().numpy()
    np.testing.assert_allclose(found.learned, expected, rtol=1e-6)
    text = opened.train.read(0, len(opened.train)).tolist()
    pairs, singles = Counter(pairwise(text)), Counter(text[:-1])
    for i, a in enumerate(ids):
        for j, b in enumerate(ids):
            assert found.counted[i, j] == pytest.approx(pairs[a, b] / singles[a])
    assert found.chars == len(text)


class Embedded(BigramModel):
    """A model with embeddings that lie in a plane, or in a space of few dimensions."""

    def __init__(self, plane):
        super().__init__(len(plane), 8)
        generator = np.random.default_rng(5)
        axes, _ = np.linalg.qr(generator.normal(size=(7, plane.shape[1])))
        self.token_embedding = torch.nn.Embedding(len(plane), 7)
        weight = torch.from_numpy(plane @ axes.T + generator.normal(size=7)).float()
        self.token_embedding.weight = torch.nn.Parameter(weight)


def test_embeddings_keep_their_distances_in_a_plane_and_their_signs():
    plane = np.random.default_rng(4).normal(size=(9, 2)) * [3, 1]

    found = embeddings(Embedded(plane), np.arange(9))

    apart = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    shown = np.linalg.norm(found.places[:, None] - found.places[None], axis=-1)
    np.testing.assert_allclose(shown, apart, atol=1e-4)
    assert sum(found.shares) == pytest.approx(1)
    assert (found.expert, found.of_rows) == ("", False)
    again = embeddings(Embedded(plane), np.arange(9))
    assert (again.places == found.places).all()


def test_the_shares_are_those_of_the_largest_variances():
    vectors = np.random.default_rng(6).normal(size=(40, 3)) * [1, 4, 2]

    found = embeddings(Embedded(vectors), np.arange(40))

    variances = np.sort(np.linalg.eigvalsh(np.cov(vectors.T)))[::-1]
    assert found.shares == pytest.approx(tuple(variances[:2] / variances.sum()), rel=1e-4)
    assert np.cov(found.places.T) == pytest.approx(np.diag(variances[:2]), abs=1e-4)


def test_a_model_without_embeddings_has_none_to_show():
    class Plain(torch.nn.Module):
        pass

    assert embeddings(Plain(), np.arange(5)) is None
    assert embeddings(Embedded(np.eye(2)), np.arange(2)) is None  # two points are no map


def test_a_table_of_equal_rows_has_no_directions():
    assert embeddings(BigramModel(5, 8), np.arange(5)) is None
