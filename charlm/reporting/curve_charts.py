"""Charts of the log of a run: loss against the baselines, and how the training went."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import altair as alt

from charlm.evaluation.ladder import Rung
from charlm.reporting import palette
from charlm.reporting.curves import Series, extremes, thinned
from charlm.reporting.drawing import (
    CLOCK,
    COUNTED,
    NARROW,
    Chart,
    Label,
    Row,
    View,
    across,
    chart,
    clock_ticks,
    data,
    halo_text,
    joined,
    placed,
    shortened,
)

Axis = Literal["steps", "characters", "seconds"]

ROOM = 74  # pixels right of the lines, for their labels
HEIGHT = {True: 260, False: 340}  # of the loss, by whether the chart is narrow
LN2 = 0.6931471805599453
POINTS_SHOWN = 40  # evaluations; more are a line without points
NEAR = 0.8  # share of the width beyond which a curve has its name at the right
SETTLED = 0.03  # share of the steps after which a curve should be inside its chart
MOSTLY = 1.35  # times the height of a chart: if more would be needed, its top is cut off
CLOSE = 0.15  # share of a loss: baselines so far below it are shown


@dataclass(frozen=True)
class Line:
    """A curve of loss: of single steps as a mean and a band, of evaluations as it is."""

    name: str
    colour: str
    series: Series
    of_steps: bool
    chars_a_step: float | None

    @cached_property
    def rows(self) -> list[Row]:
        """Its points."""
        if self.of_steps:
            thin = thinned(self.series)
            points: Any = zip(*thin, strict=True)
        else:
            few = extremes(self.series)
            points = (
                (s, t, v, v, v, 1)
                for s, t, v in zip(few.steps, few.seconds, few.values, strict=True)
            )
        return [
            {
                "line": self.name,
                "steps": float(step),
                "characters": float(step * (self.chars_a_step or 0)),
                "seconds": float(seconds),
                "nats": float(mean),
                "bits": float(mean / LN2),
                "low": float(low),
                "high": float(high),
                "of": int(count),
            }
            for step, seconds, mean, low, high, count in points
        ]


@dataclass(frozen=True)
class Losses:
    """All curves of loss that belong into one chart, and the baselines beside them."""

    lines: Sequence[Line]
    rungs: Sequence[Rung]
    symbols: str  # of the text: `characters` or `bytes`
    finals: Sequence[Label] = ()  # losses that were reached in one step

    @property
    def has_bands(self) -> bool:
        """Whether a point of a curve may stand for several steps."""
        return any(line.of_steps for line in self.lines)

    def ends(self, axis: Axis) -> list[Label]:
        """Return the labels of the curves, with their last values and where they end."""
        rows = [line.rows[-1] for line in self.lines]
        last = max(row[axis] for row in rows)
        named = [
            Label(line.name, row["nats"], line.colour, row[axis])
            for line, row in zip(self.lines, rows, strict=True)
        ]
        return [*named, *(label._replace(end=last) for label in self.finals)]

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest loss to show, in nats.

        The steep fall in the first steps is cut off at the top, if it would take up most of the chart.
        """
        last = max(line.series.steps[-1] for line in self.lines)
        rows = [row for line in self.lines for row in line.rows]
        settled = [row["high"] for row in rows if row["steps"] >= SETTLED * last]
        finals = [label.value for label in self.finals]
        low = min([*(row["low"] for row in rows), *finals])
        low = min([low, *(nats for nats in self.baselines() if nats > low - CLOSE * abs(low))])
        high, top = max(settled + finals), max([*(row["high"] for row in rows), *self.baselines()])
        high = high if top - low > MOSTLY * (high - low) else top
        # The next baseline above says how far the curves have come.
        above = [nats for nats in self.baselines() if nats > high]
        if above and min(above) - low < MOSTLY * (high - low):
            high = min(above)
        room = (high - low) or 1.0  # for the label of a baseline below and above
        return max(0.0, low - 0.05 * room), high + 0.07 * room

    def baselines(self) -> list[float]:
        """Return the losses of the baselines, in nats."""
        return [rung.score.loss_nats for rung in self.rungs]

    def cut_off(self) -> str:
        """Say what is above the chart; empty if nothing is."""
        _, high = self.bounds()
        above = [rung for rung in self.rungs if rung.score.loss_nats > high]
        named = ", ".join(f"{rung.name} ({rung.score.loss_nats:.2f} nats)" for rung in above)
        some = f"the baseline{'s' * (len(above) > 1)} {named}" if above else ""
        steps = any(row["nats"] > high for line in self.lines for row in line.rows)
        told = " and ".join(filter(None, ("the first steps" * steps, some)))
        return f" Above the top: {told}." if told else ""


