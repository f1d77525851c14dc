"""Which files a folder or a pattern stands for, and in which order."""

import os
from pathlib import Path

import pytest

from charlm.errors import DataError
from charlm.text import open_source


def make(*names):
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def labels(name, **how):
    return [part.label for part in open_source(name, **how).parts]


def test_numbers_in_names_are_in_the_order_of_their_values():
    make("t/p10.txt", "t/p2.txt", "t/p1.txt", "t/p01.txt", "t/2/z", "t/10/a", "t/b9/3")

    order = ["t/2/z", "t/10/a", "t/b9/3", "t/p01.txt", "t/p1.txt", "t/p2.txt", "t/p10.txt"]
    assert labels("t") == labels("t/**/*") == order
    assert labels("t/p*.txt") == order[3:]


def test_the_order_of_older_runs_is_known_too():
    make("t/p10.txt", "t/p2.txt", "t/a/p1.txt", "t/.hidden/x")

    assert labels("t", as_before=True) == ["t/a/p1.txt", "t/p10.txt", "t/p2.txt"]
    assert labels("t/*.txt", as_before=True) == ["t/p10.txt", "t/p2.txt"]
    assert labels("t/p2.txt", as_before=True) == ["t/p2.txt"]


@pytest.mark.parametrize("name", [".", "./t", "t/", "t//*.txt", "**", "./*/*"])
def test_a_path_is_written_as_short_as_it_can_be(name):
    make("t/a.txt")

    assert labels(name) == ["t/a.txt"]


@pytest.mark.parametrize("pattern", ["t/**/*.txt", "t/**", "**/*.txt", "t/**/**/*.txt"])
def test_links_that_loop_give_each_file_once(pattern):
    make("t/a.txt", "t/b/c.txt")
    for name in ("one", "two"):
        Path("t", name).symlink_to(".")
        Path("t/b", name).symlink_to("..")

    source = open_source(pattern)

    assert [part.label for part in source.parts] == ["t/a.txt", "t/b/c.txt"]
    assert source.notes[0].startswith("t/b/one: a path to a folder that is read already, left out")


def test_a_folder_behind_a_link_is_in_a_pattern_and_only_noted_in_a_folder():
    make("t/a.txt", "more/b.txt")
    Path("t/link").symlink_to(Path("more").resolve())

    assert labels("t/**") == ["t/a.txt", "t/link/b.txt"]
    assert labels("t") == ["t/a.txt"]
    note = "t/link: a link to a folder, which only a pattern follows, left out"
    assert open_source("t").notes == (note,)


@pytest.mark.parametrize("name", ["t", "t/*"])
def test_a_file_with_several_names_is_read_once(name):
    make("t/b.txt", "t/c.txt")
    Path("t/a.txt").symlink_to("b.txt")
    os.link("t/c.txt", "t/d.txt")

    source = open_source(name)

    assert [part.label for part in source.parts] == ["t/b.txt", "t/c.txt"]
    note = "t/a.txt: a path to a file that is read already, left out (and 1 more like it)"
    assert source.notes == (note,)


@pytest.mark.parametrize("name", ["t", "t/**"])
def test_runs_inside_a_folder_are_no_text(name):
    make("t/a.txt", *(f"t/runs/x/{file}" for file in ("config.yaml", "tokenizer.json")))
    make("t/runs/x/checkpoints/step-1/state.json", "t/runs/x/samples/step-1.txt")

    source = open_source(name)

    assert [part.label for part in source.parts] == ["t/a.txt"]
    assert source.notes == ("t/runs/x: the folder of a run, left out",)
    assert labels("t/runs/*/samples/*") == ["t/runs/x/samples/step-1.txt"]
    with pytest.raises(DataError, match="t/runs: no file in this folder; t/runs/x: the folder of"):
        open_source("t/runs")
    with pytest.raises(DataError, match="t/runs/x: is the folder of a run, not a text; name the"):
        open_source("t/runs/x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_noted():
    make("t/a.txt", "t/closed/b.txt")
    Path("t/closed").chmod(0)

    assert open_source("t").notes == ("t/closed: a folder that may not be read, left out",)


def test_how_many_files_there_are_is_known_of_folders_and_patterns():
    make("t/a.txt", "t/b.txt")

    assert [open_source(name).files for name in ("t", "t/a*", "t/a.txt")] == [2, 1, None]
