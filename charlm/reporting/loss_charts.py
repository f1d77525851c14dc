"""Charts of what the loss is made of: by place in the window, by kind of character, by symbol."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from charlm.reporting import palette
from charlm.reporting.breakdown import Group, Places
from charlm.reporting.drawing import (
    NARROW,
    Chart,
    Label,
    Row,
    View,
    across,
    chart,
    data,
    halo_text,
    joined,
    placed,
    shortened,
)

LN2 = math.log(2)
ROOM = 74  # pixels right of the lines, for their labels
ROW = 34  # pixels: a row of a chart with bars


class PlaceCurve(NamedTuple):
    """The loss of a run by place in the window."""

    name: str
    places: Places
    colour: str


def place_chart(curves: Sequence[PlaceCurve], symbols: str) -> Chart:
    """Return the loss by place in the window: how much a longer context helps."""
    caption = (
        f"How the loss falls with context: each character's loss by how many {symbols} the model has "
        "read before it in its window. A band is the 95 % interval of the mean. Where the curve is flat, "
        "more context does not help this model."
    )
    return chart(
        "position", "Loss by position", caption, lambda width: _places(curves, symbols, width)
    )


def _places(curves: Sequence[PlaceCurve], symbols: str, width: int) -> View:
    rows: list[Row] = [
        {
            "line": curve.name,
            "at": math.sqrt(int(first) * int(last)),
            "places": f"{first:,}" if first == last else f"{first:,} to {last:,}",
            "nats": float(nats),
            "bits": float(nats / LN2),
            "low": float(low),
            "high": float(high),
            "count": int(count),
        }
        for curve in curves
        for first, last, nats, low, high, count in zip(*curve.places, strict=True)
    ]
    height = 240 if width <= NARROW else 280
    farthest = max(int(curve.places.last[-1]) for curve in curves)
    low = min(row["nats"] for row in rows)
    high = max(row["nats"] for row in rows)
    low, high = max(0.0, low - 0.1 * (high - low or 1)), high + 0.05 * (high - low or 1)
    many = len(curves) > 1
    x = alt.X(
        "at:Q",
        scale=alt.Scale(
            type="log",
            domain=[1, max(2, farthest)],
            range=[0, alt.ExprRef(expr=f"width - {ROOM if many else 8}")],
            nice=False,
        ),
        axis=alt.Axis(
            title=f"{symbols} of context in the window",
            values=[2**k for k in range(farthest.bit_length())],
            format=",",
            labelOverlap=True,
        ),
    )
    options: dict[str, Any] = {
        "scale": alt.Scale(domain=[low, high], nice=False),
        "axis": alt.Axis(title=f"loss (nats per {symbols[:-1]})", tickCount=5),
    }
    y = alt.Y("nats:Q", **options)
    colour = alt.Color(
        "line:N",
        scale=alt.Scale(
            domain=[curve.name for curve in curves], range=[curve.colour for curve in curves]
        ),
        legend=None,
    )
    base = alt.Chart(data(rows)).encode(x=x, color=colour)
    tooltip = [
        alt.Tooltip("line:N", title="run"),
        alt.Tooltip("places:N", title="position"),
        alt.Tooltip("nats:Q", format=".4f"),
        alt.Tooltip("bits:Q", format=".4f"),
        alt.Tooltip("count:Q", title=symbols, format=","),
    ]
    layers: list[Any] = [
        base.mark_area(opacity=0.2, clip=True).encode(
            y=alt.Y("low:Q", **options), y2=alt.Y2("high:Q")
        ),
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_point(size=90, opacity=0, filled=True).encode(y=y, tooltip=tooltip),
    ]
    if many:
        ends = [Label(c.name, float(c.places.nats[-1]), c.colour) for c in curves]
        ends = [end._replace(text=f"{shortened(end.text, 11)}\n{end.value:.3f}") for end in ends]
        at_end = alt.value(alt.ExprRef(expr=f"width - {ROOM}"))
        layers += halo_text(placed(ends, low, high, height, least=28), at_end)
    return across(joined("layer", *layers), width, height)


def kind_chart(groups: Sequence[Group], symbols: str) -> Chart:
    """Return the loss of each kind of character, and the share of each in the text and in the loss."""
    costly = max(groups, key=lambda group: group.share)
    caption = (
        f"Which {symbols} are hard to predict. Left: the mean loss of each kind, with how many of them "
        f"were predicted. Right: their share of the text and of the whole loss; {costly.name} make up "
        f"{costly.share:.0%} of it."
    )
    return chart("kinds", "Loss by kind of character", caption, lambda width: _kinds(groups, width))


def _kinds(groups: Sequence[Group], width: int) -> View:
    total = sum(group.chars for group in groups)
    rows: list[Row] = [
        {
            "kind": f"{group.name}\n{group.chars:,}",
            "name": group.name,
            "nats": group.nats,
            "bits": group.nats / LN2,
            "count": group.chars,
            "text": 100 * group.chars / total,
            "loss": 100 * group.share,
        }
        for group in groups
    ]
    order = [row["kind"] for row in rows]
    left = 8 + max(4.9 * len(part) for kind in order for part in kind.split("\n"))
    inner = (width - left - 36) / 2
    ticks = 3 if width <= NARROW else 6
    step = {"step": ROW}
    y = alt.Y(
        "kind:N",
        sort=order,
        scale=alt.Scale(paddingInner=0.3),
        axis=alt.Axis(
            title=None, ticks=False, labelExpr="split(datum.label, '\\n')", labelLineHeight=13
        ),
    )
    tooltip = [
        alt.Tooltip("name:N", title="kind"),
        alt.Tooltip("nats:Q", format=".4f"),
        alt.Tooltip("bits:Q", format=".4f"),
        alt.Tooltip("count:Q", title="predicted", format=","),
        alt.Tooltip("text:Q", title="% of the text", format=".1f"),
        alt.Tooltip("loss:Q", title="% of the loss", format=".1f"),
    ]
    highest = max(group.nats for group in groups)
    base = alt.Chart(data(rows)).encode(y=y, tooltip=tooltip)
    x = alt.X(
        "nats:Q",
        scale=alt.Scale(domain=[0, highest * 1.28], nice=False),
        axis=alt.Axis(title="mean loss (nats)", tickCount=ticks),
    )
    bars = base.mark_bar(color=palette.SERIES[0].light, size=15).encode(x=x)
    numbers = base.mark_text(align="left", dx=4).encode(x=x, text=alt.Text("nats:Q", format=".2f"))
    means = joined("layer", bars, numbers, width=inner, height=step)
    most = max(max(row["text"], row["loss"]) for row in rows)
    hidden = alt.Y("kind:N", sort=order, scale=alt.Scale(paddingInner=0.3), axis=None)
    share = alt.Chart(data(rows)).encode(y=hidden, tooltip=tooltip)
    scale = alt.Scale(domain=[0, most * 1.02], nice=False)
    shares = joined(
        "layer",
        share.mark_bar(size=6, yOffset=-5, color=palette.MUTED.light).encode(
            x=alt.X("text:Q", scale=scale, axis=alt.Axis(title="share (%)", tickCount=ticks))
        ),
        share.mark_bar(size=8, yOffset=4, color=palette.SERIES[1].light).encode(
            x=alt.X("loss:Q", scale=scale)
        ),
        *(
            share.transform_window(row="row_number()")
            .transform_filter("datum.row == 1")
            .mark_text(align="left", baseline="bottom", dy=-17, fontWeight=600, color=tone.light)
            .encode(x=alt.value(place), text=alt.value(word))
            for word, tone, place in (
                ("of text", palette.MUTED, 0),
                ("of loss", palette.SERIES[1], 52),
            )
        ),
        width=inner,
        height=step,
    )
    return joined("hconcat", means, shares, spacing=14)


UNIGRAM = "with no context"


def symbol_chart(found: Sequence[Row], left_out: int) -> Chart:
    """Return the loss of single symbols by how often they occur.

    `found` has a row for each symbol: glyph, name, class, count, share, nats, and the nats that it would
    cost without context.
    """
    rest = (
        f" The {len(found):,} most frequent are shown; {left_out:,} others are left out."
        if left_out
        else ""
    )
    caption = (
        "How hard each symbol is to predict, by how often it was predicted. The dashed line is what a "
        "symbol so frequent costs if nothing is known about its context; far below it, context helps much."
        f"{rest}"
    )
    return chart("symbols", "Loss by symbol", caption, lambda width: _symbols(found, width))


def classes_of(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the classes of symbols in a chart, and a colour for each."""
    names = [name for name in CLASSES if any(row["class"] == name for row in rows)]
    return names, [CLASSES[name].light for name in names]


