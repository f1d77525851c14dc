"""One self-contained page about a run, or about several.

Everything on it that comes from a run is text of strangers: names, settings, texts and samples.
Jinja2 escapes markup in it, `harmless` escapes what moves or hides other text, and a policy in the
page lets a browser run the page's own scripts only, load nothing and send nothing.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from charlm import __version__
from charlm.evaluation.known import Progress
from charlm.reporting.attention import lookings
from charlm.reporting.charts import Chart, charts_of
from charlm.reporting.comparing import compare
from charlm.reporting.facts import facts_of
from charlm.reporting.figures import to_svg
from charlm.reporting.glyphs import Glyphs, harmless
from charlm.reporting.opened import Opened
from charlm.reporting.palette import TONES, recoloured
from charlm.reporting.passage import Passage, predictions
from charlm.reporting.shown import comparison_of, looking_of, map_of, writing_of
from charlm.reporting.writing import writing

TEMPLATES = "templates"
# The colours of charts, as names that follow the page: light, dark, or printed.
VARIABLES = {tone.light: f"var(--tone{i})" for i, tone in enumerate(TONES)}


def page_of(
    runs: Sequence[Opened],
    passage: Passage,
    seed: int = 0,
    progress: Progress = lambda step, done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> str:
    """Return a page about runs, the first of which is the main one.

    Args:
        runs: What `open_runs` returned.
        passage: What to show the surprise of; see `charlm.reporting.passage`.
        seed: Of the samples.
        progress: Called often, also to stop the work by an exception.
        should_stop: Ends a sample early.
    """
    run = runs[0]
    whole = "the mixture" if run.config.model.members() else run.name
    total = sum(len(one.val) - 1 for one in runs if one.val)

    def scored(chars: int) -> None:
        progress("scoring", chars, total)

    # Vega works in threads of its own, beside the models.
    with ThreadPoolExecutor(2) as pool:
        bundle = pool.submit(vega_script)
        compared = compare(runs, scored, should_stop) if len(runs) > 1 else []
        charts = [
            (chart, pool.submit(_drawn, chart))
            for chart in charts_of(runs, scored, should_stop, compared)
        ]
        models = [*predictions(run.model, passage, whole)]
        shown_map, map_data = map_of(run, passage, models, Glyphs(run.tokenizer))
        looks = [looking_of(one) for one in lookings(run, passage)]
        written = writing_of(run, writing(run, seed, progress, should_stop))
    data = {
        "map": map_data,
        "lookings": [of_script for _, of_script in looks],
        "charts": {chart.name: recoloured(chart.spec, VARIABLES) for chart, _ in charts},
    }
    scripts = [_read("page.js"), bundle.result(), _read("charts.js")]
    parts = {"run": "The first run" if compared else "The run"}
    parts |= {"comparison": "The runs side by side"} if compared else {}
    parts |= {"surprise": "What surprises it", "writing": "What it writes"}
    parts |= {"charts": "Charts"} if charts else {}
    parts |= {"attention": "What its heads look at"} if looks else {}
    page: str = (
        _environment()
        .get_template("page.html")
        .render(
            version=__version__,
            policy=policy(scripts),
            style=_style(),
            title=" and ".join(one.name for one in runs),
            one=run.symbols.removesuffix("s"),
            sections=parts,
            facts=facts_of(run),
            comparison=comparison_of(compared) if compared else None,
            map=shown_map,
            writing=written,
            charts=[drawn.result() for _, drawn in charts],
            lookings=[of_template for of_template, _ in looks],
            data=_as_json(data),
            scripts=scripts,
        )
    )
    return page


def policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy that allows these scripts, styles, and pictures in the page."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("charlm.reporting", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
    )


def _finalized(value: object) -> object:
    """Make a text harmless before it is escaped; what is markup already is ours."""
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _as_json(data: object) -> Markup:
    """Return JSON that nothing in it can end the script element of."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False)


@cache
def vega_script() -> Markup:
    r"""Return Vega, of the release that draws the charts, as a script that defines `vegaEmbed`.

    `</script` in a text of it would end the script: it is written `<\/script`, which means the same.
    """
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("\r\n", "\n")
    return _ours(re.sub(r"<(/script|!--)", r"<\\\1", script, flags=re.IGNORECASE))


def _ours(text: str) -> Markup:
    """Return what is markup already: our files, Vega's script, and its pictures, which escape texts."""
    return Markup(text)  # nosec B704


def _read(name: str) -> Markup:
    return _ours((files("charlm.reporting") / TEMPLATES / name).read_text(encoding="utf-8"))


def _drawn(chart: Chart) -> dict[str, Any]:
    """Return a chart with its pictures, for a page that runs no scripts."""
    specs = {"wide": chart.spec, "narrow": chart.narrow}
    pictures = [
        (size, _ours(to_svg(recoloured(spec, VARIABLES), f"{chart.name}-{size}")))
        for size, spec in specs.items()
    ]
    return {
        "name": chart.name,
        "title": chart.title,
        "caption": chart.caption,
        "pictures": pictures,
    }


def _style() -> Markup:
    """Return the styles, after the colours of the charts."""
    light, dark = (
        " ".join(f"--tone{i}: {tone[scheme]};" for i, tone in enumerate(TONES)) for scheme in (0, 1)
    )
    on_dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return _ours(f":root {{ {light} }}\n{on_dark}\n") + _read("style.css")
