"""The page of `charlm serve`, in a browser."""

import math
import re
from pathlib import Path

import pytest

from charlm.library import load, train
from charlm.serving.app import Server
from charlm.serving.service import Served
from tests.browser.conftest import WIDTHS
from tests.serving.conftest import serving

pytestmark = pytest.mark.slow

LOW_CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
TEXT = "the quick brown fox jumps over the lazy dog\n" * 30
GPT = {"model": {"type": "gpt", "block_size": 16, "n_layer": 1, "n_embd": 16}}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Models by the names they are served by."""
    runs = tmp_path_factory.mktemp("runs")
    few = {"train": {"max_steps": 60, "eval_every": 60}, "eval": {"baselines": False}}
    made = {
        "gpt": train(GPT, TEXT, out=runs / "gpt", **few),
        "ngram": train("ngram", TEXT, out=runs / "ngram", model={"order": 4}),
        "names": train("ngram", ["ann", "otto", "zoë"] * 9, out=runs / "names", model={"order": 3}),
        "bytes": train("ngram", "é☃ 1" * 99, out=runs / "bytes", data={"unit": "bytes"}),
    }
    return {name: load(run) for name, run in made.items()}


class Visit:
    """The page of a server of some models, and what went wrong there."""

    def __init__(self, browser, models, width=1280, token=None, **options):
        self.server = Server([Served(name, one) for name, one in models.items()], token=token)
        self._serving = serving(self.server)
        self.address = self._serving.__enter__()
        viewport = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=viewport, bypass_csp=True, **options)
        self.page = self.context.new_page()
        self.troubles, self.elsewhere = [], []
        self.page.on("console", lambda said: self._heard(said.type, said.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(self.address)

    def _heard(self, kind, text):
        if kind in ("error", "warning"):
            self.troubles.append(text)

    def _asked(self, url):
        if not url.startswith(f"{self.address}/"):
            self.elsewhere.append(url)

    def close(self):
        self.context.close()
        self._serving.__exit__(None, None, None)


@pytest.fixture
def visit(browser, models):
    """Open the page of some models; check that nothing went wrong."""
    visits = []

    def go(*names, **options):
        visits.append(Visit(browser, {name: models[name] for name in names}, **options))
        return visits[-1].page

    yield go
    for one in visits:
        one.close()
        refused = [text for text in one.troubles if "401" in text]
        assert one.troubles == (refused if one.server.token else [])
        assert one.elsewhere == []


def write(page, text, marks=None):
    """Type a text; wait until it is coloured."""
    page.locator("#prompt").press_sequentially(text)
    shown = page.locator("section").last.locator(".text span")
    shown.nth((len(text) if marks is None else marks) - 1).wait_for()
    page.wait_for_function(
        "text => document.querySelector('.text').textContent.replaceAll('↵', '').startsWith(text)",
        arg=text,
    )


def bars(section):
    rows = section.locator(".bars li")
    rows.first.wait_for()
    found = rows.evaluate_all(
        "rows => rows.map(row => [row.dataset.text, Number(row.dataset.p),"
        " row.querySelector('span').getBoundingClientRect().width])"
    )
    return {text: (p, width) for text, p, width in found}


@pytest.mark.parametrize("name", ["gpt", "ngram", "names"])
def test_typing_shows_what_the_model_expects_and_what_surprised_it(visit, models, name):
    text = "otto" if name == "names" else "the q\nfox"
    page = visit(name)
    score = models[name].score(text)
    write(page, text, len(score.nats))

    shown = bars(page.locator("section"))
    expected = dict(list(models[name].next(text).items())[:5])
    assert {one: p for one, (p, _) in shown.items()} == pytest.approx(expected)
    (p, width), *others = shown.values()
    for other, narrower in others:
        assert narrower / width == pytest.approx(other / p, abs=0.02)
    marks = page.locator(".text span").evaluate_all(
        "marks => marks.map(mark => [Number(mark.dataset.bits), mark.style.background])"
    )
    bits = score.nats / math.log(2)
    assert [one for one, _ in marks] == pytest.approx(bits.tolist(), abs=1e-3)
    strengths = [float(re.search(r"([\d.]+)\)", colour)[1]) for _, colour in marks]
    assert strengths == pytest.approx((bits.clip(0, 8) / 16).tolist(), abs=1e-3)
    assert f"{len(bits)} characters" in page.locator(".sum").last.inner_text()


def test_characters_of_several_bytes_have_the_sum_of_theirs(visit, models):
    page = visit("bytes")
    write(page, "é☃")

    nats = models["bytes"].score("é☃").nats
    marks = page.locator(".text span").evaluate_all("marks => marks.map(m => m.dataset.bits)")
    expected = [nats[:2].sum() / math.log(2), nats[2:].sum() / math.log(2)]
    assert [float(one) for one in marks] == pytest.approx(expected, abs=1e-3)


def test_tab_lets_the_model_continue_and_escape_stops_it(visit):
    page = visit("gpt")
    prompt = page.locator("#prompt")
    write(page, "the ")
    page.fill("#length", "4000")
    prompt.focus()

    page.keyboard.press("Tab")
    lengths = "length => document.querySelector('#prompt').value.length > length"
    page.wait_for_function(lengths, arg=20)
    assert prompt.evaluate("it => it === document.activeElement")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('#stop').disabled")

    stopped = prompt.input_value()
    page.wait_for_timeout(300)
    assert prompt.input_value() == stopped
    assert stopped.startswith("the ")
    assert 20 < len(stopped) < 4004
    page.fill("#length", "7")
    prompt.focus()
    page.keyboard.press("Tab")
    page.wait_for_function(lengths, arg=len(stopped) + 6)
    page.wait_for_function("() => document.querySelector('#stop').disabled")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert len(prompt.input_value()) == len(stopped) + 7
    assert page.evaluate("document.activeElement.id") != "prompt"


def test_two_models_stand_side_by_side(visit, models):
    page = visit("gpt", "ngram")
    page.click("#second")
    write(page, "the q")
    page.fill("#length", "9")
    page.click("#go")

    for section, name in zip(page.locator("section").all(), ("gpt", "ngram"), strict=True):
        section.locator(".take").wait_for()
        expected = dict(list(models[name].next("the q").items())[:5])
        assert {one: p for one, (p, _) in bars(section).items()} == pytest.approx(expected)
        assert len(section.locator(".text i").inner_text()) >= 8
    boxes = [one.bounding_box() for one in page.locator("section").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert page.locator("#prompt").input_value() == "the q"
    second = page.locator("section").last
    written = second.locator(".text i").text_content()
    second.locator(".take").click()
    assert page.locator("#prompt").input_value() == "the q" + written


def test_the_door_opens_with_the_token_only(visit):
    page = visit("ngram", token="secret")
    page.locator("#door").wait_for()
    assert "asks for a token" in page.locator("#note").inner_text()
    assert not page.locator("#prompt").is_visible()
    assert page.evaluate("document.activeElement.id") == "token"

    page.keyboard.type("secre")
    page.keyboard.press("Enter")
    page.get_by_text("That is not the token of this server.").wait_for()
    page.keyboard.type("t")
    page.keyboard.press("Enter")

    page.locator("#prompt").wait_for()
    assert not page.locator("#door").is_visible()
    write(page, "the")


def test_the_keyboard_alone_reaches_everything(visit):
    page = visit("gpt", "ngram")
    page.locator(".bars li").first.wait_for()
    page.keyboard.type("the q")
    page.locator(".text span").nth(4).wait_for()
    page.keyboard.press("Escape")
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName"))  # fmt: skip
    assert reached[:4] == ["go", "temperature", "length", "second"]
    assert reached[4:6] == ["SELECT", "text"]
    page.locator(".text").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert re.fullmatch(r"h: \d+\.\d\d bits", page.locator("section .sum").inner_text())
    page.locator("#temperature").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#shown").inner_text() == "0.85"


def test_a_strange_character_is_told_and_does_no_harm(visit):
    page = visit("gpt")
    write(page, "the ☃")

    assert "1 unknown to it" in page.locator("section .sum").inner_text()
    page.fill("#length", "5")
    page.click("#go")
    page.wait_for_function("() => document.querySelector('#prompt').value.length === 10")
    assert page.locator("#note").inner_text() == ""


def test_a_server_that_is_gone_is_told(visit):
    page = visit("ngram")
    page.locator(".bars li").first.wait_for()
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('Failed')) }")

    page.locator("#prompt").press_sequentially("t")

    page.get_by_text("The server does not answer. Is it still running?").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_can_be_read(visit, width, scheme):
    page = visit("gpt", "ngram", width=width, color_scheme=scheme)
    page.click("#second")
    write(page, "the quick brown zzzzzz " + "w" * 90)
    page.fill("#length", "50")
    page.click("#go")
    page.locator("section .take").last.wait_for()

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(LOW_CONTRAST) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
