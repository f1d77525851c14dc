"""A chart of how far the losses of runs are from that of the first, with intervals."""

from collections.abc import Sequence

import altair as alt

from charlm.reporting import palette
from charlm.reporting.comparing import Compared
from charlm.reporting.drawing import (
    NARROW,
    Chart,
    Row,
    View,
    across,
    chart,
    data,
    joined,
    shortened,
)
from charlm.reporting.glyphs import harmless


def difference_chart(rows: Sequence[Compared]) -> Chart | None:
    """Return how far each run's loss is from that of the first; None if none is comparable."""
    first = harmless(rows[0].run.name)
    others = [row for row in rows if row.difference]
    if not others:
        return None
    sure = (
        "The line is the 95 % interval of the mean difference, character by character: if it does not "
        "reach 0, another passage of this kind would most likely show the same order."
    )
    caption = (
        f"How much more a character costs than with {first}, on the same text in windows of the same "
        f"length. Left of 0 is better. {sure}"
    )
    return chart(
        "differences", f"Compared with {first}", caption, lambda w: _differences(others, first, w)
    )


SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+.3~f')"


def _differences(others: Sequence[Compared], first: str, width: int) -> View:
    rows: list[Row] = []
    for row in others:
        assert row.difference
        interval, nats = row.difference.interval, row.difference.nats
        low, high = (interval.low, interval.high) if interval else (nats, nats)
        told = f"{nats:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if interval else "")
        name = shortened(harmless(row.run.name), 18 if width <= NARROW else 50)
        rows.append({"run": name, "nats": nats, "low": low, "high": high, "told": told})
    names = [row["run"] for row in rows]
    ends = [0.0, *(row[end] for row in rows for end in ("low", "high"))]
    margin = 0.06 * (max(ends) - min(ends) or 1e-3)
    y = alt.Y("run:N", sort=names, axis=None, scale=alt.Scale(paddingInner=0.2, paddingOuter=0.4))
    x = alt.X(
        "low:Q",
        scale=alt.Scale(domain=[min(ends) - margin, max(ends) + margin], nice=False),
        axis=alt.Axis(
            title="difference of the loss (nats)", labelExpr=SIGNED, tickCount=5, grid=True
        ),
    )
    base = alt.Chart(data(rows)).encode(
        y=y, tooltip=[alt.Tooltip("run:N"), alt.Tooltip("told:N", title="nats")]
    )
    colour = palette.SERIES[0].light
    rule = alt.Chart(data([{"low": 0}])).mark_rule(color=palette.MUTED.light, strokeDash=[3, 4])
    layers = (
        rule.encode(x=x),
        base.mark_rule(strokeWidth=3, color=colour, opacity=0.6).encode(x=x, x2=alt.X2("high:Q")),
        base.mark_point(filled=True, size=70, color=colour, opacity=1).encode(x=alt.X("nats:Q")),
        base.mark_text(align="left", baseline="bottom", dy=-9, fontWeight=600).encode(
            x=alt.value(0), text=alt.Text("run:N")
        ),
        base.mark_text(align="right", baseline="bottom", dy=-9, color=palette.MUTED.light).encode(
            x=alt.value(alt.ExprRef(expr="width")), text=alt.Text("told:N")
        ),
    )
    return across(joined("layer", *layers), width, 52 * len(rows))
