import math
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.config import AdaptConfig, GPTConfig
from charlm.errors import Stopped
from charlm.evaluation import score_text, score_windows
from charlm.evaluation.baselines import _targets_in_records
from charlm.evaluation.predicting import Likeliest
from charlm.evaluation.protocols import CHARS_ON_CPU, choose, sliding, stream, windows
from charlm.evaluation.scoring import Scored, surprisals, utf8_lengths
from charlm.models import BigramModel, build_model, onednn
from charlm.text import ByteTokenizer, CharTokenizer, IdArray
from tests.evaluation.fakes import Remembers, Window, one_by_one


def a_text(length, vocab_size=7):
    return np.random.default_rng(length).integers(vocab_size, size=length)


def gpt(**options):
    config = {"type": "gpt", "style": "gpt2", "block_size": 4, "n_layer": 1, "n_head": 2}
    return build_model(GPTConfig(**config, n_embd=8, **options), 5, seed=1)


def uniform(vocab_size=5):
    return BigramModel(vocab_size, block_size=4)


@pytest.mark.parametrize("length", [2, 4, 5, 6, 9, 17, 18])
def test_a_uniform_model_scores_exactly_the_logarithm_of_its_vocabulary(length):
    ids = IdArray(np.arange(length) % 5)

    for score in (score_windows(uniform(), ids, 4), score_text(uniform(), ids, sliding(4, 3))):
        assert score.loss_nats == pytest.approx(math.log(5), rel=1e-6)
        assert score.chars == length - 1


def test_windows_go_through_a_cpu_a_few_thousand_characters_at_a_time():
    model, passes = uniform(), []
    model.any_length = False
    model.register_forward_pre_hook(lambda _, arguments: passes.append(arguments[0].numel()))

    score_windows(model, IdArray(a_text(10_000, 5)), 4)

    assert sum(passes) == 10_000 - 1
    assert max(passes) == CHARS_ON_CPU < 10_000 / 4