def loss_chart(losses: Losses, axis: Axis, name: str, title: str, caption: str) -> Chart:
    """Return a chart of loss by steps, by characters read, or by wall time."""
    told = caption + losses.cut_off()
    return chart(name, title, told, lambda width: _loss(losses, axis, width))


def _loss(losses: Losses, axis: Axis, width: int) -> View:
    narrow = width <= NARROW
    height = HEIGHT[narrow]
    low, high = losses.bounds()
    options: dict[str, Any] = {
        "scale": alt.Scale(domain=[low, high], nice=False, zero=False),
        "axis": alt.Axis(title=f"loss (nats per {losses.symbols[:-1]})", tickCount=6, grid=False),
    }
    y = alt.Y("nats:Q", **options)
    rows = [row for line in losses.lines for row in _shown(line, high)]
    last = max(row[axis] for row in rows)
    names = [line.name for line in losses.lines]
    colour = alt.Color(
        "line:N",
        scale=alt.Scale(domain=names, range=[line.colour for line in losses.lines]),
        legend=None,
    )
    x = _x(axis, last, losses.symbols, narrow)
    base = alt.Chart(data(rows)).encode(x=x, color=colour)

    def of(lines: Sequence[Line]) -> View:
        chosen = [line.name for line in lines]
        return base.transform_filter(alt.FieldOneOfPredicate(field="line", oneOf=chosen))

    of_steps = [line for line in losses.lines if line.of_steps]
    evaluated = [line for line in losses.lines if not line.of_steps]
    layers: list[Any] = _rungs(losses, axis, last, width, height, options)
    if of_steps:
        band = of(of_steps).mark_area(opacity=0.22, clip=True)
        layers.append(band.encode(y=alt.Y("low:Q", **options), y2=alt.Y2("high:Q")))
        layers.append(of(of_steps).mark_line(strokeWidth=1.2, clip=True).encode(y=y))
    if evaluated:
        # What happened between the first weights and the first evaluation is not a straight line.
        begun = of(evaluated).transform_filter(alt.FieldGTPredicate(field="steps", gt=0))
        layers.append(begun.mark_line(strokeWidth=2.2, clip=True).encode(y=y))
        if max(len(line.series) for line in evaluated) <= POINTS_SHOWN:
            layers.append(of(evaluated).mark_point(filled=True, size=26, opacity=1).encode(y=y))
    points = base.transform_filter(alt.FieldLTEPredicate(field="nats", lte=high))
    layers.append(
        points.mark_point(size=90, opacity=0, filled=True).encode(y=y, tooltip=_tooltip(losses))
    )
    layers += _ends(losses.ends(axis), x, low, high, height)
    view = joined("layer", *layers)
    if axis == "steps" and (top := _characters(losses, last, narrow)):
        view = joined("layer", view, top, resolve={"scale": {"x": "independent"}})
    return across(view, width, height)


def _shown(line: Line, high: float) -> list[Row]:
    """Return the points of a line; of evaluations, not those above the chart that come first.

    A line from there to the next evaluation would not be what happened in between.
    """
    rows = line.rows
    while not line.of_steps and len(rows) > 1 and rows[0]["nats"] > high:
        rows = rows[1:]
    return rows


def _x(axis: Axis, last: float, symbols: str, narrow: bool, top: bool = False) -> alt.X:
    end: Any = alt.ExprRef(expr=f"width - {ROOM}")
    scale = alt.Scale(domain=[0, last], range=[0, end], nice=False)
    titles = {"steps": "training step", "characters": f"{symbols} read", "seconds": "wall time"}
    options: dict[str, Any] = {"title": titles[axis], "labelExpr": COUNTED, "labelOverlap": True}
    options["tickCount"] = 4 if narrow else 7
    if axis == "seconds":
        options |= {"values": clock_ticks(last, 4 if narrow else 7), "labelExpr": CLOCK}
    if top:
        options |= {"orient": "top"}
    return alt.X(f"{axis}:Q", scale=scale, axis=alt.Axis(**options))