CLASSES = {
    "small letters": palette.SERIES[0],
    "capitals": palette.SERIES[1],
    "other letters": palette.SERIES[4],
    "digits": palette.SERIES[2],
    "punctuation and signs": palette.SERIES[3],
    "spaces and others": palette.SERIES[5],
}


def letters(
    rows: Sequence[Row], x: alt.X, y: alt.Y, tooltip: list[alt.Tooltip], width: int
) -> View:
    """Return symbols as marks, in the colours of their classes."""
    names, colours = classes_of(rows)
    sized = [row | {"size": 13 if len(row["glyph"]) <= 2 else 9} for row in rows]
    text = alt.Chart(data(sized)).mark_text(fontWeight=600)
    legend, columns = None, 2 if width <= NARROW else 6
    if len(names) > 1:
        legend = alt.Legend(
            symbolType="circle", symbolStrokeWidth=0, symbolSize=60, columns=columns
        )
    return text.encode(
        x=x,
        y=y,
        text=alt.Text("glyph:N"),
        size=alt.Size("size:Q", scale=None, legend=None),
        tooltip=tooltip,
        color=alt.Color(
            "class:N",
            scale=alt.Scale(domain=names, range=colours),
            legend=legend if names[1:] else None,
        ),
    )


def _symbols(found: Sequence[Row], width: int) -> View:
    narrow = width <= NARROW
    most, least = max(row["count"] for row in found), min(row["count"] for row in found)
    x = alt.X(
        "count:Q",
        scale=alt.Scale(type="log", domain=[least / 1.25, most * 1.3], nice=False),
        axis=alt.Axis(title="times predicted", format="~s", tickCount=4 if narrow else 8),
    )
    high = max(max(row["nats"] for row in found), max(row["alone"] for row in found))
    y = alt.Y(
        "nats:Q",
        scale=alt.Scale(domain=[0, high * 1.06], nice=False),
        axis=alt.Axis(title="mean loss (nats)", tickCount=6),
    )
    ordered = sorted(found, key=lambda row: row["count"])
    line = alt.Chart(data([{"count": r["count"], "nats": r["alone"]} for r in ordered])).mark_line(
        strokeDash=[3, 4], color=palette.MUTED.light
    )
    first = ordered[len(ordered) // 2]
    name = alt.Chart(data([{"count": first["count"], "nats": first["alone"]}])).mark_text(
        align="left", baseline="bottom", dx=4, dy=-2, color=palette.MUTED.light, text=UNIGRAM
    )
    tooltip = [
        alt.Tooltip("name:N", title="symbol"),
        alt.Tooltip("nats:Q", format=".4f"),
        alt.Tooltip("bits:Q", format=".4f"),
        alt.Tooltip("count:Q", title="predicted", format=","),
        alt.Tooltip("loss:Q", title="% of the loss", format=".1f"),
        alt.Tooltip("alone:Q", title=f"nats {UNIGRAM}", format=".4f"),
    ]
    layers = (line.encode(x=x, y=y), name.encode(x=x, y=y), letters(found, x, y, tooltip, width))
    return across(joined("layer", *layers), width, 320 if narrow else 400)
