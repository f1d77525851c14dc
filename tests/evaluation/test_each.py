"""Scores of many texts, each by itself."""

import io
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import DataConfig
from charlm.errors import DataError, Stopped, UsageError
from charlm.evaluation import each
from charlm.evaluation.each import Ranking, TextReading, TextScorer, score_records
from charlm.evaluation.protocols import windows
from charlm.evaluation.scoring import score_text
from charlm.models import NGramModel
from charlm.models.counts import count_ngrams
from charlm.models.smoothing import smooth
from charlm.text.sources import Part, Source
from charlm.text.tokenizer import BOUNDARY, ByteTokenizer, CharTokenizer
from charlm.text.tokens import IdArray
from tests.evaluation.fakes import Remembers, Window, one_by_one

LETTERS = "abcdef"
RECORDS = CharTokenizer(LETTERS, boundary=True)
V = RECORDS.vocab_size


def draw(seed, count, longest=30):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return ["".join(LETTERS[i] for i in random.integers(0, 6, n)) for n in lengths]


def joined(texts):
    """Return the ids of records as they stand on disk."""
    b = RECORDS.boundary
    return IdArray(np.array([b, *(i for text in texts for i in (*RECORDS.encode(text), b))]), b)


def counted():
    model = NGramModel(V, 8, 4)
    model.set_tables(smooth(count_ngrams(joined(draw(0, 300)), V, 4), "kneser-ney"))
    return model


