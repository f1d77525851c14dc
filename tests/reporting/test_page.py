"""The page: one file, harmless whatever the text is, and right about each kind of run."""

import base64
import functools
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from charlm.reporting.glyphs import harmless
from charlm.reporting.opened import open_run
from charlm.reporting.page import page_of
from charlm.reporting.passage import passage_of
from charlm.runs import RunFolder
from tests.reporting.conftest import KINDS, each, without_charts


class Page(HTMLParser):
    """The elements of a page, their attributes, and the text in each kind of element."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        if tag not in ("meta", "img", "input"):
            self.open.append((tag, len(self.texts) - 1))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, "elements are nested"

    def handle_data(self, data):
        for _, number in self.open:
            self.texts[number] += data

    def named(self, name, **wanted):
        return [
            (attributes, text)
            for (tag, attributes), text in zip(self.elements, self.texts, strict=True)
            if tag == name and wanted.items() <= attributes.items()
        ]


def plain(run):
    """Return the page of a run, without charts."""
    with without_charts():
        return page_of([run], passage_of(run, 300))


@pytest.fixture(scope="session")
def made(opened):
    """A function that makes the page of one of `KINDS`, once."""

    @functools.cache
    def make(name):
        return plain(opened(name))

    return make


def data_of(page):
    ((_, text),) = Page(page).named("script", id="data")
    return json.loads(text)


@pytest.mark.parametrize("name", each(*KINDS))
def test_the_page_of_any_run_is_whole_and_loads_nothing(made, name):
    check_whole(made(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_page_of_any_run_with_its_charts_is_whole(opened, name):
    run = opened(name)

    page = page_of([run], passage_of(run))

    check_whole(page)
    assert len(page.encode()) < 5e6
    figures = Page(page).named("figure")
    assert len(figures) >= 2
    assert len(Page(page).named("svg")) == 2 * len(figures)


def check_whole(page):
    found = Page(page)
    assert not found.open
    assert harmless(page) == page
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "action", "srcset"):
            if key in attributes:
                assert attributes[key].startswith(("#", "data:image/png;base64,"))
                assert not attributes[key].startswith("#") or attributes[key][1:] in ids
    assert "@import" not in page
    assert "url(" not in Page(page).named("style")[0][1]


@pytest.mark.parametrize("name", ["gpt", "hostile"])
def test_only_the_scripts_of_the_page_may_run(made, name):
    found = Page(made(name))

    ((attributes, _),) = found.named("meta", **{"http-equiv": "Content-Security-Policy"})
    policy = attributes["content"]
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    ran = [text for attributes, text in found.named("script") if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in ran]
    assert allowed == digests
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "unsafe-eval" not in policy


def test_markup_in_a_text_stays_text(made):
    page = made("hostile")

    found = Page(page)
    scripts = found.named("script")
    assert all("alert(1)" not in text for attributes, text in scripts if "id" not in attributes)
    assert not found.named("b")
    assert not found.named("i")
    ((_, shown),) = found.named("div", id="map")
    assert "<script>alert(1)</script>" in shown
    assert "{{ 7*7 }}" in shown
    assert "שלום" in shown
    assert "\\x00" in shown
    assert "\\u202e" in shown


def test_names_of_files_and_runs_stay_text(charlm, tiny):
    strange = "<img src=x onerror=alert(1)>\u202e'\""
    Path(strange).write_text(Path("text.txt").read_text())
    command = ("train", "--config", "bigram", "train.max_steps=1", "eval.baselines=false", "-q")
    assert charlm(*command, "--file", strange, "--out", f"runs/{strange}").code == 0

    found = Page(plain(open_run(RunFolder(Path("runs", strange)), "cpu")))

    ((_, title),) = found.named("h1")
    assert title == harmless(strange)
    assert not [a for a, _ in found.named("img") if a["src"] == "x"]


def test_the_script_gets_what_the_map_shows(made):
    page = made("gpt")

    found, data = Page(page), data_of(page)["map"]
    cells = [
        (attributes, text)
        for attributes, text in found.named("span")
        if "c" in attributes.get("class", "").split() and "title" in attributes
    ]
    assert len(cells) == len(data["at"])
    (model,) = data["models"]
    assert len(model["bits"]) == len(cells) - 1
    for i, (attributes, text) in enumerate(cells[1:]):
        bits = model["bits"][i]
        level = sum(bits >= step for step in data["steps"])
        assert f"b{level}" in attributes["class"].split()
        assert attributes["title"].startswith(f"{bits:.2f} bits; likeliest: ")
        glyph, _ = data["symbols"][data["at"][i + 1]]
        assert text == (" " if glyph == "␣" else glyph)
        assert sum(model["p"][i]) <= data["scale"] + 5
        assert model["p"][i] == sorted(model["p"][i], reverse=True)


def test_a_mixture_has_a_choice_of_experts(made):
    page = made("linear")

    radios = Page(page).named("input", type="radio")
    assert [attributes["value"] for attributes, _ in radios] == ["0", "1", "2"]
    assert [m["name"] for m in data_of(page)["map"]["models"]] == ["the mixture", "gpt", "counts"]
    assert "hidden" not in Page(page).named("fieldset")[0][0]
    assert "hidden" in Page(made("gpt")).named("fieldset")[0][0]


@pytest.mark.parametrize(
    ("name", "heads"), [("gpt", 4), ("linear", 4), ("bigram", 0), ("ngram", 0)]
)
def test_heads_are_shown_where_there_are_any(made, name, heads):
    found = Page(made(name))

    assert len(found.named("img")) == heads
    assert all(attributes["alt"] for attributes, _ in found.named("img"))
    assert bool(found.named("section", id="attention")) == bool(heads)
    links = [attributes["href"] for attributes, _ in found.named("a")]
    assert ("#attention" in links) == bool(heads)


def test_windows_are_marked_where_the_model_begins_anew(made):
    def marked(name):
        classes = [a.get("class", "").split() for a, _ in Page(made(name)).named("span")]
        return sum("w" in some for some in classes)

    assert marked("gpt") == len(range(1, 261, 16))  # 260 characters are predicted
    assert marked("bigram") == 0


def test_an_alphabet_of_thousands_stays_small(charlm, tmp_path):
    text = "".join(chr(0x4E00 + i) for i in range(6000)) * 2
    Path("many.txt").write_text(text, encoding="utf-8")
    command = ("train", "--config", "ngram", "model.order=2", "eval.baselines=false", "-q")
    assert charlm(*command, "--file", "many.txt", "--out", "many").code == 0

    page = plain(open_run(RunFolder(Path("many")), "cpu"))

    assert len(page) < 5e6
    assert len(data_of(page)["map"]["symbols"]) < 1500


def test_two_pages_of_a_run_are_equal(made, opened):
    assert plain(opened("records")) == made("records")