def _characters(losses: Losses, last: float, narrow: bool) -> View:
    """Return an axis above the plot with the characters read, if they are the same for all lines."""
    per_step = losses.lines[0].chars_a_step
    if per_step is None or any(line.chars_a_step != per_step for line in losses.lines):
        return None
    point = alt.Chart(data([{"characters": last * per_step}])).mark_point(opacity=0, size=1)
    return point.encode(x=_x("characters", last * per_step, losses.symbols, narrow, top=True))


def _tooltip(losses: Losses) -> list[alt.Tooltip]:
    shown = [
        alt.Tooltip("line:N", title="curve"),
        alt.Tooltip("steps:Q", title="step", format=",.0f"),
        alt.Tooltip("nats:Q", title="nats", format=".4f"),
        alt.Tooltip("bits:Q", title="bits", format=".4f"),
    ]
    if losses.has_bands:
        shown += [
            alt.Tooltip("low:Q", title="lowest", format=".4f"),
            alt.Tooltip("high:Q", title="highest", format=".4f"),
            alt.Tooltip("of:Q", title="steps in this point"),
        ]
    if all(line.chars_a_step for line in losses.lines):
        shown.append(alt.Tooltip("characters:Q", title=f"{losses.symbols} read", format=".3s"))
    return [*shown, alt.Tooltip("seconds:Q", title="seconds", format=",.1f")]


def _rungs(
    losses: Losses, axis: Axis, last: float, width: int, height: int, options: dict[str, Any]
) -> list[Any]:
    """Return a dashed line for each baseline, and its name where no curve is."""
    low, high = losses.bounds()
    rungs = [rung for rung in losses.rungs if low <= rung.score.loss_nats <= high]
    if not rungs:
        return []
    end = alt.ExprRef(expr=f"width - {ROOM}")
    muted = palette.MUTED.light
    lines = alt.Chart(data([{"nats": rung.score.loss_nats} for rung in rungs])).mark_rule(
        strokeDash=[3, 4], color=muted, opacity=0.75
    )
    layers = [lines.encode(y=alt.Y("nats:Q", **options), x=alt.value(0), x2=alt.value(end))]
    sides: dict[bool, list[Label]] = {True: [], False: []}
    for rung in rungs:
        nats = rung.score.loss_nats
        name = rung.name.partition(",")[0] if width <= NARROW else rung.name
        label = Label(f"{name} {nats:.2f}", nats, muted)
        room = 1 - (6.5 * len(label.text) + 8) / (width - ROOM - 50)
        passed = max((_passed(line, nats, axis, last) for line in losses.lines), default=1.0)
        sides[passed <= room].append(label)
    for right, labels in sides.items():
        if labels:  # above its line where the curves are below, else below its line
            side: dict[str, Any] = {"align": "left", "baseline": "top", "dx": 3, "dy": 3}
            if right:
                side = {"align": "right", "baseline": "bottom", "dx": -3, "dy": -2}
            names = alt.Chart(data(placed(labels, low, high, height))).mark_text(
                color=muted, **side
            )
            place = alt.value(end) if right else alt.value(0)
            layers.append(
                names.encode(y=alt.Y("at:Q", **options), x=place, text=alt.Text("text:N"))
            )
    return layers


def _passed(line: Line, nats: float, axis: Axis, last: float) -> float:
    """Return after which share of the chart's width a line stays below a baseline; 1: never."""
    above = 0.0
    for row in line.rows:
        if row["high" if line.of_steps else "nats"] >= nats:
            above = row[axis] / last
    return above


def _ends(labels: Sequence[Label], x: alt.X, low: float, high: float, height: int) -> list[View]:
    """Return the names of the curves and their last values, right of where each ends."""
    last = max(label.end for label in labels)
    named = [
        label._replace(text=f"{shortened(label.text, 11)}\n{label.value:.3f}") for label in labels
    ]
    near = [label._replace(end=last) for label in named if label.end >= NEAR * last]
    far = [label for label in named if label.end < NEAR * last]
    rows = [row for some in (near, far) for row in placed(some, low, high, height, least=28)]
    place = x.copy(deep=False)
    place.shorthand = "end:Q"
    return halo_text(rows, place)
