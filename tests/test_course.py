"""What docs/course.md shows is what comes out, and its ladder of lessons is that of the presets."""

import math
import re
import runpy
import types
import warnings
from pathlib import Path

import pytest
import torch

from charlm.config import load_config, preset_names, preset_text
from tests.test_docs import run_blocks

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
ANSWER = re.compile(r'^<details markdown="1">.*?^</details>$', re.MULTILINE | re.DOTALL)
ALWAYS_THERE = (1, 2, 3)  # the chapters that each later one builds on
MEANT_TO_LAST = (type, types.FunctionType, types.ModuleType)


def chapters():
    parts = re.split(r"^## (?:(\d+)\. )?.*$", PAGE, flags=re.MULTILINE)
    return {int(n): text for n, text in zip(parts[1::2], parts[2::2], strict=True) if n}


CHAPTERS = chapters()
LATER = [number for number in CHAPTERS if number not in ALWAYS_THERE]


def run_chapter(number, names):
    with torch.random.fork_rng():
        compared = run_blocks(CHAPTERS[number], names)
    assert compared >= 3


@pytest.fixture(scope="module")
def first_three():
    names = {}
    for number in ALWAYS_THERE:
        run_chapter(number, names)
    return names


def test_the_chapters_are_counted_from_1():
    assert list(CHAPTERS) == list(range(1, 12))


def test_the_first_chapters_print_what_stands_below_their_blocks(first_three):
    assert first_three["decode"](first_three["train"][:4].tolist()) == "This"


@pytest.mark.parametrize("number", LATER)
def test_each_later_chapter_does_so_after_the_first_three_alone(number, first_three):
    names = dict(first_three)

    run_chapter(number, names)

    # What another chapter may use is as it was, so all can also be run one after another.
    shared = {name for name, value in first_three.items() if isinstance(value, MEANT_TO_LAST)}
    shared |= {"V", "alphabet", "block_size", "counts", "id_of", "names", "train", "val"}
    assert {name for name in shared if names[name] is not first_three[name]} == set()


@pytest.mark.parametrize("number", CHAPTERS)
def test_each_chapter_has_two_exercises_whose_answers_run(number):
    asked = re.findall(r"^\*\*(\d+\.\d)\*\* ", CHAPTERS[number], re.MULTILINE)
    answers = ANSWER.findall(CHAPTERS[number])

    assert asked == [f"{number}.1", f"{number}.2"]
    assert len(answers) == 2
    assert all("```python\n" in answer and "```text\n" in answer for answer in answers)


def ladder():
    """Return lesson, file, preset, parameters, nats and chapters of each row of the table."""
    row = r"^\| (\d) \| `(\S+)` \| `(\S+)` \| ([\d,]+) \| ([\d.]+) \| ([\d, ]+) \|$"
    return re.findall(row, PAGE, re.MULTILINE)


def test_each_lesson_has_one_preset_and_the_ladder_lists_them():
    told = {name: re.match(r"# Lesson (\d)", preset_text(name)) for name in preset_names()}
    lessons = sorted((found[1], name) for name, found in told.items() if found)

    assert [(lesson, preset) for lesson, _, preset, *_ in ladder()] == lessons
    assert [lesson for lesson, _ in lessons] == list("123456")


@pytest.mark.parametrize("row", ladder(), ids=lambda row: row[2])
def test_a_row_of_the_ladder_is_true(row):
    lesson, path, preset, parameters, nats, numbers = row
    source = (ROOT / "charlm" / "models" / path).read_text(encoding="utf-8")
    expected = re.search(r"validation ([\d.]+) nats", preset_text(preset))

    assert re.search(rf"Lessons? (?:{lesson}|\d and {lesson})\b", source)
    assert load_config(preset).model.parameter_count(65) == int(parameters.replace(",", ""))
    assert float(expected[1]) == pytest.approx(float(nats), abs=0.0051)
    assert any(f"--config {preset}" in CHAPTERS[int(n)] or f"Lesson {lesson}" in CHAPTERS[int(n)]
               for n in numbers.split(", "))  # fmt: skip


def test_the_readme_has_the_same_lessons_and_losses():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\S+)` \| lesson (\d): .* \| ([\d.]+) \|$", readme, re.MULTILINE)

    assert told == [(preset, lesson, nats) for lesson, _, preset, _, nats, _ in ladder()]


def test_the_notebook_runs_and_its_models_learn():
    pytest.importorskip("marimo", reason="the notebook needs pip install -e '.[course]'")
    pytest.importorskip("altair", reason="the notebook needs pip install -e '.[course]'")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # those of other packages
        app = runpy.run_path(str(ROOT / "docs" / "course.py"))["app"]
        _, made = app.run()

    uniform = math.log(made["V"])
    first, last = made["gpt_losses"][0], sum(made["gpt_losses"][-20:]) / 20
    assert first == pytest.approx(uniform, abs=0.2)
    assert last < sum(made["bigram_losses"][-20:]) / 20 < uniform - 1
    frequent = made["counts"].sum(axis=1).argsort()[-10:]
    counted, trained = (torch.tensor(made[name][frequent]) for name in ("counted", "trained"))
    torch.testing.assert_close(trained.double(), counted, rtol=0, atol=0.1)
    weights = made["attention"]
    assert weights.shape[:2] == (2, 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not weights.triu(1).any()
    assert made["written"].startswith("The ")
    assert len(made["written"]) == 304
