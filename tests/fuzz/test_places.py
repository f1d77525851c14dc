"""A few of the cases of `scripts/fuzz places`, and what that harness finds in a broken program."""

import contextlib
import os
import shutil

import pytest

from charlm.cli.main import run
from charlm.runs import checks, metrics
from charlm.storage import atomic, json_file
from tests.fuzz import places
from tests.fuzz.places import Case

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")

TRIED = 40  # of all cases
# What was found in earlier versions.
FOUND = [
    Case("start", "metrics.jsonl", "old", "a link to a file", "begin"),
    Case("gpt", "metrics.jsonl", "", "a hard link", "resume"),
    Case("mixture", "metrics.jsonl", "", "a hard link", "resume"),
    Case("mixture", "metrics.jsonl", "", "a sparse file", "resume"),
    Case("start", "checkpoints", "", "a link to a folder", "begin"),
    Case("start", "checkpoints", "old", "a link to what was there", "begin"),
    Case("start", "tokens", "", "a pipe", "begin"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places") / "prepared"
    places.prepare(folder, run)
    return folder


@pytest.mark.parametrize("name", [name for name in places.RUNS if name != "start"])
def test_each_command_is_one_that_uses_a_run(prepared, tmp_path, name, capsys):
    for command in places.commands(name):
        shutil.copytree(prepared, tmp_path / command, symlinks=True)
        with contextlib.chdir(tmp_path / command):
            code = run(list(places.COMMANDS[command](f"runs/{name}")))
        assert code in ({0} if name == "gpt" and command != "begin" else {0, 2, 4}), command
        assert "see 'charlm" not in capsys.readouterr().err, command


def test_whatever_is_odd_in_a_run_nothing_outside_changes(prepared, tmp_path):
    every = len(places.cases(prepared)) // TRIED
    tried = FOUND + places.cases(prepared)[::every]

    wrong = [found for case in tried if (found := places.answer(case, prepared, tmp_path, run))]

    assert wrong == []


def follow(path, mode="rb", buffering=-1):
    return open(path, mode, buffering)


def put_back(old, path):
    if not path.exists():
        old.rename(path)


FOLLOWING = [(module, "open_regular", follow) for module in (atomic, metrics)]
# What is taken out of the program, and the case that shows it.
BREAKS = {
    "a log of its own": (
        [(m, "own_file", lambda file, *_: file) for m in (atomic, metrics)],
        FOUND[1],
    ),
    "no links": (
        [*FOLLOWING, (atomic, "_restore", put_back), (checks, "check_file", lambda path: None)],
        Case("gpt", "metrics.jsonl", "old", "a link to what was there", "resume"),
    ),
    "no pipes": (
        [(json_file, "open_regular", follow)],
        Case("gpt", "tokenizer.json", "", "a pipe", "sample"),
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_this_harness_sees_what_is_missing(prepared, tmp_path, monkeypatch, broken):
    patches, case = BREAKS[broken]
    for patch in patches:
        monkeypatch.setattr(*patch)
    monkeypatch.setattr(places, "SECONDS", 1)

    assert places.answer(case, prepared, tmp_path, run)
