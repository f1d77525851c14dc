"""How much of a text stands in another."""

from pathlib import Path

import numpy as np
import pytest

from charlm.evaluation import repeats
from charlm.evaluation.repeats import copy_note, share_of_lines, share_of_stretches
from charlm.text import ByteTokenizer, CharTokenizer, IdArray

WORDS = [f"{a}{b}{c}" for a in "bdfg" for b in "aeiouy" for c in ("lm", "rs", "nt", "st", "zz")]
RNG = np.random.default_rng(0)
LINES = [" ".join(RNG.choice(WORDS, 4)) for _ in range(400)]  # of no line twice
LIST = "\n".join(LINES) + "\n"
LETTERS = CharTokenizer(LIST)
NEWLINE = int(LETTERS.encode("\n")[0])


def ids(text: str) -> IdArray:
    return IdArray(LETTERS.encode(text))


def shuffled(lines: list[str]) -> str:
    return "\n".join(RNG.permutation(lines)) + "\n"


@pytest.mark.parametrize("chunk", [1 << 18, 100])
def test_stretches_are_found_at_any_place_and_counted(monkeypatch, chunk):
    monkeypatch.setattr(repeats, "CHUNK", chunk)
    monkeypatch.setattr(repeats, "MOST_CHUNKS", 1 << 20)
    half = len(LIST) // 2
    front, back = LIST[:half], LIST[half:]

    assert share_of_stretches(ids(back), ids(front + back)) == 1
    assert share_of_stretches(ids(back), ids(front[:33] + back + front)) == 1
    assert share_of_stretches(ids(back), ids(front)) == 0
    assert share_of_stretches(ids(LIST), ids(back)) == pytest.approx(0.5, abs=0.02)
    assert share_of_stretches(ids(back[:64]), ids(LIST)) == 1
    assert share_of_stretches(ids(back[:63]), ids(LIST)) == 0
    assert share_of_stretches(ids(back), ids("a")) == 0


@pytest.mark.parametrize("chunk", [1 << 18, 400])
def test_lines_are_found_in_any_order(monkeypatch, chunk):
    monkeypatch.setattr(repeats, "CHUNK", chunk)
    monkeypatch.setattr(repeats, "MOST_CHUNKS", 1 << 20)
    part = ids("\n" + "\n".join(LINES[:100]) + "\n")

    assert share_of_lines(part, ids("\n" + shuffled(LINES)), NEWLINE) >= 0.99
    assert share_of_lines(part, ids("\n" + shuffled(LINES[50:])), NEWLINE) == pytest.approx(
        0.5, abs=0.02
    )
    assert share_of_lines(part, ids(shuffled(LINES[100:])), NEWLINE) == 0
    assert share_of_lines(ids("bol"), ids(LIST), NEWLINE) == 0
    assert share_of_lines(ids("\n\n\n\n"), ids("\n\n\n"), NEWLINE) == 0  # no empty ones


def test_only_a_part_of_a_long_text_is_looked_at(monkeypatch):
    monkeypatch.setattr(repeats, "CHUNK", 64)
    monkeypatch.setattr(repeats, "MOST_CHUNKS", 4)
    read = []

    class Counting(IdArray):
        def read(self, first, count):
            read.append(count)
            return super().read(first, count)

    share_of_stretches(ids(LIST), Counting(LETTERS.encode(LIST)))

    assert len(read) <= 4


def test_a_note_says_what_is_copied():
    half = len(LIST) // 2
    train, text = LIST[:half], LIST[half:]
    memory = "so its loss shows what was memorised, not what was learned"

    assert copy_note(ids(text), ids(train), LETTERS) is None
    assert copy_note(ids(text), ids(LIST), LETTERS) == (
        "validation: 100 % of its stretches of 64 characters also stand in the training part, "
        + memory
    )
    again = copy_note(ids(shuffled(LINES)), ids("\n" + shuffled(LINES)), LETTERS, "mine")
    assert again is not None
    assert again.startswith("mine: ")
    assert again.endswith(f" % of its lines also stand in the training part, {memory}")
    assert copy_note(ids(LIST[:1023]), ids(LIST), LETTERS) is None  # too short to tell
    raw = IdArray(np.frombuffer(LIST.encode(), np.uint8))
    assert "stretches of 64 bytes" in str(copy_note(raw, raw, ByteTokenizer()))
    one_line = CharTokenizer("ab")
    noise = [IdArray(RNG.integers(0, 2, 3000)) for _ in range(2)]
    assert copy_note(*noise, one_line) is None


def test_a_doubled_list_is_noted_when_training_starts(charlm, tiny):
    Path("text.txt").write_text("\n".join(LINES * 2) + "\n")

    doubled = charlm("train", "-c", "tiny.yaml", "train.max_steps=2", "-q")
    Path("text.txt").write_text("\n".join(LINES) + "\n")
    single = charlm("train", "-c", "tiny.yaml", "train.max_steps=2", "-q", "--out", "run")
    Path("text.txt").write_text("\n".join(LINES * 2) + "\n")
    resume = ("train", "--resume", "--out", "run", "-q", "--allow-new-data")
    changed = charlm(*resume)

    for result in (doubled, changed):
        assert (
            "charlm: note: validation: 100 % of its stretches of 64 characters also stand in the "
            "training part" in result.stderr
        )
    assert "validation" not in single.stderr


def test_scoring_what_was_trained_on_is_noted(charlm, tiny):
    Path("text.txt").write_text(LIST)
    charlm("train", "-c", "tiny.yaml", "train.max_steps=2", "-q", "--out", "run")
    Path("whole").write_text(LIST)
    Path("part").write_text(LIST[1000:3000])
    Path("val").write_text(LIST[-len(LIST) // 10 :])
    seen = "of its stretches of 64 characters also stand in the training part"

    for name in ("whole", "part"):
        assert f"note: {name}: " in (said := charlm("eval", "--run", "run", "--file", name).stderr)
        assert seen in said
    assert seen not in charlm("eval", "--run", "run", "--file", "val").stderr
    Path("run/tokens/ids.bin").unlink()
    assert charlm("eval", "--run", "run", "--file", "whole").code == 0
