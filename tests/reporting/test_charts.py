import functools
import json
import re

import altair as alt
import numpy as np
import pytest

from charlm.evaluation.ladder import Rung
from charlm.evaluation.score import Score
from charlm.reporting.charts import charts_of
from charlm.reporting.curve_charts import Line, Losses, loss_chart
from charlm.reporting.curves import POINTS, Series
from charlm.reporting.drawing import (
    NARROW,
    WIDE,
    Label,
    clock_ticks,
    placed,
    shortened,
)
from charlm.reporting.figures import to_svg, write_figures
from charlm.reporting.opened import open_run, open_runs
from charlm.reporting.palette import TONES
from charlm.runs import RunFolder
from tests.reporting.conftest import KINDS

OF_ANY = {"position", "kinds", "symbols", "bigrams"}


def drawn(*places):
    return {chart.name: chart for chart in charts_of(open_runs(list(places), "cpu"))}


def rows(spec):
    """Return all rows of data of a specification."""
    return [row for values in spec["datasets"].values() for row in values]


def read_lines(path):
    return path.read_text().splitlines()


def views(spec):
    """Yield each part of a specification."""
    yield spec
    for key in ("layer", "hconcat", "vconcat"):
        for part in spec.get(key, []):
            yield from views(part)


@pytest.fixture(scope="module")
def tiny_run(_trained):
    return _trained / "runs" / "tiny"


def test_a_model_with_a_state_shows_its_gates_and_how_far_its_gradients_reach(runs):
    charts = drawn(runs("lstm"))

    heat = charts["gates"].spec
    assert [part["title"]["text"] for part in heat["vconcat"]] == [
        f"{name} gate, layer {layer}" for layer in (1, 2) for name in ("write", "forget", "read")
    ]
    opened = [row["v"] for row in rows(heat)]
    assert len(opened) == 6 * 40 * 8
    assert 0 <= min(opened) < max(opened) <= 100
    reach = rows(charts["reach"].spec)
    assert {row["layer"] for row in reach} == {"layer 1", "layer 2"}
    assert sorted({row["distance"] for row in reach}) == [*range(1, 25)]
    near, far = ([r["length"] for r in reach if r["distance"] == k] for k in (1, 24))
    assert min(near) > max(far)


@pytest.fixture(scope="module")
def of_gpt(tiny_run):
    return drawn(tiny_run)


def test_a_gpt_has_all_charts_of_one_run(of_gpt):
    assert of_gpt.keys() == OF_ANY | {"loss", "loss-time", "training", "embeddings"}


def test_charts_say_what_they_show_in_words(of_gpt):
    for chart in of_gpt.values():
        assert re.fullmatch(r"[A-Z].*[^.]", chart.title), chart.title
        assert re.fullmatch(r"[A-Z].*\.", chart.caption), chart.caption
        for spec in (chart.spec, chart.narrow):
            assert chart.caption in spec["description"]


def test_charts_follow_the_schema_of_vega_lite(of_gpt):
    for name in ("loss", "kinds", "symbols"):  # the others are made of the same parts
        alt.Chart.from_dict(of_gpt[name].narrow, validate=True)


def test_no_colour_is_used_that_has_no_place_on_a_dark_page(of_gpt):
    lights = {tone.light for tone in TONES}
    for chart in of_gpt.values():
        text = json.dumps([chart.spec, chart.narrow])
        assert set(re.findall(r'"(#[0-9a-f]{3,8})"', text)) <= lights


def test_axes_have_titles(of_gpt):
    for chart in of_gpt.values():
        for spec in (chart.spec, chart.narrow):
            named = set()
            for view in views(spec):
                for channel in ("x", "y"):
                    axis = view.get("encoding", {}).get(channel, {}).get("axis")
                    if axis:
                        named.add(axis.get("title"))
            assert named, chart.name


def test_charts_are_as_wide_as_their_page(of_gpt):
    for chart in of_gpt.values():
        for spec, width in ((chart.spec, WIDE), (chart.narrow, NARROW)):
            if "hconcat" not in spec and "vconcat" not in spec:
                assert (spec["width"], spec["autosize"]["type"]) == (width, "fit-x")


def test_the_curve_of_loss_is_that_of_the_log(of_gpt, tiny_run):
    log = [json.loads(line) for line in read_lines(tiny_run / "metrics.jsonl")]
    losses = {
        kind: [(r["step"], float(f"{r['loss_nats']:.5g}")) for r in log if r["kind"] == kind]
        for kind in ("train", "eval")
    }

    shown = {"training": [], "validation": []}
    for row in rows(of_gpt["loss"].spec):
        if "line" in row:
            shown[row["line"]].append((row["steps"], row["nats"]))

    assert shown == {"training": losses["train"], "validation": losses["eval"]}


