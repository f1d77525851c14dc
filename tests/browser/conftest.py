"""A browser without a network, and pages of small runs. `scripts/test-browser` installs it."""

import os
import shutil
from pathlib import Path

import pytest

from charlm.reporting.opened import open_runs
from charlm.reporting.page import page_of
from charlm.reporting.passage import passage_of
from tests.reporting.conftest import opened, runs  # noqa: F401 -- fixtures

WIDTHS = (375, 1280)
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
)


@pytest.fixture(scope="session")
def browser():
    """Chromium from the system, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("needs chromium")
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # it has no sandbox for root
    with playwright.sync_playwright() as engine:
        launched = engine.chromium.launch(executable_path=chromium, args=[*QUIET, *alone])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def pages(runs, tmp_path_factory):  # noqa: F811
    """A function that makes the page of some runs, once; it returns the file."""
    folder = tmp_path_factory.mktemp("pages")

    def page(*names):
        file = folder / f"{'+'.join(names)}.html"
        if not file.exists():
            found = open_runs([runs(name) for name in names], "cpu")
            found[0].model.prepare()
            file.write_text(page_of(found, passage_of(found[0], 400)), encoding="utf-8")
        return file

    return page


class Visit:
    """A page in the browser, and what went wrong there."""

    def __init__(self, browser, file: Path, **options):
        width = options.pop("width", 1280)
        viewport = {"width": width, "height": 800}
        self.context = browser.new_context(viewport=viewport, offline=True, **options)
        self.page = self.context.new_page()
        self.troubles, self.requests = [], []
        self.page.on("console", lambda said: self._heard(said.type, said.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def _heard(self, kind, text):
        if kind in ("error", "warning"):
            self.troubles.append(text)

    @property
    def loaded(self):
        """What was asked for beside the page itself and what is in it."""
        return [url for url in self.requests[1:] if not url.startswith("data:")]


@pytest.fixture
def visit(browser, pages):
    """Open the page of some runs: `visit("gpt", width=375)`; check that nothing went wrong."""
    visits = []

    def go(*names, **options):
        visits.append(Visit(browser, pages(*names), **options))
        return visits[-1].page

    yield go
    for one in visits:
        one.context.close()
        assert one.troubles == []
        assert one.loaded == []
