"""The examples of the library run: those of docs/library.md, of the README, and of each name's docstring."""

import doctest
import inspect
import re
import runpy
import sys
from pathlib import Path

import pytest

import charlm as package
from charlm.reporting import page
from tests.test_docs import BLOCK

ROOT = Path(__file__).parent.parent.parent
TEXT = "ROMEO: To be, or not to be. The king and queen\n" * 40
SMALL = {"block_size": 16, "n_layer": 1, "n_embd": 16}
FEW = {"max_steps": 4, "eval_every": 2, "batch_size": 2}
QUICK = "eval={'baselines': False}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the runs that examples name."""
    folder = tmp_path_factory.mktemp("examples")
    for name, model in {"gpt": {"type": "gpt", **SMALL}, "bigram": {"type": "bigram"}}.items():
        small = {"model": model, "train": FEW, "eval": {"baselines": False}}
        package.train(small, TEXT, out=folder / "runs" / name)
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def blocks(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    return [code for language, code in BLOCK.findall(text) if language == "python"]


def test_the_examples_of_the_page_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "page_of", lambda runs, passage, seed: f"<html>{runs[0].name}")
    found = blocks("docs/library.md")
    names = {}
    for code in found:
        exec(compile(code, "docs/library.md", "exec"), names)

    assert len(found) >= 10
    assert len(names["three"]) == 3
    assert names["page"] == Path("runs/hamlet/report.html")
    assert names["page"].read_text() == "<html>hamlet"


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(TEXT)
    (code,) = [code for code in blocks("README.md") if "charlm.train" in code]
    small = '"gpt", Path("my.txt"), minutes=5'
    assert code.count(small) == 1

    few = f"{small[: small.index(', minutes')]}, model={SMALL}, train={FEW}, {QUICK}"
    exec(code.replace(small, few), {})

    written, bits = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    assert len(written) >= 500
    assert 0 < float(bits) < 20


def public():
    """Return all that the package offers: its names, and the methods of its classes."""
    for name in sorted({*package.__all__} - {"__version__"}):
        found = getattr(package, name)
        yield name, found
        for method, function in vars(found).items() if inspect.isclass(found) else ():
            if inspect.isfunction(function) and not method.startswith("_"):
                yield f"{name}.{method}", function


def test_what_the_package_offers_is_what_it_lists():
    listed = {*package.__all__}

    assert {name for name in dir(package) if not name.startswith("_")} >= listed - {"__version__"}
    assert {name for name, _ in public()} >= listed - {"__version__"} | {"Model.next", "Run.frame"}


def test_the_page_of_all_names_has_each():
    listed = re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)

    for name in {*package.__all__} - {"__version__", "errors"}:
        found = getattr(package, name)
        assert f"{found.__module__}.{found.__qualname__}" in listed
    assert package.errors.__name__ in listed


@pytest.mark.parametrize(
    ("name", "found"), [*public()], ids=lambda one: one if isinstance(one, str) else ""
)
def test_a_public_name_has_an_example_that_runs(name, found, monkeypatch):
    monkeypatch.setattr(page, "page_of", lambda runs, passage, seed: "<html>")
    if name == "Run.frame":
        monkeypatch.setitem(sys.modules, "pandas", Frames)  # neither need be installed
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(found))

    assert examples, "no example"
    names = {"charlm": package}
    for example in examples:
        exec(compile(example.source, name, "single"), names)


class Frames:
    """Stands for pandas."""

    @staticmethod
    def DataFrame(rows):
        return Columns(rows)


class Columns(list):
    """Rows, of which columns can be taken."""

    def __getitem__(self, names):
        return [[row.get(name) for name in names] for row in self]


def test_a_script_with_all_of_the_library_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "page_of", lambda runs, passage, seed: "<html>")
    Path("my.txt").write_text(TEXT)

    names = runpy.run_path(str(ROOT / "tests" / "library" / "script.py"))

    assert len(names["losses"]) == 3
    assert names["heads"] == names["run"].config.model.n_head
    assert names["shape"] == (5, names["model"].tokenizer.vocab_size)
    assert "nothing: not found" in capsys.readouterr().out
