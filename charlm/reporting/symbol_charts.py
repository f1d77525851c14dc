"""Charts of what a model has learned about symbols, and a passage coloured by surprise."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt

from charlm.reporting import palette
from charlm.reporting.breakdown import Bigrams, Embeddings
from charlm.reporting.drawing import NARROW, Chart, Row, View, across, chart, data, joined
from charlm.reporting.loss_charts import letters

Floats = npt.NDArray[np.float64]

VISIBLE = 5e-4  # the least probability that a cell shows


def embedding_chart(found: Embeddings, rows: Sequence[Row], left_out: int) -> Chart:
    """Return symbols where their embeddings are; `rows` have glyph, name and class, in the same order."""
    what = "rows of its table (what follows a symbol)" if found.of_rows else "embeddings"
    whose = f" of the expert {found.expert}" if found.expert else ""
    rest = (
        f" The {len(rows):,} most frequent of {len(rows) + left_out:,} are shown."
        if left_out
        else ""
    )
    both = sum(found.shares)
    caption = (
        f"Symbols that the model treats alike are near each other: the {what}{whose} in the two "
        f"directions of largest variance, which hold {both:.0%} of it.{rest}"
    )
    placed = [
        row | {"x": float(x), "y": float(y)}
        for row, (x, y) in zip(rows, found.places.tolist(), strict=True)
    ]
    return chart(
        "embeddings",
        "Symbols by their embeddings",
        caption,
        lambda width: _embeddings(placed, found.shares, width),
    )


def _embeddings(rows: Sequence[Row], shares: tuple[float, float], width: int) -> View:
    def axis(name: str, which: str, share: float) -> dict[str, Any]:
        values = [row[name] for row in rows]
        margin = 0.06 * (max(values) - min(values) or 1)
        scale = alt.Scale(domain=[min(values) - margin, max(values) + margin], nice=False)
        title = f"{which} component ({share:.0%} of the variance)"
        shown = alt.Axis(title=title, labels=False, ticks=False, grid=False, domain=True)
        return {"scale": scale, "axis": shown}

    x = alt.X("x:Q", **axis("x", "first", shares[0]))
    y = alt.Y("y:Q", **axis("y", "second", shares[1]))
    tooltip = [alt.Tooltip("name:N", title="symbol"), alt.Tooltip("count:Q", format=",")]
    return across(letters(rows, x, y, tooltip, width), width, 330 if width <= NARROW else 460)


def bigram_chart(
    found: Bigrams, glyphs: Sequence[str], names: Sequence[str], left_out: int, symbol: str
) -> Chart:
    """Return the model's bigram table beside the counted one."""
    apart = float(np.abs(found.learned - found.counted).sum(axis=1).mean() / 2)
    rest = (
        f" The {len(glyphs)} most frequent of {len(glyphs) + left_out:,} are shown."
        if left_out
        else ""
    )
    caption = (
        f"What follows each {symbol}: rows are the {symbol} read, columns the next one; the stronger the "
        "colour of a cell, the likelier. What the model expects if it has read nothing else, and how often it was so in "
        f"{found.chars:,} {symbol}s of its training text. The tables differ by {apart:.0%} of the "
        f"probability, on average over the rows.{rest}"
    )

    def draw(width: int) -> View:
        narrow = width <= NARROW
        size = (width - 58) if narrow else (width - 96) // 2
        size = int(min(size, 18 * len(glyphs)))
        panels = (
            ("expected by the model", found.learned, True),
            ("counted in the text", found.counted, narrow),
        )
        views = [
            _heat(title, table, glyphs, names, size, labelled) for title, table, labelled in panels
        ]
        return joined("vconcat" if narrow else "hconcat", *views, spacing=18)

    return chart("bigrams", "What follows what", caption, draw)


