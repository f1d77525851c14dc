import bz2
import gzip
import lzma
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pyppmd
import pytest
import torch

from charlm.errors import Stopped
from charlm.evaluation import baselines, climb, score_windows
from charlm.evaluation.compressors import compressors
from charlm.models import NGramModel, counted_loss, surprisal
from charlm.models.counted_loss import Targets, choose_order, losses_of_orders
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import smooth
from charlm.text import ByteTokenizer, CharTokenizer, IdArray
from tests.conftest import TEXT

TRAIN = "abracadabra alakazam"
HELD_OUT = "a cadabra zam"
SOURCE = Path(__file__).read_text(encoding="utf-8")  # unlike TEXT, it does not repeat itself
LETTERS = CharTokenizer(TRAIN)
NAMES = ["uniform", "unigram", "bigram", "trigram", "5-gram"]


def ladder(train, held_out, tokenizer=LETTERS, **named):
    given = (IdArray(tokenizer.encode(text)) for text in (train, held_out))
    return climb(*given, tokenizer, **named)


def test_guessing_and_the_two_lowest_orders_equal_counting_in_a_loop():
    V = LETTERS.vocab_size
    singles, pairs, firsts = Counter(TRAIN), Counter(pairwise(TRAIN)), Counter(TRAIN[:-1])
    scored = list(pairwise(HELD_OUT))
    unigram = [-math.log((singles[b] + 1) / (len(TRAIN) + V)) for _, b in scored]
    bigram = [-math.log((pairs[a, b] + 1) / (firsts[a] + V)) for a, b in scored]

    found = ladder(TRAIN, HELD_OUT)

    assert found.scored == len(HELD_OUT) - 1
    assert found.loss_nats("uniform") == pytest.approx(math.log(V))
    assert found.loss_nats("unigram") == pytest.approx(np.mean(unigram), abs=1e-6)
    assert found.loss_nats("bigram") == pytest.approx(np.mean(bigram), abs=1e-6)


