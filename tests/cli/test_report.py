"""charlm report, and charlm train --report."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import python
from tests.reporting.conftest import without_charts


@pytest.fixture(autouse=True)
def _quickly(request):
    """Draw charts in the first test only."""
    if request.node.name == "test_a_report_is_one_file":
        yield
        return
    with without_charts():
        yield


def test_a_report_is_one_file(charlm, trained):
    result = charlm("report", trained, "-o", "page.html")

    assert result.code == 0, result.stderr
    page = Path("page.html").read_text(encoding="utf-8")
    assert result.stdout == f"page.html: {len(page.encode()) / 1e6:.1f} MB; open it in a browser\n"
    assert page.startswith("<!doctype html>")
    assert "<h1>tiny</h1>" in page


def test_the_newest_run_is_shown_in_report_html(charlm, trained):
    assert charlm("report").code == 0
    first = Path("report.html").read_text(encoding="utf-8")

    assert charlm("report", "tiny", "--out", "report.html").code == 0  # it may be made anew

    assert Path("report.html").read_text(encoding="utf-8") == first


def test_a_report_that_was_not_named_is_not_replaced(charlm):
    Path("report.html").write_text("an older report")

    result = charlm("report")

    assert (result.code, result.stdout) == (2, "")
    assert result.error == (
        "report.html: exists already; name another with --out, or replace it with --out report.html"
    )
    assert Path("report.html").read_text() == "an older report"


@pytest.mark.parametrize("out", ["page.pdf", "page.PNG", "page", "-"])
def test_only_html_can_be_written(charlm, out):
    result = charlm("report", "-o", out)

    assert (result.code, result.stdout) == (2, "")
    assert result.error == (
        f"--out {out}: a report is a page of HTML; "
        "end the name in .html, or write SVG and PNG with --figures DIR"
    )
    assert not Path(out).exists()


def test_a_passage_can_be_given(charlm, trained):
    assert charlm("report", "--passage", "lazy dog").code == 0

    assert "The given text: 7 characters after the first" in Path("report.html").read_text()


def test_training_can_end_with_a_report(charlm, tiny):
    result = charlm("train", "--config", "tiny.yaml", "--out", "run", "--report")

    assert result.code == 0, result.stderr
    assert "report   run/report.html" in result.stderr
    assert "<h1>run</h1>" in Path("run/report.html").read_text(encoding="utf-8")
    assert charlm("verify", "run").code == 0
    assert charlm("report", "run", "-o", "run/report.html").code == 0
    assert charlm("runs", "rm", "run", "--yes").code == 0
    assert not Path("run").exists()


def test_a_report_that_cannot_be_made_does_not_undo_the_training(charlm, tiny, monkeypatch):
    from charlm.errors import MachineError

    def fail(*_):
        raise MachineError("run/report.html", "No space left on device", "free some space")

    monkeypatch.setattr("charlm.storage.write_file", fail)

    result = charlm(
        "train", "--config", "tiny.yaml", "--out", "run", "--report", "eval.baselines=false"
    )

    assert result.code == 0
    assert "note: no report: run/report.html: No space left on device" in result.stderr
    assert result.stdout.startswith("validation loss")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("runs", "is a folder; name a file in it, such as report.html"),
        ("nowhere/page.html", "there is no folder nowhere; make it first"),
        ("notes.html", "is there already and is no report; choose another place"),
        ("runs/tiny/config.html", "inside the run "),
        ("runs/tiny/samples/page.html", "there is no folder"),
    ],
)
def test_nothing_else_is_written_over(charlm, trained, out, said):
    Path("notes.html").write_text("<!doctype html> my notes")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    result = charlm("report", "-o", out)

    assert result.code == 2
    assert said in result.error
    assert result.stdout == ""
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_the_text_of_a_run_is_not_written_over(charlm, tiny):
    text = Path("text.txt").rename("text.html")
    short = ("train.max_steps=1", "eval.baselines=false", "-q")
    assert charlm("train", "-c", "bigram", "--file", text, "--out", "run", *short).code == 0
    before = text.read_bytes()

    result = charlm("report", "run", "-o", text)

    assert result.error == "--out text.html: is the text of run; choose another place"
    assert text.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 4, "nowhere: not found"),
        (["--passage", "☃☃"], 3, "--passage: character 1 '☃' (U+2603)"),
        (["--seed", "-1"], 2, "--seed -1: out of range"),
    ],
)
def test_mistakes_are_one_line(charlm, trained, arguments, code, said):
    result = charlm("report", *arguments)

    assert result.code == code
    assert result.error.startswith(said)
    assert not Path("report.html").exists()


@pytest.mark.parametrize("command", [["report"], ["train", "--config", "tiny.yaml", "--report"]])
def test_a_missing_package_is_named_before_the_work(charlm, tiny, monkeypatch, command):
    monkeypatch.setattr("charlm.reporting.extra.find_spec", lambda name: None)

    result = charlm(*command)

    assert result.code == 5
    assert result.error == (
        "a report: cannot be made: the package altair is missing; pip install 'charlm[report]'"
    )
    assert not Path("runs").exists()


def test_nothing_of_the_extra_is_imported_without_a_report():
    code = "import sys, charlm, charlm.cli.main, charlm.cli.report, charlm.reporting.extra;"
    heavy = "{'altair', 'jinja2', 'vl_convert', 'PIL'}"

    done = python("-c", f"{code} print(sorted({heavy} & set(sys.modules)))")

    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert sys.executable


NAMES = ("loss", "loss-time", "training", "position", "kinds", "symbols", "embeddings", "bigrams")
FIGURES = sorted(f"{name}{end}" for name in (*NAMES, "surprise") for end in (".png", ".svg"))


@pytest.fixture(scope="module")
def figures(_trained, tmp_path_factory):
    """The figures of a run, made once."""
    from charlm.cli.main import run

    folder = tmp_path_factory.mktemp("figures") / "new" / "figures"
    assert run(["report", str(_trained / "runs" / "tiny"), "--figures", str(folder), "-q"]) == 0
    return folder


def test_figures_are_one_picture_for_each_chart_in_two_formats(figures):
    assert sorted(path.name for path in figures.iterdir()) == FIGURES
    for path in figures.iterdir():
        assert path.read_bytes()[:4] in (b"\x89PNG", b"<svg")


def test_figures_replace_older_ones_and_no_other_file(charlm, trained, figures, monkeypatch):
    monkeypatch.setattr("charlm.reporting.charts.charts_of", lambda *_: [])
    shutil.copytree(figures, "figures")
    Path("figures/notes.txt").write_text("mine")

    result = charlm("report", "tiny", "--figures", "figures")

    assert (result.code, result.stdout) == (0, "figures: 1 chart, each as SVG and PNG\n")
    assert not Path("report.html").exists()
    for name in FIGURES:
        assert Path("figures", name).read_bytes() == (figures / name).read_bytes()
    Path("figures/surprise.svg").write_text("<svg/>")
    refused = charlm("report", "tiny", "--figures", "figures")
    assert refused.code == 2
    assert refused.error == (
        "figures/surprise.svg: is there already and is no figure of charlm; name another folder"
    )


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("text.txt", "is no folder; name a folder; it is made if it is missing"),
        ("runs/tiny/new", "inside the run runs/tiny; choose another place"),
    ],
)
def test_figures_are_not_written_where_they_do_not_belong(charlm, trained, place, what):
    result = charlm("report", "tiny", "--figures", place)

    assert (result.code, result.stdout) == (2, "")
    assert result.error == f"--figures {place}: {what}"
