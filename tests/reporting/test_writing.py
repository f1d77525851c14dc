"""Samples, and what of them was recited."""

import pytest

from charlm.reporting.writing import TEMPERATURES, parts_of, writing

CHARS = 50


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("charlm.reporting.writing.CHARS", CHARS)


def text_of(run, part):
    return run.tokenizer.decode(part.read(0, len(part)))


def spans(text, whole):
    """Return the length of the longest span of a text that is in another, by trying them all."""
    return max(
        (
            n
            for i in range(len(text))
            for n in range(1, len(text) - i + 1)
            if text[i : i + n] in whole
        ),
        default=0,
    )


def test_samples_are_those_of_the_command(charlm, runs, opened):
    run = opened("ngram")

    found = writing(run, seed=5)

    assert [one.temperature for one in found.written] == [*TEMPERATURES]
    for one in found.written:
        command = ("sample", runs("ngram"), "--seed", 5, "--no-echo", "--max-new-chars", CHARS)
        printed = charlm(*command, "--temperature", one.temperature).stdout
        (sample,) = one.samples
        assert sample.before + sample.copied + sample.after + "\n" == printed


def test_the_marked_span_is_the_longest_that_the_training_part_has(opened):
    run = opened("gpt")
    train = text_of(run, run.train)

    for one in writing(run).written:
        (sample,) = one.samples
        assert sample.copied in train
        assert len(sample.copied) == sample.length == one.longest
        whole = sample.before + sample.copied + sample.after
        longer = sample.length + 1
        assert not any(whole[i : i + longer] in train for i in range(len(whole) - longer + 1))


def test_samples_of_records_are_whole_and_looked_up(opened):
    run = opened("records")
    known = set(text_of(run, run.train).split("\U0010ffff"))

    found = writing(run)

    assert any(one.samples for one in found.written)
    for one in found.written:
        for sample in one.samples:
            text = sample.before + sample.copied + sample.after
            assert sample.known == (text in known)
        assert one.known == sum(sample.known for sample in one.samples)
    assert found.held == 20
    assert found.held_known == 0


def test_held_out_text_is_measured_alike(opened):
    run = opened("ngram")

    found = writing(run)

    val, train = text_of(run, run.val), text_of(run, run.train)
    assert found.held == len(val) // CHARS
    assert found.held_spans == sorted(found.held_spans)
    assert found.held_spans[-1] >= spans(val[:CHARS], train)
    assert writing(opened("unscored")).held == 0


@pytest.mark.parametrize("name", ["bytes", "hostile", "rare", "linear"])
def test_any_run_writes(opened, name):
    run = opened(name)

    found = writing(run)

    assert all(len(one.samples) == 1 for one in found.written)


def test_a_span_of_bytes_may_begin_within_a_character():
    assert parts_of("aéb", 2, 2, "bytes") == ("a\udcc3", "\udca9b", "")
    assert parts_of("aéb", 1, 1, "chars") == ("a", "é", "b")