def _heat(
    title: str,
    table: Floats,
    glyphs: Sequence[str],
    names: Sequence[str],
    size: int,
    labelled: bool,
) -> View:
    rows = [
        {"a": i, "b": j, "p": float(table[i, j]), "after": names[i], "next": names[j]}
        for i, j in np.argwhere(table >= VISIBLE).tolist()
    ]
    numbers = list(range(len(glyphs)))
    # An axis of numbers, so that no two symbols can be taken for one; their glyphs label it.
    words = "[" + ",".join(quoted(glyph) for glyph in glyphs) + "][datum.value]"
    shared: dict[str, Any] = {
        "labelExpr": words,
        "labelOverlap": False,
        "ticks": False,
        "labelPadding": 3,
        "labelFontSize": 10,
        "domain": False,
    }
    tilted = 0 if max(map(len, glyphs)) <= 2 else -90
    x = alt.X(
        "b:O",
        scale=alt.Scale(domain=numbers, padding=0),
        axis=alt.Axis(title="next", labelAngle=tilted, **shared),
    )
    y = alt.Y(
        "a:O",
        scale=alt.Scale(domain=numbers, padding=0),
        axis=alt.Axis(title="read" if labelled else None, **shared),
    )
    heading = alt.TitleParams(title, frame="group", anchor="start")
    cells = alt.Chart(data(rows), title=heading).mark_rect(color=palette.HEAT.light)
    return cells.encode(
        x=x,
        y=y,
        opacity=alt.Opacity(
            "p:Q", scale=alt.Scale(type="sqrt", domain=[0, 1], range=[0, 1]), legend=None
        ),
        tooltip=[
            alt.Tooltip("after:N"),
            alt.Tooltip("next:N"),
            alt.Tooltip("p:Q", title="probability", format=".3f"),
        ],
    ).properties(width=size, height=size)


def quoted(glyph: str) -> str:
    r"""Return a glyph as a string of Vega's expressions, in ASCII."""
    codes = np.frombuffer(glyph.encode("utf-16-le"), "<u2")
    return "'" + "".join(f"\\u{code:04x}" for code in codes.tolist()) + "'"


MOST_BITS = 8  # what is as dark as can be
DARKEST = 0.5  # opacity, so that the letters can be read
SHOWN, LINES = 640, 14  # symbols and lines of the passage, at most
MONOSPACE = "Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
COLUMN, LINE = 8.6, 22  # pixels: a symbol in a fixed-width font of 13 pixels


def surprise_chart(
    symbols: Sequence[tuple[str, str, str]], bits: Sequence[float], whence: str, mean_bits: float
) -> Chart:
    """Return a passage whose symbols are coloured by how surprising they are.

    `symbols` are the symbol, its glyph and its name; the first is not predicted, so `bits` has one
    number less.
    """
    shown = min(len(symbols), SHOWN)
    caption = (
        f"The beginning of {whence}, each symbol on a ground that is stronger the more it surprised the "
        f"model: none for a symbol that was certain, the strongest for {MOST_BITS} bits or more. The mean is "
        f"{mean_bits:.2f} bits."
    )
    return chart(
        "surprise",
        "What surprises the model",
        caption,
        lambda width: _surprise(symbols[:shown], [None, *bits], width),
    )


def _surprise(
    symbols: Sequence[tuple[str, str, str]], bits: Sequence[float | None], width: int
) -> View:
    columns = int((width - 10) / COLUMN)
    rows: list[Row] = []
    line = column = 0
    for (symbol, glyph, name), cost in zip(symbols, bits, strict=False):
        wide = max(1, len(glyph)) if len(glyph) > 2 or ord(glyph[0]) < 0x2E80 else 2
        if column + wide > columns:
            line, column = line + 1, 0
        finite = cost is not None and math.isfinite(cost)
        rows.append(
            {
                "x": column,
                "x2": column + wide,
                "y": line,
                "y2": line + 1,
                "glyph": "" if symbol == " " else glyph,
                "sign": glyph != symbol,
                "name": name,
                "bits": cost if finite else None,
                "dark": 0.0 if cost is None else min(cost, MOST_BITS) / MOST_BITS * DARKEST,
            }
        )
        column += wide
        if symbol == "\n":
            line, column = line + 1, 0
        if line == LINES:
            break
    lines = line + (column > 0)
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, columns], nice=False), axis=None)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[lines, 0], nice=False), axis=None)
    base = alt.Chart(data(rows)).encode(
        x=x,
        y=y,
        tooltip=[alt.Tooltip("name:N", title="symbol"), alt.Tooltip("bits:Q", format=".2f")],
    )
    ground = base.mark_rect(color=palette.HEAT.light).encode(
        x2=alt.X2("x2:Q"), y2=alt.Y2("y2:Q"), opacity=alt.Opacity("dark:Q", scale=None)
    )
    placed = base.transform_calculate(mx="(datum.x + datum.x2) / 2", my="datum.y + 0.5")
    text = [
        placed.transform_filter(f"datum.sign == {sign}")
        .mark_text(font=MONOSPACE, fontSize=size, color=tone.light)
        .encode(x=alt.X("mx:Q"), y=alt.Y("my:Q"), text=alt.Text("glyph:N"))
        for sign, size, tone in (("false", 13, palette.INK), ("true", 9, palette.MUTED))
    ]
    return across(joined("layer", ground, *text), width, LINE * lines)
