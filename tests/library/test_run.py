"""A run, opened from Python."""

import json
import sys
import types
from pathlib import Path

import pytest

import charlm as package
from charlm.errors import CheckpointError, MachineError, UsageError
from charlm.runs.metrics import read_metrics
from charlm.runs.records import record_of


def test_metrics_are_the_records_that_were_logged(trained):
    run = package.open(trained)

    records = run.metrics()

    logged = list(read_metrics(trained / "metrics.jsonl"))
    assert [one.as_json() for one in records] == logged
    assert {"train", "eval", "save", "end"} <= {one.kind for one in records}


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_frame_is_of_what_is_installed(trained, monkeypatch, name):
    frames = types.ModuleType(name)
    frames.DataFrame = lambda rows, **options: (name, rows)
    for other in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, other, frames if other == name else None)

    made, rows = package.open(trained).frame()

    assert (made, len(rows)) == (name, len(package.open(trained).metrics()))
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MachineError, match="pip install pandas"):
        package.open(trained).frame()


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_real_frame_has_a_row_for_each_record(trained, monkeypatch, name):
    library = pytest.importorskip(name)
    monkeypatch.setitem(sys.modules, "polars" if name == "pandas" else "pandas", None)
    run = package.open(trained)

    frame = run.frame()

    assert isinstance(frame, library.DataFrame)
    records = run.metrics()
    assert frame["kind"].to_list() == [one.kind for one in records]
    losses = frame.to_dict("list") if name == "pandas" else frame.to_dict(as_series=False)
    steps = [i for i, one in enumerate(records) if one.kind == "train"]
    assert [losses["loss_nats"][i] for i in steps] == [records[i].loss_nats for i in steps]
    assert all(losses["learning_rate"][i] == records[i].learning_rate for i in steps)


def test_what_a_log_cannot_hold_is_refused():
    with pytest.raises(CheckpointError, match="unknown kind of record 'trane'"):
        record_of({"kind": "trane"})
    with pytest.raises(CheckpointError, match="not a whole record of kind 'train'"):
        record_of({"kind": "train", "step": 1})


def test_a_run_is_opened_by_path_name_or_itself(trained):
    run = package.open(trained)

    assert package.open(run) is run
    assert {package.open(trained.name).path, package.open().path} == {Path("runs", trained.name)}
    assert run.best_loss == min(one.loss for one in run.checkpoints if one.loss)
    assert repr(run) == f"Run({str(run.path)!r})"
    assert "<th>model</th>" in run._repr_html_()


def test_a_page_has_the_name_of_one(trained):
    with pytest.raises(UsageError, match=r"^a\.pdf: a report is a page of HTML; end the name in"):
        package.open(trained).report("a.pdf")

    assert not Path("a.pdf").exists()


def test_an_evaluation_is_that_of_the_command(charlm, trained):
    printed = json.loads(charlm("eval", "--protocol", "sliding", "--stride", 3, "--json").stdout)

    score = package.open(trained).evaluate(protocol="sliding", stride=3)

    assert (score.loss_nats, score.chars) == (printed["loss_nats"], printed["chars"])


def test_the_better_run_comes_first(charlm, trained):
    assert charlm("train", "-c", "ngram", "data.source=text.txt", "-o", "counts", "-q").code == 0
    printed = charlm("compare", trained, "counts", "--json").stdout

    rows = package.compare([trained, "counts"])

    assert [row.run.path.name for row in rows] == ["counts", trained.name]
    assert all(str(row.score.loss_nats) in printed for row in rows)
    assert rows[0].text == rows[1].text


def test_baselines_are_those_of_the_command(charlm, tiny):
    printed = json.loads(charlm("baselines", "text.txt", "--json").stdout)

    ladder = package.baselines(Path("text.txt"))

    found = {rung.name: rung.score.loss_nats for rung in ladder.rungs}
    assert found == {one["name"]: one["loss_nats"] for one in printed["baselines"]}
    assert package.baselines(Path("text.txt").read_text()).rungs[2].score == ladder.rungs[2].score
