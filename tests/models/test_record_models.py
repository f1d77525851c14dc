"""Counted models of records: each record is counted, and read, by itself."""

from collections import Counter

import numpy as np
import pytest
import torch

from charlm.config import NGramConfig
from charlm.evaluation.protocols import windows
from charlm.evaluation.scoring import score_text, score_windows
from charlm.models import NGramModel, build_model, next_token_loss
from charlm.models.counted_loss import Targets, losses_of_orders
from charlm.models.counts import count_ngrams
from charlm.models.growing import GrowingNGram
from charlm.models.smoothing import smooth
from charlm.text.tokens import IdArray
from tests.models.conftest import CONFIGS

V, BOUNDARY = 6, 5


def draw(seed, count):
    """Return records with many repeats, and their ids."""
    random = np.random.default_rng(seed)
    records = [
        np.abs(np.cumsum(random.integers(-1, 2, n))) % (V - 1) for n in random.integers(1, 9, count)
    ]
    return records, joined(records)


def joined(records):
    ids = np.concatenate([[BOUNDARY], *([*record, BOUNDARY] for record in records)])
    return IdArray(ids.astype(np.int64), BOUNDARY)


def fitted(order, smoothing, ids):
    model = NGramModel(V, 8, order, backs_off=smoothing != "add-k")
    model.set_tables(smooth(count_ngrams(ids, V, order), smoothing, k=0.3))
    return model


@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_no_ngram_crosses_a_border(piece, monkeypatch, tmp_path):
    records, ids = draw(0, 60)
    order = 4
    monkeypatch.setattr("charlm.models.counts.PIECE", piece)

    counts = count_ngrams(ids, V, order)

    for k in range(2, order + 1):
        expected = Counter()
        for record in records:
            whole = (BOUNDARY, *record.tolist(), BOUNDARY)
            expected.update(whole[i : i + k] for i in range(len(whole) - k + 1))
        assert int(counts.levels[k - 1].counts.sum()) == expected.total()
        assert sorted(counts.levels[k - 1].counts.tolist()) == sorted(expected.values())


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell", "add-k"])
def test_the_order_of_records_does_not_matter(smoothing):
    records, ids = draw(1, 80)
    probe = ids.ids[None, :9]

    models = [fitted(4, smoothing, one) for one in (ids, joined(records[::-1]))]

    found, other = (model(torch.from_numpy(probe)) for model in models)
    torch.testing.assert_close(found, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell", "add-k"])
def test_the_first_character_is_predicted_as_often_as_it_began_a_record(smoothing):
    records, ids = draw(2, 3000)
    first = Counter(int(record[0]) for record in records)

    p = fitted(4, smoothing, ids)(torch.tensor([[BOUNDARY]])).softmax(-1)[0, 0]

    for symbol, count in first.items():
        assert abs(p[symbol].item() - count / len(records)) < 0.01


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell", "add-k"])
def test_growing_counts_of_records_predict_what_a_fit_does(smoothing):
    records, ids = draw(3, 60)
    config = NGramConfig(type="ngram", order=4, smoothing=smoothing, add_k=0.3)
    reader = GrowingNGram(config, V, ids).fork()

    found = reader.go_on(np.array([BOUNDARY, *records[0]]))

    expected = fitted(4, smoothing, ids)(torch.tensor([[BOUNDARY, *records[0]]])).log_softmax(-1)
    torch.testing.assert_close(found, expected[0], atol=1e-6, rtol=1e-6)


def test_losses_of_orders_are_those_of_models_that_read_each_record():
    _, ids = draw(4, 80)
    records, held_out = draw(5, 20)
    targets = Targets.stream(held_out.ids, BOUNDARY)

    for order, loss in losses_of_orders(count_ngrams(ids, V, 4), targets, [1, 2, 3, 4]):
        model, nats, chars = fitted(order, "kneser-ney", ids), 0.0, 0
        for record in records:
            whole = torch.tensor([[BOUNDARY, *record, BOUNDARY]])
            nats += next_token_loss(model(whole[:, :-1]), whole[:, 1:], "sum").item()
            chars += whole.shape[1] - 1
        assert loss == pytest.approx(nats / chars, abs=1e-6)


@pytest.mark.parametrize("kind", ["ngram", "gpt2", "modern", "bigram"])
@pytest.mark.parametrize("block_size", [3, 8])
def test_records_are_scored_each_by_itself(kind, block_size):
    model = build_model(CONFIGS[kind], V, seed=1).eval()
    records, ids = draw(6, 50)
    nats, chars = 0.0, 0
    for record in records:
        whole = torch.tensor([BOUNDARY, *record, BOUNDARY])
        for first in range(0, len(whole) - 1, block_size):
            x, y = whole[first:-1][:block_size], whole[first + 1 :][:block_size]
            with torch.no_grad():
                nats += next_token_loss(model(x[None]), y[None], "sum").item()
            chars += len(x)

    each = []
    score = score_text(model, ids, windows(block_size), each=each.append)

    assert (score.chars, chars) == (len(ids) - 1, len(ids) - 1)
    assert score.loss_nats == pytest.approx(nats / chars, abs=1e-5)
    assert score_windows(model, ids, block_size).loss_nats == pytest.approx(nats / chars, abs=1e-5)
    assert np.concatenate([one.symbols for one in each]).tolist() == ids.ids[1:].tolist()
    assert score_windows(model, ids, block_size, max_chars=60).chars < 100