def pieces_of(ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut a text as the protocol `windows` does."""
    return [ids[at : at + size + 1] for at in range(0, len(ids) - 1, size)]


def of_equal_length(pieces: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Stack pieces that follow each other and have the same length."""
    return (np.stack([*some]) for _, some in groupby(pieces, key=len))


@pytest.mark.parametrize("size", [None, 1, 4, 8, 299])
def test_one_pass_gives_every_order_the_loss_of_its_model_from_the_first_character_on(size):
    rng = np.random.default_rng(0)
    text = np.minimum(rng.geometric(0.5, 700), 6) - 1  # the held-out part has unseen contexts
    train, held_out = IdArray(text[:400]), text[400:]
    models = []
    for order in range(1, 9):
        models.append(NGramModel(6, 8, order))
        models[-1].set_tables(smooth(count_ngrams(train, 6, order), "kneser-ney"))

    found = {
        k: climb(train, IdArray(held_out), ByteTokenizer(), block_size=size, max_order=k)
        for k in (1, 2)
    }
    counts = count_ngrams(train, 6, 8)
    targets = baselines._targets(IdArray(held_out), size, 1000)
    losses = dict(losses_of_orders(counts, targets, range(1, 9)))

    assert {one.scored for one in found.values()} == {299}
    assert list(losses) == list(range(1, 9))
    for order, loss in losses.items():
        nats = []
        for pieces in of_equal_length(pieces_of(held_out, size or 299)):
            ids = torch.from_numpy(pieces)
            each = [surprisal(model, ids[:, :-1], ids[:, 1:]) for model in models[:order]]
            # A model of order k looks at k - 1 characters: after t of them, that is order t + 1.
            for t in range(1, pieces.shape[1]):
                nats += [*each[min(t + 1, order) - 1][:, t - 1]]
        assert loss == pytest.approx(float(np.mean(nats)), abs=1e-6)


def test_a_run_is_compared_on_the_very_characters_of_its_evaluations():
    tokenizer = CharTokenizer(SOURCE)
    ids = tokenizer.encode(SOURCE)
    train, held_out = IdArray(ids[:-3000]), IdArray(ids[-3000:])
    model = NGramModel(tokenizer.vocab_size, 2, 3)
    model.set_tables(smooth(count_ngrams(train, tokenizer.vocab_size, 3), "kneser-ney"))

    for block_size, most in ((2, None), (2, 100), (2, 1)):
        score = score_windows(model, held_out, block_size, max_chars=most)
        found = climb(train, held_out, tokenizer, block_size=block_size, max_chars=most)

        trigram = found.rungs[3].score
        assert (found.protocol, found.block_size) == ("windows", 2)
        assert (trigram.chars, found.scored) == (score.chars, score.chars)
        if most is not None:
            assert score.chars == max(most, 2)


def test_only_the_orders_asked_for_are_yielded():
    counts = count_ngrams(IdArray(LETTERS.encode(TRAIN)), LETTERS.vocab_size, 5)
    text = Targets.stream(LETTERS.encode(HELD_OUT))
    every = dict(losses_of_orders(counts, text, range(1, 6)))

    assert dict(losses_of_orders(counts, text, {3, 5, None})) == {3: every[3], 5: every[5]}


def test_of_orders_that_differ_by_rounding_only_the_lowest_is_chosen():
    only_a = IdArray(np.zeros(450, np.uint8))

    assert choose_order(only_a, 1, 10) == 1


def test_the_order_is_the_best_of_all_without_a_look_at_what_it_is_scored_on(monkeypatch):
    tokenizer = CharTokenizer(SOURCE)
    train = IdArray(tokenizer.encode(SOURCE))
    tenth = len(train) // 10
    fit, tune = IdArray(train.ids[:-tenth]), IdArray(train.ids[-tenth:])
    counts = count_ngrams(fit, tokenizer.vocab_size, 10)
    losses = dict(losses_of_orders(counts, Targets.stream(tune.ids), range(1, 11)))

    assert choose_order(train, tokenizer.vocab_size, 10) == min(losses, key=losses.get)
    order = ladder(SOURCE, SOURCE[:300], tokenizer).order
    assert order == choose_order(IdArray(train.ids), tokenizer.vocab_size, 10)
    assert ladder(SOURCE, SOURCE[:300], tokenizer, max_order=2).order == 2
    monkeypatch.setattr(
        counted_loss, "losses_of_orders", lambda *a, **_: [(1, 3.0), (2, 3.1), (3, 2.9)]
    )
    assert choose_order(train, tokenizer.vocab_size, 3) == 3  # not 1, after which it rises


def test_compressors_are_charged_what_the_held_out_part_adds():
    before, after = SOURCE[:-1000], SOURCE[-1000:]
    found = ladder(before, after, CharTokenizer(SOURCE))

    sizes = {
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
        "PPMd, order 6": lambda data: pyppmd.compress(data, mem_size=1 << 24, variant="H"),
    }
    with suppress(ImportError):
        sizes["bzip3"] = import_module("bz3").compress
    assert [rung.name for rung in found.rungs if rung.adaptive] == [*sizes]
    for name, compress in sizes.items():
        added = len(compress(SOURCE.encode())) - len(compress(before.encode()))
        (rung,) = (rung for rung in found.rungs if rung.name == name)
        assert rung.score.chars == 1000
        assert rung.score.bits_per_symbol == pytest.approx(8 * added / 1000)
        assert 100 < added < 500


@pytest.mark.parametrize(("size", "names"), [(999, []), (1000, [*compressors()])])
def test_compressors_are_left_out_where_whole_bytes_say_nothing(size, names):
    found = ladder(SOURCE, SOURCE[:size], CharTokenizer(SOURCE))

    assert [rung.name for rung in found.rungs[6:]] == names
    assert found.compressed == (len(SOURCE) if names else 0)


def test_a_long_text_is_capped_and_says_so(monkeypatch):
    monkeypatch.setattr(baselines, "CHOOSING", 100)
    monkeypatch.setattr(baselines, "MAX_SCORED", 30)
    monkeypatch.setattr(baselines, "MAX_COMPRESSED", 50)
    tokenizer = CharTokenizer(TEXT)

    monkeypatch.setattr(baselines, "MIN_COMPRESSED", 31)
    found = ladder(TEXT, TEXT, tokenizer, max_counted=1)

    assert (found.counted, found.scored, found.compressed) == (100, 30, 50)
    assert found.train == len(TEXT)
    assert ladder(TEXT, TEXT, tokenizer, max_order=2, max_counted=1).counted == 100
    assert ladder(TEXT, TEXT, tokenizer, max_order=16, max_counted=1).counted == 62  # 16 orders
    assert ladder(TEXT, TEXT, tokenizer, max_counted=120).counted == 120
    assert ladder(TEXT, TEXT, tokenizer).counted == len(TEXT)
    monkeypatch.setattr(baselines, "MAX_NGRAMS", 1200)  # the last 100 characters have 800
    assert 100 < ladder(TEXT, TEXT, tokenizer).counted < 200
    assert found.rungs[-1].score.chars == 31
    nearest = ladder(TEXT[-100:], TEXT[:31], tokenizer)
    assert [r.score for r in found.rungs[:6]] == [r.score for r in nearest.rungs[:6]]


@pytest.mark.parametrize(
    ("train", "held_out", "tokenizer"),
    [
        ("ab", "ba", CharTokenizer("ab")),
        ("a" * 50, "aaa", CharTokenizer("a")),
        ("a" * 50, "bb", CharTokenizer("ab")),
        ("abc" * 20, "cab", ByteTokenizer()),
        ("abc" * 20, "cab", CharTokenizer(map(chr, range(0xD800)))),
    ],
    ids=["shortest", "one symbol", "nothing known", "bytes", "large alphabet"],
)
def test_odd_texts_have_a_ladder_too(train, held_out, tokenizer):
    found = ladder(train, held_out, tokenizer)

    assert [rung.name for rung in found.rungs[:5]] == NAMES
    assert (found.order is None) == (len(train) < 20)
    assert all(0 <= rung.score.loss_nats < 150 for rung in found.rungs)
    assert all(rung.seconds >= 0 for rung in found.rungs)


def test_a_loss_has_its_place_between_two_rungs():
    found = ladder(TEXT, TEXT[:300], CharTokenizer(TEXT))
    names = [r.name for r in sorted(found.rungs, key=lambda r: -r.score.loss_nats)]

    def place(loss):
        return tuple(rung and rung.name for rung in found.place(loss))

    assert place(math.inf) == (None, names[0])
    assert place(found.loss_nats(names[0])) == (None, names[0])
    assert place(found.loss_nats(names[2]) - 1e-4) == (names[2], names[3])
    assert place(found.loss_nats(names[2]) - 1e-9) == (names[1], names[2])  # printed alike
    assert place(-1.0) == (names[-1], None)


def test_a_climb_stops_when_it_is_asked_to():
    polled = 0

    def after(calls):
        def stop():
            nonlocal polled
            polled += 1
            return polled > calls

        return stop

    for calls in range(20):  # within the choice of the order, the counting and the compressing
        polled = 0
        with pytest.raises(Stopped):
            ladder(TEXT, TEXT[:1000], CharTokenizer(TEXT), should_stop=after(calls))
        assert polled == calls + 1
