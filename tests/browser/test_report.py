"""The page of `charlm report`, in a browser."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import charlm as package
from charlm.cli.main import run as command_line
from charlm.reporting.charts import charts_of
from charlm.reporting.glyphs import Glyphs
from charlm.reporting.passage import passage_of
from tests.browser.conftest import WIDTHS

pytestmark = pytest.mark.slow

SHOWN = ("gpt", "linear", "ngram", "records", "bytes", "hostile", "rare")
# Of each text in a page, where its contrast with what is behind it is too low.
LOW_CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


def per_char(runs, name):
    """Return what `charlm eval --per-char` says."""
    out = Path("each.jsonl")
    command = ["eval", str(runs(name)), "--per-char", str(out), "--device", "cpu"]
    assert command_line(command) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SHOWN)
def test_a_page_fits_and_can_be_read(visit, name, width, scheme):
    page = visit(name, width=width, color_scheme=scheme)

    for figure in page.locator("figure.chart").all():
        figure.scroll_into_view_if_needed()
    page.locator("summary").first.click()
    page.locator("#map").focus()
    sizes = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert sizes[0] <= sizes[1] == width
    assert page.evaluate(LOW_CONTRAST) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


@pytest.mark.parametrize("name", SHOWN)
def test_every_chart_is_there_with_and_without_scripts(visit, opened, name):
    still = visit(name, java_script_enabled=False)
    phone = visit(name, width=375)
    live = visit(name)

    names = [chart.name for chart in charts_of([opened(name)])]
    shown = [one.get_attribute("id") for one in still.locator("figure.chart").all()]
    assert shown == [f"chart-{one}" for one in names]
    for one in names:
        figure = f"#chart-{one}"
        assert still.locator(f"{figure} .wide svg").bounding_box()["width"] > 500
        assert still.locator(f"{figure} .narrow svg").is_hidden()
        assert phone.locator(f"{figure} .wide svg").is_hidden()
        box = phone.locator(f"{figure} .narrow svg").bounding_box()
        assert box["height"] > 40
        assert box["x"] + box["width"] <= 375
        live.locator(figure).scroll_into_view_if_needed()
        live.wait_for_selector(f"{figure} .wide[data-live=true] svg", timeout=10_000)
        assert live.locator(f"{figure} .wide svg").bounding_box()["width"] > 500


# Of each word in a chart that is in sight, how far it is beyond the page.
BEYOND = """() => [...document.querySelectorAll(".plot svg text")]
    .filter((text) => text.checkVisibility() && text.textContent.trim())
    .map((text) => [text.textContent, text.getBoundingClientRect()])
    .filter(([_, box]) => box.left < 0 || box.right > innerWidth)
    .map(([word, box]) => `${word}: ${box.left} to ${box.right}`)"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["gpt", "ngram", "hostile"])
def test_no_word_of_a_chart_is_cut_off(visit, name, width):
    page = visit(name, width=width, java_script_enabled=False)

    assert page.evaluate(BEYOND) == []


def test_a_chart_answers_the_pointer(visit):
    page = visit("gpt")
    figure = page.locator("#chart-kinds")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("#chart-kinds .wide[data-live=true] svg")

    figure.locator(".wide .mark-rect path").first.hover()

    tip = page.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    assert len(tip.inner_text()) > 3


@pytest.mark.parametrize("name", ["gpt", "linear", "ngram", "bytes", "records"])
def test_hover_shows_the_bits_of_eval(visit, runs, name):
    page, rows = visit(name), per_char(runs, name)
    cells, detail = page.locator("#map .c"), page.locator("#map-detail")

    for i in (1, 2, 7, 16, 17, 40, 99):
        cells.nth(i).hover()

        row = rows[i - 1]
        assert detail.locator(".bits").inner_text().startswith(f"{row['bits']:.2f} bits")
        shares = detail.locator(".share").all_inner_texts()
        assert len(shares) == len(row["likeliest"]) == 5
        for share, (_, p) in zip(shares, row["likeliest"], strict=True):
            number = re.search(r"[\d.]+", share)
            assert float(number[0]) / 100 == pytest.approx(p, abs=0.0055)


