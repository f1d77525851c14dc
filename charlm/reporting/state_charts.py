"""Charts of a recurrent model: its gates on a passage, and how far back its gradients reach."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import torch

from charlm.models.looking import Gate
from charlm.reporting import palette
from charlm.reporting.drawing import NARROW, Chart, View, across, chart, data
from charlm.reporting.symbol_charts import quoted

CHANNELS = 24  # of a gate, at most: those that change most
SYMBOLS = 40  # of the passage
LAYERS = 3
CELL = 7  # pixels: the height of a channel
LEFT, RIGHT = 20, 12  # pixels beside a heat map
LEAST = 1e-12  # a length of gradient, where a logarithm ends


def gate_chart(gates: Sequence[Gate], glyphs: Sequence[str], names: Sequence[str]) -> Chart:
    """Return how far each gate is open after each symbol, as heat maps; `names` are of the symbols."""
    layers = 1 + max(gate.layer for gate in gates)
    some = f"the first {LAYERS} of {layers} layers" if layers > LAYERS else "each layer"
    caption = (
        f"How far the gates of {some} are open while the model reads: white is shut, full colour "
        f"open. A row is a channel of the state: the {CHANNELS} that change most, those that are open most "
        "at the top. Read a column to see what the model does with a symbol."
    )
    shown = [gate for gate in gates if gate.layer < LAYERS]

    def draw(width: int) -> View:
        return alt.vconcat(
            *(_heat(gate, glyphs, names, width, gate is shown[-1]) for gate in shown), spacing=14
        )

    return chart("gates", "Gates of the state", caption, draw)


def _heat(
    gate: Gate, glyphs: Sequence[str], names: Sequence[str], width: int, lowest: bool
) -> View:
    opened = gate.opened[: len(glyphs)]
    most = opened.std(dim=0, unbiased=False).topk(min(CHANNELS, opened.shape[1])).indices
    order = most[opened[:, most].mean(dim=0).argsort(descending=True)]
    values = opened[:, order].mul(100).round().int().tolist()
    rows = [
        {"x": t, "y": j, "v": value, "name": names[t]}
        for t, row in enumerate(values)
        for j, value in enumerate(row)
    ]
    channels = "[" + ",".join(map(str, order.tolist())) + "][datum.value]"
    words = "[" + ",".join(quoted(glyph) for glyph in glyphs) + "][datum.value]"
    bottom = alt.Axis(
        title="symbol that was read" if lowest else None,
        labelExpr=words,
        labelAngle=0 if max(map(len, glyphs)) <= 2 else -90,
        labelOverlap=width <= NARROW,
        labelFontSize=10,
        ticks=False,
        domain=False,
    )
    left = alt.Axis(title=None, labels=False, ticks=False, domain=False)
    title = f"{gate.name} gate, layer {gate.layer + 1}"
    heading = alt.TitleParams(title, frame="group", anchor="start")
    base = alt.Chart(data(rows), title=heading).transform_calculate(
        channel=channels.replace("value", "y")
    )
    cells = base.mark_rect(color=palette.HEAT.light).encode(
        x=alt.X("x:O", scale=alt.Scale(padding=0), axis=bottom),
        y=alt.Y("y:O", scale=alt.Scale(padding=0), axis=left),
        opacity=alt.Opacity("v:Q", scale=alt.Scale(domain=[0, 100], range=[0, 1]), legend=None),
        tooltip=[
            alt.Tooltip("name:N", title="symbol"),
            alt.Tooltip("channel:Q"),
            alt.Tooltip("v:Q", title="open, %"),
        ],
    )
    return cells.properties(width=width - LEFT - RIGHT, height=CELL * len(order))


def reach_chart(lengths: torch.Tensor, windows: int, symbol: str) -> Chart:
    """Return how long the gradient is over each distance, (L, T), a line for each layer."""
    caption = (
        f"How strongly the last of some {symbol}s depends on the state before: the length of the gradient "
        f"of its surprisal, in nats, by the state so many {symbol}s earlier, on a logarithmic axis; the mean of "
        f"{windows} windows. Where a line has fallen to a thousandth, what happened that far back can "
        "hardly be learned."
    )
    rows: list[dict[str, Any]] = [
        {"distance": k, "length": max(length, LEAST), "layer": f"layer {layer + 1}"}
        for layer, row in enumerate(lengths.tolist())
        for k, length in enumerate(row, start=1)
    ]
    names = [f"layer {layer + 1}" for layer in range(len(lengths))]
    colours = [palette.of_series(i) for i in range(len(names))]

    def draw(width: int) -> View:
        legend = alt.Legend(title=None, orient="top") if len(names) > 1 else None
        base = alt.Chart(data(rows)).encode(
            x=alt.X(
                "distance:Q",
                scale=alt.Scale(nice=False),
                axis=alt.Axis(title=f"{symbol}s back", tickMinStep=1),
            ),
            y=alt.Y(
                "length:Q",
                scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(title="length of the gradient", tickCount=5, format=".0e"),
            ),
            color=alt.Color("layer:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        )
        tooltip = [
            alt.Tooltip("layer:N"),
            alt.Tooltip("distance:Q", title=f"{symbol}s back"),
            alt.Tooltip("length:Q", format=".3~g"),
        ]
        line = base.mark_line(strokeWidth=2)
        points = base.mark_point(size=60, opacity=0, filled=True).encode(tooltip=tooltip)
        return across(alt.layer(line, points), width, 240)

    return chart("reach", "How far back gradients reach", caption, draw)
