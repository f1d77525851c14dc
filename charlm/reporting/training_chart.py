"""A chart of how the training of a run went: learning rate, gradient norm, speed."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from charlm.reporting import palette
from charlm.reporting.curves import Curves, Series, thinned
from charlm.reporting.drawing import COUNTED, NARROW, Chart, View, chart, data, joined

PANEL = 84  # pixels: the height of each panel of `training_chart`
LEFT = 62  # pixels left of a plot, for its axis and title
RIGHT = 14


def training_chart(curves: Curves, symbols: str, grad_clip: float) -> Chart | None:
    """Return learning rate, gradient norm and speed by steps; None if none of them was recorded."""
    panels: Mapping[str, Series] = {
        "learning rate": curves.learning_rate,
        "gradient norm": curves.grad_norm,
        f"{symbols} / s": curves.speed,
    }
    panels = {name: series for name, series in panels.items() if len(series) > 1}
    if not panels:
        return None
    clipped = f", and the dashed line where it is clipped ({grad_clip:g})" if grad_clip else ""
    caption = (
        "How the training went, step by step. A band spans the lowest and the highest value of the "
        f"steps that a point stands for. The gradient norm is that before clipping{clipped}."
    )
    last = max(series.steps[-1] for series in panels.values())

    def draw(width: int) -> View:
        views = [
            _panel(name, series, float(last), width, i == len(panels) - 1, grad_clip)
            for i, (name, series) in enumerate(panels.items())
        ]
        return joined("vconcat", *views, spacing=16)

    return chart("training", "Learning rate, gradient and speed", caption, draw)


def _panel(
    name: str, series: Series, last: float, width: int, lowest: bool, grad_clip: float
) -> View:
    thin = thinned(series)
    rows = [
        {"steps": float(s), "value": float(m), "low": float(a), "high": float(b)}
        for s, _, m, a, b, _ in zip(*thin, strict=True)
    ]
    y: dict[str, Any] = {
        "scale": alt.Scale(domainMin=0, nice=True),
        "axis": alt.Axis(title=name, tickCount=3, minExtent=36),
    }
    y["axis"].labelExpr = COUNTED
    if name == "gradient norm" and thin.low.min() > 0:
        y["scale"] = alt.Scale(type="log", nice=False)
        y["axis"].values = [n * 10.0**k for k in range(-6, 7) for n in (1, 2, 5)]
    bottom = alt.Axis(
        title="training step" if lowest else None,
        tickCount=4 if width <= NARROW else 7,
        labelExpr=COUNTED,
        labels=lowest,
        ticks=lowest,
    )
    colour = palette.TRAIN.light
    scale = alt.Scale(domain=[0, last], nice=False)
    base = alt.Chart(data(rows)).encode(x=alt.X("steps:Q", scale=scale, axis=bottom))
    tooltip = [
        alt.Tooltip("steps:Q", title="step", format=",.0f"),
        alt.Tooltip("value:Q", title=name, format=".4~g"),
        alt.Tooltip("low:Q", title="lowest", format=".4~g"),
        alt.Tooltip("high:Q", title="highest", format=".4~g"),
    ]
    layers: list[Any] = [
        base.mark_area(opacity=0.22, color=colour).encode(
            y=alt.Y("low:Q", **y), y2=alt.Y2("high:Q")
        ),
        base.mark_line(strokeWidth=1.5, color=colour).encode(y=alt.Y("value:Q", **y)),
        base.mark_point(size=90, opacity=0, filled=True).encode(
            y=alt.Y("value:Q", **y), tooltip=tooltip
        ),
    ]
    if name == "gradient norm" and grad_clip and thin.low.min() < grad_clip < thin.high.max():
        rule = alt.Chart(data([{"value": grad_clip}])).mark_rule(
            strokeDash=[3, 4], color=palette.MUTED.light
        )
        layers.append(rule.encode(y=alt.Y("value:Q", **y)))
    return joined("layer", *layers, width=width - LEFT - RIGHT, height=PANEL)
