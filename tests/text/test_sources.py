import io
import os
import sys

import pytest

from charlm.errors import DataError, MachineError
from charlm.text import open_source
from charlm.text.datasets import DATASETS
from charlm.text.sources import open_stream


def read(source):
    data = b""
    for part in source.parts:
        with part.open() as file:
            data += file.read()
    return data


def test_the_embedded_text_is_always_there_and_always_the_same():
    source = open_source("python-docs")

    text = read(source)

    assert 400_000 < len(text.decode()) < 600_000  # it grows a little with each Python
    assert read(source) == text


def test_the_standard_library_is_read_in_order_without_its_tests():
    labels = [part.label for part in open_source("python-stdlib").parts]

    assert labels == sorted(labels)
    assert any(label.endswith("/argparse.py") for label in labels)
    assert not any("/test/" in label or "/site-packages/" in label for label in labels)


def test_a_file_is_one_part(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"text\r\n\xff")

    source = open_source(str(tmp_path / "a.txt"))

    assert [part.label for part in source.parts] == [str(tmp_path / "a.txt")]
    assert read(source) == b"text\r\n\xff"


def test_a_folder_is_its_files_in_order_without_hidden_ones(tmp_path):
    for name in ["b.txt", "a/z.txt", "a/b/c", ".hidden", ".git/config", "a/.cache/x"]:
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    source = open_source("texts")

    assert [part.label for part in source.parts] == ["texts/a/b/c", "texts/a/z.txt", "texts/b.txt"]
    assert read(source) == b"a/b/ca/z.txtb.txt"


def test_a_folder_that_is_hidden_itself_is_read(tmp_path):
    (tmp_path / ".texts").mkdir()
    (tmp_path / ".texts" / "a.txt").write_text("a")

    assert read(open_source(".texts")) == b"a"


def test_a_folder_without_files_is_refused(tmp_path):
    (tmp_path / "texts" / "empty").mkdir(parents=True)
    (tmp_path / "texts" / ".hidden").write_text("")

    with pytest.raises(DataError, match="texts: no file in this folder"):
        open_source("texts")


def test_a_glob_is_the_matching_files_in_order(tmp_path):
    for name in ["b.txt", "a.txt", "c.md", "d.txt/e.txt", ".f.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    assert [part.label for part in open_source("*.txt").parts] == ["a.txt", "b.txt"]
    assert [part.label for part in open_source("**/[be].txt").parts] == ["b.txt", "d.txt/e.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("itself")
    (tmp_path / "a1.txt").write_text("the match")

    assert read(open_source("a[1].txt")) == b"itself"


def test_a_glob_without_a_match_names_the_pattern_and_the_folder(tmp_path):
    (tmp_path / "texts").mkdir()

    with pytest.raises(DataError, match=r"texts/\*\.txt: matches no file in /.*/texts; check"):
        open_source("texts/*.txt")
    with pytest.raises(DataError, match=rf"a\?: matches no file in {tmp_path}; check"):
        open_source("a?")


def test_standard_input_can_be_read_twice(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"once \xff")))

    source = open_source("-")

    assert source.name == "standard input"
    assert read(source) == read(source) == b"once \xff"


@pytest.mark.parametrize("name", ["-", "pipe"])
def test_a_stream_is_read_as_it_comes(monkeypatch, name):
    os.mkfifo("pipe")
    with open("pipe", opener=lambda path, _: os.open(path, os.O_RDWR)) as both:
        monkeypatch.setattr(sys, "stdin", both)
        (part,) = open_stream(name).parts
        with part.open() as file:
            for data in (b"one\n", b"two"):
                os.write(both.fileno(), data)
                assert file.read(1 << 18) == data


def test_a_stream_of_a_file_is_that_file(tmp_path):
    (tmp_path / "a.txt").write_text("itself")

    assert read(open_stream("a.txt")) == b"itself"
    with pytest.raises(DataError, match="no such file or named text"):
        open_stream("b.txt")


def test_a_file_on_standard_input_that_becomes_shorter_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_bytes(b"a long text")

    def copy(source, target):
        target.write(source.read(4))
        path.write_bytes(b"a lo")

    monkeypatch.setattr("shutil.copyfileobj", copy)
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(DataError, match="standard input: changed while it was being read"):
            open_source("-")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DataError, match=r"pipe: not a regular file; pipe it in with data.source=-"):
        open_source("pipe")


def test_a_pipe_and_a_dangling_link_in_a_folder_are_passed_over(tmp_path):
    (tmp_path / "texts").mkdir()
    os.mkfifo(tmp_path / "texts" / "pipe")
    (tmp_path / "texts" / "dangling").symlink_to("nowhere")
    (tmp_path / "texts" / "a.txt").write_text("a")

    assert [part.label for part in open_source("texts").parts] == ["texts/a.txt"]


@pytest.mark.parametrize(
    ("name", "near"), [("shakespear", "'shakespeare'"), ("python_docs", "'python-docs'")]
)
def test_a_missing_text_suggests_the_nearest_name(name, near):
    with pytest.raises(DataError, match=f"{name}: no such file or named text; did you mean {near}"):
        open_source(name)


def test_a_missing_text_unlike_any_name_lists_them_all():
    with pytest.raises(DataError) as caught:
        open_source("missing/file.txt")

    assert "did you mean" not in str(caught.value)
    for name in ["python-docs", "python-stdlib", "shakespeare", "names", "enwik8", "text8"]:
        assert name in str(caught.value)


def test_a_named_text_that_cannot_be_fetched_names_two_ways_on(monkeypatch):
    def offline(self, progress):
        raise MachineError("no network")

    monkeypatch.setattr("charlm.text.datasets.Dataset.fetch", offline)

    with pytest.raises(MachineError, match=r"no network; .*data add names FILE.*=python-docs"):
        open_source("names")


def test_a_named_text_is_fetched_with_progress(monkeypatch, tmp_path):
    path = tmp_path / "fetched.txt"
    path.write_text("a name")
    seen = []

    def fetch(self, progress):
        assert self is DATASETS["names"]
        progress(1, 2)
        return path

    monkeypatch.setattr("charlm.text.datasets.Dataset.fetch", fetch)

    source = open_source("names", lambda done, total: seen.append((done, total)))

    assert source.name == "names"
    assert read(source) == b"a name"
    assert seen == [(1, 2)]


def test_an_empty_name_is_not_the_folder_that_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("the fox")

    with pytest.raises(DataError, match="got an empty name; name a file, a folder, a glob"):
        open_source("")


def test_a_mistyped_name_is_answered_with_the_file_that_is_there(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("a")
    (tmp_path / "other.txt").write_text("b")

    with pytest.raises(DataError, match=r"did you mean '.*/shakespeare\.txt'\? named texts: "):
        open_source(str(tmp_path / "shakespear.txt"))
    with pytest.raises(DataError, match="no such file or named text; named texts: "):
        open_source(str(tmp_path / "nope.txt"))