def test_a_log_of_100_000_steps_stays_small():
    steps = Series(*[np.arange(100_000.0)] * 3)

    for of_steps in (True, False):
        found = Line("training", "#000000", steps, of_steps, 256.0).rows
        assert len(found) <= POINTS
        assert len(json.dumps(found)) < 60_000
        assert max(row["high"] for row in found) == 99_999


@pytest.fixture(scope="module")
def of_kind(runs):
    return functools.cache(lambda name: drawn(runs(name)))


LOGGED = {"loss", "loss-time", "training"}
OF_KINDS = {
    "gpt": OF_ANY | LOGGED | {"embeddings"},
    "bigram": OF_ANY | LOGGED | {"embeddings"},
    "lstm": OF_ANY | LOGGED | {"embeddings", "gates", "reach"},
    "ngram": OF_ANY,
    "context-mixing": OF_ANY,
    "linear": OF_ANY | {"experts", "embeddings"},
    "bitwise": OF_ANY | {"experts", "embeddings"},
    "records": OF_ANY | LOGGED | {"embeddings"},
    "bytes": OF_ANY | LOGGED | {"embeddings"},
    "hostile": OF_ANY | LOGGED | {"embeddings"},
    "rare": OF_ANY,
    "unscored": {"bigrams", "embeddings"} | LOGGED,
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_run_has_the_charts_that_apply(runs, monkeypatch, name):
    monkeypatch.setattr("charlm.reporting.drawing._drawn", lambda *_: {})  # which takes the time

    assert drawn(runs(name)).keys() == OF_KINDS[name]


@pytest.mark.parametrize("name", ["hostile", "bytes", "records"])
def test_no_chart_holds_a_character_that_hides_moves_or_reverses_others(of_kind, name):
    for chart in of_kind(name).values():
        whole = [chart.spec, chart.narrow, chart.caption, chart.title]
        text = json.dumps(whole, ensure_ascii=False)
        assert not re.search("[\x00-\x1f\x7f-\x9f\u200b\u202e\u2028\ufeff\ud800-\udfff]", text)


def test_a_mixture_shows_its_expert_and_where_its_embeddings_come_from(of_kind):
    found = of_kind("linear")

    lines = {row["line"] for row in rows(found["experts"].spec) if "line" in row}
    assert lines == {"gpt"}
    labels = [row["text"] for row in rows(found["experts"].spec) if "text" in row]
    assert any(label.startswith("the mixture\n") for label in labels)
    assert "of the expert gpt" in found["embeddings"].caption


def test_records_and_bytes_are_called_what_they_are(of_kind):
    kinds = {row["name"] for row in rows(of_kind("records")["kinds"].spec) if "kind" in row}
    assert "ends of records" in kinds
    assert "nats per byte" in json.dumps(of_kind("bytes")["loss"].spec)


def test_strange_symbols_stay_text_and_long_alphabets_are_cut(of_kind):
    found = of_kind("hostile")

    glyphs = {row["glyph"] for row in rows(found["embeddings"].spec)}
    assert {"\\x07", "\\x1b", "\\u202e", "\u05e9", "\u25cc\u0301", "<", "&"} <= glyphs
    assert "The 28 most frequent of " in found["bigrams"].caption
    svg = to_svg(found["embeddings"].spec, "embeddings")
    assert "&lt;" in svg
    assert "<script" not in svg


def test_several_runs_share_their_charts(charlm, trained):
    charlm("train", "--config", "tiny.yaml", "--out", "runs/other", "run.seed=5", "-q")

    found = drawn(trained, trained.with_name("other"))

    together = {"loss", "loss-characters", "loss-time", "differences", "embeddings"}
    assert found.keys() == OF_ANY | together
    lines = {row["line"] for row in rows(found["loss"].spec) if "line" in row}
    assert lines == {"tiny", "other"}
    assert [row["run"] for row in rows(found["differences"].spec) if "run" in row] == ["other"]


def test_figures_are_the_same_when_made_twice(of_gpt, tmp_path):
    charts = [of_gpt[name] for name in ("loss", "kinds")]

    first = [*write_figures(charts, tmp_path / "a")]
    second = [*write_figures(charts[::-1], tmp_path / "b")]

    assert {path.name for path in first} == {
        f"{name}{end}" for name in ("loss", "kinds") for end in (".svg", ".png")
    }
    for path in first:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert (tmp_path / "a" / "loss.png").read_bytes().startswith(b"\x89PNG")
    ids = re.findall(r'id="(clip[^"]*|[^"]*clip[^"]*)"', (tmp_path / "a" / "loss.svg").read_text())
    assert all(name.startswith("loss-") for name in ids)
    assert second


def test_labels_are_apart_and_keep_their_order():
    labels = [
        Label(name, value, "#000000") for name, value in (("c", 1.02), ("a", 1.0), ("b", 1.01))
    ]

    found = placed(labels, 0.0, 4.0, 100, least=14)

    assert [row["text"] for row in found] == ["a", "b", "c"]
    places = [row["at"] for row in found]
    assert places[0] == 1.0
    assert places[1] == pytest.approx(1.0 + 14 * 0.04)
    assert places[2] == pytest.approx(1.0 + 28 * 0.04)


def test_labels_at_the_top_are_pushed_down():
    labels = [Label(name, 3.99, "#000000") for name in "ab"]

    found = placed(labels, 0.0, 4.0, 100, least=14)

    assert [row["at"] for row in found] == pytest.approx([4.0 - 14 * 0.04, 4.0])


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("abc", 3, "abc"), ("abcdefg", 5, "ab…fg"), ("abcdef", 4, "ab…f")],
)
def test_long_names_lose_their_middle(text, most, expected):
    assert shortened(text, most) == expected


