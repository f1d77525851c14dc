"""Charts as files: SVG for papers and pages, PNG for everything else.

Made twice, a file has the same bytes, with the same release of vl-convert and the same fonts.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from charlm.errors import UsageError
from charlm.reporting import palette
from charlm.reporting.charts import Chart
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder

PNG_SCALE = 2.0  # pixels of the file for each pixel of the chart
MARK = "<!-- a figure of charlm report -->"  # the end of each SVG


def to_svg(spec: dict[str, Any], name: str) -> str:
    """Return a chart as SVG, whose ids begin with `name`, so that a page can hold several.

    Vega numbers the ids over all charts of a process; here they are numbered in each chart.
    """
    import vl_convert

    svg = vl_convert.vegalite_to_svg(spec)
    numbers: dict[str, str] = {}

    def renamed(found: re.Match[str]) -> str:
        number = numbers.setdefault(found[2], f"{name}-{found[1]}{len(numbers)}")
        return found[0].replace(found[1] + found[2], number)

    return re.sub(r'(?:(?<=id=")|(?<=url\(#))(clip|gradient_?)(\d+)', renamed, svg)


def write_figures(charts: Sequence[Chart], folder: Path) -> Iterator[Path]:
    """Write each chart as NAME.svg and NAME.png into a folder, which is made; yield their paths.

    On white, so that they can be read on any page. Files that an earlier call made are replaced.

    Raises:
        UsageError: A file with such a name was not made here, and nothing was written.
        MachineError: The disk or its permissions refuse.
    """
    import vl_convert

    with machine_errors(folder):
        make_folder(folder)
        for chart in charts:
            _refuse_strangers(folder, chart.name)
    for chart in charts:
        svg = to_svg(on_page(chart.spec), chart.name)
        png = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
        for suffix, content in ((".png", png), (".svg", f"{svg.rstrip()}\n{MARK}\n".encode())):
            path = folder / f"{chart.name}{suffix}"
            write_file(path, content)
            yield path


def _refuse_strangers(folder: Path, name: str) -> None:
    """Refuse to replace a picture that was not made here: its SVG has no mark, or is missing."""
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    ours = svg.is_file() and svg.read_bytes().rstrip().endswith(MARK.encode())
    for path in (svg, png):
        if os.path.lexists(path) and not ours:
            raise UsageError(
                path, "is there already and is no figure of charlm", "name another folder"
            )


def on_page(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a chart with the background of a light page."""
    return spec | {"background": palette.PAGE.light}