def test_products_by_onednn_give_the_same_loss(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    model, text, called = gpt().train(), IdArray(a_text(30, 5)), []
    multiply = onednn.Linear.forward
    monkeypatch.setattr(onednn, "is_faster", lambda: False)
    plain = score_windows(model, text, 4)
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    monkeypatch.setattr(
        onednn.Linear, "forward", lambda self, x: called.append(x) or multiply(self, x)
    )

    scores = score_windows(model, text, 4), score_text(model, text, windows(4))

    assert [score.loss_nats for score in scores] == pytest.approx([plain.loss_nats] * 2, abs=1e-6)
    assert called
    assert model.training
    adaptive = choose(model, "adaptive")
    score_text(model, text, adaptive, reader=model.adaptive(AdaptConfig()))  # needs gradients


@given(length=st.integers(2, 60), block=st.integers(1, 12), data=st.data())
@settings(max_examples=25)
def test_overlapping_windows_equal_one_prediction_at_a_time(length, block, data):
    stride = data.draw(st.integers(1, block))
    text, model = a_text(length), Window()

    score = score_text(model, IdArray(text), sliding(block, stride))

    slow = one_by_one(model, text, lambda i: max(0, -(-(i - block) // stride)) * stride)
    assert score.loss_nats == pytest.approx(slow.mean(), abs=1e-5)
    assert score.chars == length - 1


@given(length=st.integers(2, 60), block=st.integers(1, 12))
@settings(max_examples=25)
def test_consecutive_windows_equal_one_prediction_at_a_time(length, block):
    text, model = a_text(length), Window()

    score = score_text(model, IdArray(text), windows(block), by_position=True)

    slow = one_by_one(model, text, lambda i: (i - 1) // block * block)
    assert score.loss_nats == pytest.approx(slow.mean(), abs=1e-5)
    by_position = [slow[p::block].mean() for p in range(min(block, length - 1))]
    assert score.by_position == pytest.approx(by_position, abs=1e-5)
    assert score_windows(model, IdArray(text), block).loss_nats == pytest.approx(score.loss_nats)


@given(length=st.integers(2, 60), memory=st.integers(1, 9), stride=st.integers(1, 20))
@settings(max_examples=25)
def test_a_stream_equals_one_prediction_at_a_time(length, memory, stride):
    text, model = a_text(length), Remembers(memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charlm.evaluation.protocols.CHARS_A_PASS", stride)

        score = score_text(model, IdArray(text), stream(model))

    slow = one_by_one(model, text, lambda i: 0)
    assert score.loss_nats == pytest.approx(slow.mean(), abs=1e-5)
    assert score.chars == length - 1


def test_longer_windows_are_shown_whole_to_a_model_of_any_length():
    text, model = a_text(40), Remembers(9)

    score = score_text(model, IdArray(text), choose(model, "windows", block_size=11))

    slow = one_by_one(model, text, lambda i: (i - 1) // 11 * 11)
    assert score.loss_nats == pytest.approx(slow.mean(), abs=1e-5)


def test_a_limit_scores_only_so_much_of_the_text():
    model, text = Window(), a_text(101)

    score = score_windows(model, IdArray(text), 10, max_chars=30)

    assert score.chars == 30
    assert model.shown == [text[start : start + 10].tolist() for start in (0, 30, 60)]


def test_a_limit_holds_in_a_text_shorter_than_a_window():
    model, text = Window(), a_text(101)

    score = score_windows(model, IdArray(text), 1000, max_chars=30)

    assert score.chars == 30
    assert model.shown == [text[:30].tolist()]
    assert score_windows(model, IdArray(text), 1000, max_chars=100).chars == 100


def test_a_text_of_many_blocks_has_an_interval_around_its_mean():
    score = score_text(Remembers(1), IdArray(a_text(30_001)), windows(500))

    assert score.interval.low < score.loss_nats < score.interval.high
    assert (score.interval.blocks, score.interval.block_chars) == (30, 1000)


def test_bits_per_byte_count_the_bytes_of_what_was_scored():
    text = "aé☃😀é"  # 1, 2, 3 and 4 bytes; the first character is not scored
    tokenizer = CharTokenizer(text)
    model = uniform(vocab_size=4)

    score = score_text(
        model,
        IdArray(tokenizer.encode(text)),
        windows(4),
        byte_lengths=utf8_lengths(tokenizer),
    )

    assert score.bytes == 2 + 3 + 4 + 2
    assert score.bits_per_symbol == pytest.approx(2)
    assert score.bits_per_byte == pytest.approx(4 * 2 / 11)


def test_in_byte_mode_a_byte_is_the_character():
    score = score_text(
        uniform(vocab_size=256),
        IdArray(ByteTokenizer().encode("aé☃😀")),
        windows(4),
        byte_lengths=utf8_lengths(ByteTokenizer()),
    )

    assert score.chars == score.bytes == 9
    assert score.bits_per_byte == score.bits_per_symbol == pytest.approx(8)


def test_each_character_comes_with_its_position_cost_and_the_likeliest():
    text, model, heard = a_text(200), Window(), []

    score = score_text(model, IdArray(text), sliding(9, 4), each=heard.append)

    positions = np.concatenate([scored.positions for scored in heard])
    symbols = np.concatenate([scored.symbols for scored in heard])
    nats = np.concatenate([scored.nats for scored in heard])
    ids = np.concatenate([scored.likeliest.ids for scored in heard])
    p = np.concatenate([scored.likeliest.p for scored in heard])
    np.testing.assert_array_equal(positions, np.arange(1, 200))
    np.testing.assert_array_equal(symbols, text[1:])
    assert nats.mean() == pytest.approx(score.loss_nats)
    assert ids.shape == p.shape == (199, 5)
    assert (np.diff(p, axis=1) <= 0).all()
    row, column = np.nonzero(ids == symbols[:, None])
    np.testing.assert_allclose(-np.log(p[row, column]), nats[row], rtol=1e-5)
    assert len(row) > 50


def test_scoring_with_details_and_without_gives_the_same():
    text, model = IdArray(a_text(200)), Window()

    plain = score_text(model, text, sliding(9, 4))
    detailed = score_text(model, text, sliding(9, 4), each=lambda scored: None)

    assert detailed.loss_nats == pytest.approx(plain.loss_nats, rel=1e-6)


def test_scoring_leaves_randomness_and_mode_as_they_were():
    ids = IdArray(np.arange(30_000) % 5)
    for training in (True, False):
        model = gpt().train(training)
        torch.manual_seed(3)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        score_text(model, ids, windows(4))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
        assert model.training is training


def test_it_scores_in_evaluation_mode():
    model = gpt(dropout=0.5).train()
    ids = IdArray(np.arange(40) % 5)

    first, second = (score_windows(model, ids, 4) for _ in range(2))

    assert first == second


def test_it_stops_when_asked_and_restores_the_mode():
    model = gpt().train()
    ids = IdArray(np.arange(40) % 5)
    for score in (score_windows, lambda *a, **k: score_text(*a[:2], windows(a[2]), **k)):
        with pytest.raises(Stopped):
            score(model, ids, 4, should_stop=lambda: True)
        assert model.training


def test_it_stops_between_the_layers_of_a_pass():
    """A pass of a large model takes minutes."""
    model, ran = gpt(), []
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: ran.append(module))
    whole = len([*model.modules()])

    with pytest.raises(Stopped):
        score_windows(model, IdArray(np.arange(40) % 5), 4, should_stop=lambda: len(ran) > 2)

    assert len(ran) == 3 < whole
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_memory_does_not_grow_with_the_text():
    class Endless:
        boundary = escape = None

        def __len__(self):
            return 2_000_001

        def read(self, first, count):
            return np.zeros(count, np.uint8)

    tracemalloc.start()
    score = score_text(uniform(2), Endless(), windows(4000), byte_lengths=np.ones(2, np.int64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert score.chars == 2_000_000
    assert peak < 4_000_000  # one number for each character would take 16 MB


def test_what_was_added_up_is_let_go():
    """Of what tensors hold, which no tracer of Python's memory sees."""
    heard, kept = [], []

    def listen(scored):
        kept.append(sum(nats() is not None for nats in heard))
        heard.append(weakref.ref(scored.nats))

    score_text(uniform(), IdArray(np.arange(50_000) % 5), windows(4), each=listen)

    assert kept == [0] * 5


def test_progress_adds_up_to_the_text():
    done = []

    score_text(Window(), IdArray(a_text(100)), sliding(9, 4), progress=done.append)

    assert sum(done) == 99


WIDE, OWN = CharTokenizer("abé"), CharTokenizer("ab")


def scored(symbols, nats, known):
    number = sum(known)
    likeliest = Likeliest(np.array([[1, 0]] * number), np.array([[0.75, 0.25]] * number))
    positions = np.arange(1, 1 + len(symbols))
    return Scored(positions, np.array(nats), np.array(symbols), np.array(known), likeliest)


def test_a_record_names_the_character_its_bits_and_what_was_likelier():
    one, other = scored([0, 2], [math.log(4), math.log(2)], [True, False]).records(WIDE, OWN)

    assert one == {
        "position": 1,
        "char": "a",
        "bits": 2.0,
        "likeliest": [["b", 0.75], ["a", 0.25]],
    }
    assert other == {"position": 2, "char": "é", "bits": 1.0, "likeliest": []}


def test_infinite_bits_are_none():
    (record,) = scored([0], [math.inf], [True]).records(WIDE, OWN)

    assert record["bits"] is None


def test_bytes_are_numbers():
    tokenizer = ByteTokenizer()

    (record,) = scored([233], [0.0], [True]).records(tokenizer, tokenizer)

    assert (record["byte"], record["likeliest"]) == (233, [[1, 0.75], [0, 0.25]])


@pytest.mark.parametrize("boundary", [None, 6])
def test_surprisals_are_those_of_single_predictions_with_what_came_before(boundary):
    text = a_text(60, 6)
    if boundary is not None:
        text[[0, 10, 30, 59]] = boundary
    model = Window()

    parts = surprisals(model, IdArray(text, boundary), 5)
    nats, symbols, before, places = map(np.concatenate, zip(*parts, strict=True))

    starts = [0]
    for i in range(1, len(text)):
        begins = i - starts[-1] > 5 or (boundary is not None and text[i - 1] == boundary)
        starts.append(i - 1 if begins else starts[-1])
    slow = one_by_one(model, text, lambda i: starts[i])
    assert nats == pytest.approx(slow, abs=1e-5)
    assert (symbols == text[1:]).all()
    assert (before == text[:-1]).all()
    assert places.tolist() == [i - 1 - starts[i] for i in range(1, len(text))]


def test_a_limit_holds_where_one_record_is_far_longer():
    """Of it, the first characters are scored, and no end that it has not."""
    model = Window(vocab_size=7)
    long = np.array([6, *[1] * 500, 6])
    short = np.array([*[2, 6] * 100])
    ids = IdArray(np.concatenate([long, short]), boundary=6)

    score = score_windows(model, ids, 12, max_chars=30)
    found = _targets_in_records(ids, 12, 30)

    assert 30 <= score.chars <= 60
    assert score.chars == len(found.ids)
    assert (found.ids[:30] == 1).all()
    assert found.context[:30].max() == 12
    assert (found.ids[30:].reshape(-1, 2) == [2, 6]).all()
    assert score_windows(model, ids, 12).chars == len(ids.read(0, len(ids))) - 1