def test_times_are_round_and_equally_far_apart():
    assert clock_ticks(23, 5) == [0, 5, 10, 15, 20]
    assert clock_ticks(717, 7) == [0, 120, 240, 360, 480, 600]
    assert clock_ticks(0.35, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    for last in (1e-3, 3.7, 59, 61, 5000, 1e6, 1e8):
        assert len(clock_ticks(last, 5)) <= 6


def test_a_run_without_a_log_still_has_the_other_charts(trained):
    (trained / "metrics.jsonl").unlink()

    found = {chart.name for chart in charts_of([open_run(RunFolder(trained), "cpu")])}

    assert found == OF_ANY | {"embeddings"}


def line(values, *, of_steps=True, name="training"):
    steps = np.arange(1.0, len(values) + 1)
    return Line(name, "#000000", Series(steps, steps, np.array(values, float)), of_steps, 64.0)


def rung(name, nats):
    return Rung(name, Score(100, nats), 0.0)


FALLING = [4.0, 3.5, 2.9, 2.5, *np.linspace(2.3, 1.5, 196)]
RUNGS = [rung("uniform", 4.2), rung("unigram", 3.3), rung("bigram", 2.4), rung("5-gram", 1.4)]


def test_the_steep_fall_of_the_first_steps_is_cut_off_and_said_to_be():
    losses = Losses([line(FALLING)], RUNGS, "characters")

    low, high = losses.bounds()

    assert low < 1.4 < 2.4 < high < 3.3  # what is reached, and the next baseline above it
    assert losses.cut_off() == (
        " Above the top: the first steps and the baselines uniform (4.20 nats), unigram (3.30 nats)."
    )


def test_a_curve_that_hardly_falls_is_shown_whole():
    losses = Losses([line(np.linspace(4.1, 2.0, 100))], RUNGS, "characters")

    low, high = losses.bounds()

    assert low < 2.0 < 4.2 < high
    assert losses.cut_off() == ""


def test_evaluations_above_the_chart_begin_no_line_in_it(of_gpt):
    evaluated = line([4.0, 1.8, 1.6], of_steps=False, name="validation")
    losses = Losses([line(FALLING), evaluated], RUNGS, "characters")

    drawn = loss_chart(losses, "steps", "loss", "Loss", "Losses.")

    shown = [row["nats"] for row in rows(drawn.spec) if row.get("line") == "validation"]
    assert shown == [1.8, 1.6]


def test_names_of_baselines_are_where_no_curve_is():
    drawn = loss_chart(
        Losses([line(FALLING)], RUNGS, "characters"), "steps", "loss", "Loss", "Its."
    )

    sides = {}
    for view in views(drawn.spec):
        mark = view.get("mark")
        if mark and mark["type"] == "text":
            for row in drawn.spec["datasets"][view["data"]["name"]]:
                sides[row["text"]] = mark["align"]

    # The curve is below the bigram's line for most of its way, and above the 5-gram's for all of it.
    assert sides["bigram 2.40"] == "right"
    assert sides["5-gram 1.40"] == "left"
