"""The colours and the look of charts, for light and for dark pages.

Charts are drawn in the colours for light pages; `recoloured` gives those for dark ones. Series have
colours that people with each kind of colour blindness tell apart (after Okabe and Ito 2008, "Color
universal design"), and all text reaches a contrast of 4.5 with its background: WCAG 2.2, 1.4.3.
"""

from typing import Any, NamedTuple


class Tone(NamedTuple):
    """A colour on a light page and the one that takes its place on a dark page."""

    light: str
    dark: str


PAGE = Tone("#ffffff", "#14171a")  # what charts are drawn on; they are transparent themselves
INK = Tone("#1f2328", "#e8eaed")  # words that must be read
MUTED = Tone("#59626c", "#a5aeb8")  # axes and baselines
GRID = Tone("#e3e7eb", "#2b3138")
SERIES = (
    Tone("#0b61a4", "#5db2f0"),  # blue
    Tone("#b34a00", "#f0933f"),  # vermilion
    Tone("#00704f", "#3fc79a"),  # green
    Tone("#8d3f85", "#dd93d0"),  # purple
    Tone("#6e5900", "#d8bf3c"),  # yellow
    Tone("#4a4f57", "#c3c9d0"),  # grey
)
TRAIN, VAL = SERIES[0], SERIES[1]
HEAT = Tone("#0b61a5", "#5db2f1")  # of heat maps, whose cells fade into the page

TONES = (PAGE, INK, MUTED, GRID, *SERIES, HEAT)
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
SMALL, SIZE = 11, 12  # pixels


def of_series(number: int) -> str:
    """Return the colour of a series; after six they repeat."""
    return SERIES[number % len(SERIES)].light


def config() -> dict[str, Any]:
    """Return Vega-Lite's configuration of all charts."""
    return {
        "background": "transparent",
        "font": FONT,
        "padding": 4,
        "view": {"stroke": None},
        "mark": {"aria": False},  # the caption is read out, not each point
        "axis": {
            "domain": False,
            "gridColor": GRID.light,
            "gridWidth": 1,
            "labelColor": MUTED.light,
            "labelFont": FONT,
            "labelFontSize": SMALL,
            "labelPadding": 5,
            "tickColor": GRID.light,
            "tickSize": 4,
            "titleColor": INK.light,
            "titleFont": FONT,
            "titleFontSize": SIZE,
            "titleFontWeight": "normal",
            "titlePadding": 8,
        },
        "axisX": {"grid": False, "domain": True, "domainColor": GRID.light},
        "text": {"font": FONT, "fontSize": SMALL, "color": INK.light},
        "legend": {
            "labelColor": INK.light,
            "labelFont": FONT,
            "labelFontSize": SMALL,
            "title": None,
            "orient": "top",
            "columns": 3,
        },
        "title": {
            "color": INK.light,
            "font": FONT,
            "fontSize": SIZE,
            "fontWeight": "normal",
            "anchor": "start",
            "offset": 8,
        },
        "header": {"labelColor": INK.light, "labelFontSize": SIZE, "title": None},
    }


def recoloured(spec: Any, colours: dict[str, str] | None = None) -> Any:
    """Return a specification with other colours: those for dark pages, or by the light one.

    A page may give it `var(--ink)` and the like, so that one picture follows the page.
    """
    if colours is None:
        colours = {tone.light: tone.dark for tone in TONES}
    if isinstance(spec, dict):
        return {key: recoloured(value, colours) for key, value in spec.items()}
    if isinstance(spec, list):
        return [recoloured(value, colours) for value in spec]
    return colours.get(spec, spec) if isinstance(spec, str) else spec
