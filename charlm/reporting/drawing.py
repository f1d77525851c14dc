"""What all charts share: their two widths, scales for steps and times, labels beside lines."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import altair as alt

from charlm.reporting import palette

WIDE, NARROW = 720, 343  # pixels: a page, and a phone with margins of 16

Row = dict[str, Any]
View = Any  # a chart of Altair, or what `plain` and `joined` return


@dataclass(frozen=True)
class Chart:
    """A chart as Vega-Lite, with its data inlined; its background is transparent.

    Both specifications have the colours for light pages: see `charlm.reporting.palette.recoloured`.
    """

    name: str  # of its file, and its id in a page: `loss`
    title: str  # a short heading
    caption: str  # what it shows and how to read it; also for screen readers
    spec: dict[str, Any]  # 720 pixels wide
    narrow: dict[str, Any]  # 343 pixels wide


def chart(name: str, title: str, caption: str, draw: Callable[[int], View]) -> Chart:
    """Return a chart; `draw` draws it as wide as it is told, in pixels."""
    wide, narrow = (_drawn(draw, width, f"{title}. {caption}") for width in (WIDE, NARROW))
    return Chart(name, title, caption, wide, narrow)


# The data of the chart that is being drawn. Altair would copy it, again and again.
_TABLES: ContextVar[dict[str, list[Row]]] = ContextVar("tables")


def _drawn(draw: Callable[[int], View], width: int, description: str) -> dict[str, Any]:
    tables: dict[str, list[Row]] = {}
    _TABLES.set(tables)
    spec = {"$schema": alt.SCHEMA_URL, "description": description} | plain(draw(width))
    return spec | {"datasets": tables, "config": palette.config()}


def plain(view: View) -> dict[str, Any]:
    """Return a view as a part of a specification. It is not validated, which a test does."""
    if isinstance(view, dict):
        return view
    spec: dict[str, Any] = view.to_dict(validate=False, context={"top_level": False})
    return spec


def joined(how: Literal["layer", "hconcat", "vconcat"], *views: View, **properties: Any) -> View:
    """Return views on top of each other, beside each other or one below the other.

    Altair's own functions copy all views with their parts, several times over.
    """
    return {how: [plain(view) for view in views], **properties}


def data(rows: Iterable[Mapping[str, Any]]) -> alt.NamedData:
    """Return the name of rows that become a part of the chart; numbers have five significant digits."""
    tables = _TABLES.get()
    name = f"table{len(tables)}"
    tables[name] = [{key: _short(value) for key, value in row.items()} for row in rows]
    return alt.NamedData(name=name)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def across(view: View, width: int, height: int) -> View:
    """Return a view whose axes fit into a width; its plot is as high as `height`."""
    fit = {"type": "fit-x", "contains": "padding"}
    return plain(view) | {"width": width, "height": height, "autosize": fit}


class Label(NamedTuple):
    """A label beside the end of a line."""

    text: str
    value: float  # where the line ends
    colour: str
    end: float = 0.0  # the same across


def placed(
    labels: Sequence[Label], low: float, high: float, height: int, least: float = 14
) -> list[Row]:
    """Return labels as rows, at least `least` pixels apart, in the order of their values.

    The axis goes from `low`, at the bottom, to `high`, `height` pixels above it.
    """
    a_pixel = (high - low) / height
    order = sorted(labels, key=lambda label: label.value)
    places: list[float] = []
    for label in order:
        lowest = places[-1] + least * a_pixel if places else low
        places.append(max(label.value, lowest))
    highest = high
    for i in range(len(places) - 1, -1, -1):  # push those down that were pushed out at the top
        places[i] = min(places[i], highest)
        highest = places[i] - least * a_pixel
    return [
        {"text": label.text, "at": place, "colour": label.colour, "end": label.end}
        for label, place in zip(order, places, strict=True)
    ]


def halo_text(rows: Sequence[Row], x: Any) -> list[View]:
    """Return labels that `placed` returned, with a rim in the colour of the page over lines."""
    text = alt.Chart(data(rows)).encode(x=x, y=alt.Y("at:Q"), text=alt.Text("text:N"))
    look: dict[str, Any] = {"align": "left", "dx": 7, "lineBreak": "\n", "fontWeight": 600}
    rim = text.mark_text(stroke=palette.PAGE.light, strokeWidth=4, strokeJoin="round", **look)
    return [rim, text.mark_text(**look).encode(color=alt.Color("colour:N", scale=None))]


def shortened(text: str, most: int) -> str:
    """Return a name that is not longer than `most` characters, with its middle left out."""
    if len(text) <= most:
        return text
    return f"{text[: (most - 1) // 2 + (most - 1) % 2]}…{text[-((most - 1) // 2) :]}"


COUNTED = "datum.value == 0 ? '0' : abs(datum.value) < 1 ? format(datum.value, '~g') : format(datum.value, '~s')"
CLOCK = (
    "datum.value == 0 ? '0' : datum.value < 60 ? format(datum.value, '~g') + ' s' : datum.value < 3600 ? "
    "format(datum.value / 60, '~g') + ' min' : format(datum.value / 3600, '~g') + ' h'"
)
STEPS = (
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10_800,
    21_600,
)


def clock_ticks(last: float, most: int) -> list[float]:
    """Return 0 and at most `most` round times up to `last`, in seconds, equally far apart."""
    days = (86_400.0 * n for n in (0.5, *(2**k for k in range(40))))
    step = next(step for step in (*STEPS, *days) if last / step <= most)
    return [step * i for i in range(int(last / step) + 1)]