MODELS = {"a block": Window, "a memory": lambda: Remembers(4), "counts": counted}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def slowly(model, ids):
    """Return the nats of a text in windows, one prediction at a time."""
    block = model.block_size
    return one_by_one(model, np.array(ids), lambda i: (i - 1) // block * block).sum()


def test_each_text_is_scored_from_its_first_character_to_its_end(model):
    texts = [*draw(1, 60), "a", "b" * 12, "c" * 13]

    found = list(score_records(model, RECORDS, texts))

    assert [one.text for one in found] == texts
    for one in found:
        ids = [RECORDS.boundary, *RECORDS.encode(one.text), RECORDS.boundary]
        assert (one.chars, one.unknown) == (len(one.text) + 1, 0)
        assert one.nats == pytest.approx(slowly(model, ids), rel=1e-5)
        assert one.bits_per_char == pytest.approx(one.nats / math.log(2) / one.chars)


@pytest.mark.parametrize("ahead", [1, 40, None])
def test_the_mean_is_that_of_an_evaluation(model, ahead):
    texts = draw(2, 500)

    found = list(score_records(model, RECORDS, texts, ahead=ahead))

    score = score_text(model, joined(texts), windows(model.block_size))
    chars = sum(one.chars for one in found)
    assert (chars, [one.text for one in found]) == (score.chars, texts)
    assert sum(one.nats for one in found) / chars == pytest.approx(score.loss_nats, abs=1e-6)


def test_a_long_record_is_continued_in_windows(model):
    text = "".join(draw(3, 7000))[:100_000]

    one, long = score_records(model, RECORDS, ["a", text])

    assert (one.chars, long.chars) == (2, 100_001)
    score = score_text(model, joined([text]), windows(model.block_size))
    assert long.nats / long.chars == pytest.approx(score.loss_nats, abs=1e-6)


@pytest.mark.parametrize(
    ("alphabet", "opening"), [("\nabcdef", 0), ("abcdefg", 0), ("\t\nabcde", 1)]
)
def test_a_run_of_one_text_reads_a_text_after_a_newline(alphabet, opening):
    tokenizer, model = CharTokenizer(alphabet), Window()
    texts = ["abc", "e", "deadbeef"[:4] + "b" * 20]

    found = list(score_records(model, tokenizer, texts))

    for one in found:
        assert one.chars == len(one.text)
        ids = [opening, *tokenizer.encode(one.text)]
        assert one.nats == pytest.approx(slowly(model, ids), rel=1e-5)


def laplace(kinds):
    """Return the nats of a sequence of known and unknown, each by Laplace's rule of succession."""
    seen, nats = {True: 1, False: 1}, 0.0
    for kind in kinds:
        nats -= math.log(seen[kind] / sum(seen.values()))
        seen[kind] += 1
    return nats


@pytest.mark.parametrize(
    ("text", "known", "unknown"), [("aXbYc", "abc", 2), ("XY", "", 2), ("Xabc", "abc", 1)]
)
def test_unknown_characters_are_charged_by_a_code_that_could_be_decoded(text, known, unknown):
    plain, strange = score_records(Window(), RECORDS, [known, text])

    kinds = [c in known for c in text] + [True]  # the end is known
    which = unknown * math.log(1_114_112 - V)
    assert (strange.chars, strange.unknown) == (len(text) + 1, unknown)
    assert strange.nats == pytest.approx(plain.nats + laplace(kinds) + which, rel=1e-6)


def test_a_text_of_unknown_characters_alone_is_charged_where_no_end_is_scored():
    tokenizer = CharTokenizer("\nabcdef")

    nothing, strange = score_records(Window(), tokenizer, ["", "XX"])

    assert nothing == ("", 0.0, 0, 0)
    assert nothing.bits_per_char == 0
    which = 2 * math.log(1_114_112 - 7)
    assert strange.nats == pytest.approx(laplace([False, False]) + which, rel=1e-6)


def test_an_escape_is_predicted_and_its_character_charged():
    tokenizer = CharTokenizer(LETTERS, boundary=True, escape=True)
    model = Window(tokenizer.vocab_size)

    for one in score_records(model, tokenizer, ["ab", "aXb", "YY"]):
        unknown = len(one.text.strip("ab"))
        ids = [tokenizer.boundary, *tokenizer.encode(one.text), tokenizer.boundary]
        which = unknown * math.log(1_114_112 - 8)
        assert (one.chars, one.unknown) == (len(one.text) + 1, unknown)
        assert one.nats == pytest.approx(slowly(model, ids) + which, rel=1e-6)


def test_bytes_are_scored_as_bytes():
    tokenizer = ByteTokenizer()
    model = Window(vocab_size=256)

    (one,) = score_records(model, tokenizer, ["é\udcff"])

    ids = [10, *"é".encode(), 255]
    assert (one.text, one.chars, one.unknown) == ("é\udcff", 3, 0)
    assert one.nats == pytest.approx(slowly(model, ids), rel=1e-5)


def test_texts_are_read_as_they_are_needed():
    events = []

    def texts():
        for text in ("a", "b", "c"):
            events.append(f"read {text}")
            yield text

    for one in score_records(Window(), RECORDS, texts(), ahead=1):
        events.append(f"scored {one.text}")

    assert events == [f"{done} {text}" for text in "abc" for done in ("read", "scored")]
    endless = score_records(Window(), RECORDS, itertools.cycle(draw(4, 10)))
    assert len(list(itertools.islice(endless, 5000))) == 5000


def test_memory_does_not_grow_with_the_number_of_texts():
    model, text = Remembers(2), "abc"

    def peak(count):
        tracemalloc.start()
        try:
            for _ in score_records(model, RECORDS, itertools.repeat(text, count), ahead=2000):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # what is imported or kept on first use

    assert peak(60_000) < 1.05 * peak(3000)


def test_the_mode_of_the_model_is_restored():
    class Dropping(Window):
        def forward(self, idx):
            assert not self.training
            return super().forward(idx)

    model = Dropping().train()

    scores = score_records(model, RECORDS, ["a", "b"], ahead=1)
    next(scores)

    assert model.training
    assert len(list(scores)) == 1


def test_a_stop_is_noticed(model):
    with pytest.raises(Stopped):
        list(score_records(model, RECORDS, ["a"], should_stop=lambda: True))


@pytest.mark.parametrize(
    ("texts", "ahead", "error", "message"),
    [
        ("abc", None, UsageError, "texts: a single text; put it into a list"),
        (["abc"], 0, UsageError, "ahead=0: expected at least 1"),
        (["a", f"b{BOUNDARY}c"], None, DataError, r"texts: a text holds U\+10FFFF, .*; remove it"),
    ],
)
def test_what_cannot_be_scored_is_refused(texts, ahead, error, message):
    with pytest.raises(error, match=message):
        list(score_records(Window(), RECORDS, texts, ahead=ahead))


def source_of(*parts):
    opened = [Part(f"part {i}", lambda data=data: io.BytesIO(data)) for i, data in enumerate(parts)]
    return Source("here", tuple(opened))


def read(data, *parts, tokenizer=RECORDS):
    """Read texts from files and score them; return them and the remarks."""
    return score_all(TextReading(source_of(*parts), data), tokenizer)


def score_all(reading, tokenizer=RECORDS):
    scorer = TextScorer(Window(256), tokenizer)
    found = [
        one for records in reading.records() for some in scorer.score_read(records) for one in some
    ]
    return found, reading.notes()


@pytest.mark.parametrize(
    ("records", "texts"),
    [
        ("none", ["ab", "c", "d", "e"]),
        ("lines", ["ab", "c", "d", "e"]),
        ("paragraphs", ["ab\nc", "d", "e"]),
        ("files", ["ab\nc\n\n\nd", "e\n"]),
    ],
)
@pytest.mark.parametrize("at_once", [3, 1000])
def test_texts_are_read_from_files_as_the_run_reads_its_own(records, texts, at_once, monkeypatch):
    monkeypatch.setattr(each, "LOOKED_UP", at_once)

    found, notes = read(DataConfig(records=records), b"ab\nc\n\n\nd", b"e\n")

    assert [one.text for one in found] == texts
    assert found == list(score_records(Window(256), RECORDS, texts, ahead=at_once))
    many = {"none": "2 empty lines are left out", "lines": "2 empty lines are left out"}
    assert notes == [many[records]] if records in many else notes == []


@pytest.mark.parametrize(
    ("name", "texts"), [("list.csv", ["ab", "c"]), ("a pipe", ["name,x", "ab,1", "c,2"])]
)
def test_a_column_is_read_from_tables_and_lines_from_what_is_none(name, texts):
    source = Source("here", (Part(name, lambda: io.BytesIO(b"name,x\nab,1\nc,2\n")),))
    data = DataConfig(records="lines", column="name", newlines="none")

    found, _ = score_all(TextReading(source, data))

    assert [one.text for one in found] == texts


def test_lines_end_texts_also_where_a_run_leaves_line_ends_out():
    found, _ = read(DataConfig(newlines="none"), b"ab\r\nc\n")

    assert [one.text for one in found] == ["ab", "c"]


def test_small_files_are_read_together():
    reading = TextReading(source_of(*[b"a\nb"] * 50), DataConfig(records="lines"))

    many = [len(records.lengths) for records in reading.records()]

    assert (sum(many), len(many)) == (100, 2)  # the last ends with its file


def test_other_bytes_than_utf_8_are_read_by_a_run_of_bytes():
    found, _ = read(DataConfig(unit="bytes"), b"\xff\xc3\xa9\n\n\xc3", tokenizer=ByteTokenizer())

    assert [one.text for one in found] == ["\udcffé", "\udcc3"]
    assert [one.chars for one in found] == [3, 1]


def test_a_border_in_a_file_is_refused():
    with pytest.raises(DataError, match=r"here: holds U\+10FFFF, .*; remove it$"):
        read(DataConfig(records="lines"), f"a{BOUNDARY}b".encode())


def test_another_encoding_is_refused():
    with pytest.raises(DataError, match=r"not UTF-8 at byte 1 .*; convert it to UTF-8 first"):
        read(DataConfig(records="lines"), b"a\xe9\nb")


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5, math.inf])), st.integers(0, 8), st.integers(0, 8)
)
def test_the_ends_of_a_ranking_are_those_of_a_sorted_list(values, top, bottom):
    ranking = Ranking(top, bottom)
    for i, value in enumerate(values):
        ranking.add(value, i)

    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = list(enumerate(order, 1))
    assert list(ranking.top()) == ranks[:top]
    assert list(ranking.bottom()) == ranks[max(top, len(values) - bottom) :][::-1]


def test_a_score_that_is_no_number_is_the_least_likely():
    ranking = Ranking(1, 1)
    for value in (2.0, math.nan, 3.0):
        ranking.add(value, value)

    ((rank, worst),) = ranking.bottom()
    assert (rank, math.isnan(worst)) == (3, True)