@pytest.mark.parametrize("name", ["gpt", "records", "hostile"])
def test_keys_walk_through_the_map(visit, runs, opened, name):
    page, rows, run = visit(name), per_char(runs, name), opened(name)
    names = [one for _, _, one in passage_of(run, 400).symbols(Glyphs(run.tokenizer))]
    box, detail = page.locator("#map"), page.locator("#map-detail")

    def chosen():
        cell = page.locator(f"#{box.get_attribute('aria-activedescendant')}")
        assert cell.get_attribute("aria-selected") == "true"
        assert page.locator("#map .at").count() == 1
        return int(cell.get_attribute("id").removeprefix("map-")), cell.get_attribute("aria-label")

    box.focus()
    assert chosen()[0] == 1
    for i in range(2, 40):
        left = page.evaluate(
            "document.querySelector('#map .at').closest('.line').matches(':dir(rtl)')"
        )
        page.keyboard.press("ArrowLeft" if left else "ArrowRight")

        assert chosen() == (i, f"{names[i]}, {rows[i - 1]['bits']:.2f} bits")
        assert detail.locator(".bits").inner_text().startswith(f"{rows[i - 1]['bits']:.2f} bits")
    page.keyboard.press("Home")
    first = chosen()[0]
    page.keyboard.press("End")
    assert chosen()[0] >= 39 >= first
    page.keyboard.press("ArrowDown")
    below = page.locator("#map .at").bounding_box()
    page.keyboard.press("ArrowUp")
    above = page.locator("#map .at").bounding_box()
    assert above["y"] < below["y"]


def test_another_expert_shows_its_own_bits(visit, runs):
    page = visit("linear")
    data = json.loads(page.locator("#data").text_content())["map"]

    page.get_by_label("counts").check()

    model = data["models"][2]
    assert model["name"] == "counts"
    for i in (1, 30, 77):
        cell = page.locator("#map .c").nth(i)
        cell.hover()
        bits = model["bits"][i - 1]
        assert page.locator("#map-detail .bits").inner_text().startswith(f"{bits:.2f} bits")
        level = sum(bits >= step for step in data["steps"])
        assert f"b{level}" in cell.get_attribute("class").split()
        assert cell.get_attribute("aria-label").endswith(f", {bits:.2f} bits")


def test_a_head_shows_what_it_looks_at(visit, runs, opened):
    page, run = visit("gpt"), opened("gpt")
    ids = passage_of(run, 400).ids.ids[:16]
    weights = package.load(runs("gpt"), device="cpu").attention(run.tokenizer.decode(ids))

    def shares(tile):
        return [
            float(one) ** 2
            for one in tile.locator(".mini > span").evaluate_all(
                "cells => cells.map(cell => cell.style.getPropertyValue('--w'))"
            )
        ]

    page.locator("#read-0").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    for tile in page.locator(".head").all():
        layer, head = (int(tile.get_attribute(f"data-{key}")) for key in ("layer", "head"))
        np.testing.assert_allclose(shares(tile), weights[layer, head, 13], atol=1 / 255)

    page.locator("#read-0 .c").nth(5).click()
    tile = page.locator(".head").nth(3)
    tile.locator("summary").click()
    np.testing.assert_allclose(shares(tile), weights[1, 1, 5], atol=1 / 255)
    tile.locator(".large .share").nth(4).wait_for()  # it is filled after it was opened
    listed = tile.locator(".large .share").all_inner_texts()
    best = sorted(weights[1, 1, 5], reverse=True)[:5]
    for share, weight in zip(listed, best, strict=True):
        assert float(re.search(r"[\d.]+", share)[0]) / 100 == pytest.approx(weight, abs=0.01)
    box = tile.bounding_box()
    assert box["width"] > 1.5 * page.locator(".head").nth(0).bounding_box()["width"]


@pytest.mark.parametrize("name", SHOWN)
def test_without_scripts_all_text_is_there(visit, name):
    page = visit(name, java_script_enabled=False)

    assert page.locator("#map .c").first.is_visible()
    assert "bits; likeliest" in page.locator("#map .c").nth(3).get_attribute("title")
    assert page.locator("#map-detail").is_hidden()
    for head in page.locator(".head img").all():
        assert head.evaluate("image => image.complete && image.naturalWidth > 1")
    for id in page.locator("section").evaluate_all("all => all.map(one => one.id)"):
        assert page.locator(f"#{id} h2").is_visible()


def test_the_page_can_be_used_by_keyboard_alone(visit):
    page = visit("gpt")
    reached = []

    while "BODY" not in reached[-1:]:
        assert len(reached) < 100
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.id || document.activeElement.tagName,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(name)
        assert outline != "none" or name == "BODY", f"the focus on {name} can be seen"
    assert reached[0] == "A"
    assert {"map", "read-0", "SUMMARY"} <= set(reached)


def test_what_is_printed_has_no_controls(visit, tmp_path):
    page = visit("linear", color_scheme="dark")

    page.emulate_media(media="print")

    assert page.locator("nav").is_hidden()
    assert page.locator("fieldset").is_hidden()
    assert page.locator("#map-detail").is_hidden()
    assert page.locator(".keys").first.is_hidden()
    assert page.locator("#map .c").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 10_000


def test_a_hostile_text_runs_nothing(visit):
    page = visit("hostile")

    assert page.evaluate("document.scripts.length") <= 4
    assert "<script>alert(1)</script>" in page.locator("#map").inner_text().replace("␣", " ")
    page.locator("#map").focus()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    assert page.locator("#map-detail script, #map-detail img").count() == 0
