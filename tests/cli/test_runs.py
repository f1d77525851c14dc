import csv
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import typer

from charlm.library.training import train
from charlm.runs import RunFolder
from charlm.runs.metrics import read_metrics
from charlm.runs.requests import ask_to_save
from charlm.storage import folder_lock


def rows(result):
    assert (result.code, result.stderr) == (0, "")
    return [line.split() for line in result.stdout.splitlines()]


@pytest.fixture
def three(trained):
    """A finished run, one that was stopped, and one whose configuration is broken."""
    for name in ("stopped", "broken"):
        shutil.copytree(trained, trained.with_name(name))
    log = trained.with_name("stopped") / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    (trained.with_name("broken") / "config.yaml").write_text("model: [")
    for age, name in enumerate(("tiny", "stopped", "broken")):
        then = time.time() - 3600 * age - 5
        os.utime(trained.with_name(name) / "metrics.jsonl", (then, then))
    return trained.parent


def test_runs_are_listed_the_newest_first(charlm, three):
    head, tiny, stopped, broken = rows(charlm("runs"))

    assert head == ["run", "model", "text", "step", "best", "size", "age", "state"]
    assert [*tiny[:4], *tiny[-3:]] == ["runs/tiny", "gpt", "text.txt", "6", "5", "s", "finished"]
    assert [stopped[0], *stopped[-3:]] == ["runs/stopped", "1", "h", "stopped"]
    assert [*broken[:3], broken[-1]] == ["runs/broken", "-", "-", "unreadable"]
    assert rows(charlm("runs", "list", "runs")) == [head, tiny, stopped, broken]


def test_runs_are_listed_as_json(charlm, three):
    result = charlm("runs", "--json")

    tiny, _, broken = json.loads(result.stdout)["runs"]
    assert set(tiny) == {
        *("path", "state", "model", "text", "step", "best_loss_nats", "bytes", "written")
    }
    assert (tiny["path"], tiny["step"]) == ("runs/tiny", 6)
    size = sum(path.stat().st_size for path in (three / "tiny").rglob("*") if path.is_file())
    assert tiny["bytes"] == size
    assert (broken["model"], broken["state"]) == (None, "unreadable")
    assert charlm("runs", "list", "--json").stdout == result.stdout


def test_a_run_that_is_being_trained_is_said_to_run_and_is_not_removed(charlm, three):
    with folder_lock(three / "tiny"):
        listed, removed = charlm("runs"), charlm("runs", "rm", "--yes", "tiny")

    assert rows(listed)[1][-1] == "running"
    assert (removed.code, removed.error) == (5, "runs/tiny: is being trained; stop that first")
    assert (three / "tiny").is_dir()


def test_names_stay_on_their_line(charlm, trained):
    trained.rename(trained.with_name("a\n\x1b[31mb"))
    config = Path("runs/a\n\x1b[31mb/config.yaml")
    config.write_text(config.read_text().replace("text.txt", '"x\\ny.txt"'))

    _, row = rows(charlm("runs"))

    assert (row[0], row[2]) == ("runs/a\\n\\x1b[31mb", "x\\ny.txt")
    assert len(charlm("runs", "rm", "-y", "runs/a\n\x1b[31mb").stderr.splitlines()) == 1


def test_no_run_is_no_mistake(charlm):
    result = charlm("runs")

    assert (result.code, result.stdout) == (0, "")
    assert result.stderr == (
        "charlm: note: no run in runs; train one with: charlm train --config quickstart\n"
    )


def test_what_a_removal_left_is_no_run(charlm, trained):
    trained.rename(trained.with_name(".tmp-trash-0123abcd-tiny"))

    assert charlm("runs").stdout == ""
    assert charlm("sample").code == 4


def test_nothing_in_a_run_is_followed_or_waited_for(charlm, trained, tmp_path):
    (trained / "metrics.jsonl").unlink()
    os.mkfifo(trained / "metrics.jsonl")
    (trained / "elsewhere").symlink_to(tmp_path)

    assert rows(charlm("runs"))[1][-1] == "stopped"


def test_runs_are_removed_with_all_their_files(charlm, three):
    outside = three.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (three / "tiny" / "samples").mkdir(exist_ok=True)
    (three / "tiny" / "samples" / "link").symlink_to(outside)

    result = charlm("runs", "rm", "tiny", "runs/stopped", "runs/tiny/", "-y")

    assert (result.code, result.stdout) == (0, "")
    assert result.stderr == "removed runs/tiny\nremoved runs/stopped\n"
    assert os.listdir(three) == ["broken"]
    assert (outside / "kept").read_text() == "kept"


@pytest.mark.parametrize(("answer", "left"), [("n\n", ["tiny"]), ("y\n", [])])
def test_it_asks_first(charlm, trained, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text, err: answer == "y\n")

    result = charlm("runs", "rm", "tiny")

    assert result.code == 0
    assert "runs/tiny" in result.stdout
    assert os.listdir("runs") == left


def test_ctrl_c_at_the_question_removes_nothing(charlm, trained, monkeypatch):
    def interrupted(text, err):
        raise typer.Abort

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", interrupted)

    result = charlm("runs", "rm", "tiny")

    assert (result.code, result.stderr) == (130, "\nnothing was removed\n")
    assert os.listdir("runs") == ["tiny"]


def make_foreign(run):
    (run / "notes.txt").write_text("mine")


def make_link(run):
    run.rename("elsewhere")
    run.symlink_to(Path("elsewhere").resolve())


def make_current(run):
    os.chdir(run)


def make_other(run):
    for path in sorted(run.rglob("*"), reverse=True):
        if path.name != "config.yaml":
            path.rmdir() if path.is_dir() else path.unlink()


def make_expert(run):
    Path("mix/experts").mkdir(parents=True)
    shutil.copy(run / "config.yaml", "mix")
    run.rename("mix/experts/tiny")


def make_needed(run):
    Path("runs/mix/checkpoints").mkdir(parents=True)
    Path("runs/mix/config.yaml").write_text(
        "model: {type: mixture, experts: {gpt: {run: runs/tiny}}}\n"
    )


@pytest.mark.parametrize(
    ("make", "name", "code", "said"),
    [
        (lambda run: None, "nothing", 4, "nothing: not found; runs there: runs/tiny"),
        (lambda run: None, ".", 4, ".: is not a run (no config.yaml); train one first"),
        (
            make_foreign,
            "tiny",
            4,
            "runs/tiny: holds what charlm did not write: notes.txt; move it away first",
        ),
        (
            make_link,
            "tiny",
            2,
            "runs/tiny: is a symbolic link; name the run that it points to",
        ),
        (make_current, ".", 2, ".: is the current folder; change to another"),
        (make_other, "tiny", 4, "runs/tiny: is not a run (no checkpoints); remove it by hand"),
        (make_expert, "mix/experts/tiny", 2, "mix; remove that run as a whole"),
        (
            make_needed,
            "tiny",
            4,
            "runs/tiny: is read by runs/mix, as its expert gpt; remove that run too, or keep both",
        ),
    ],
)
def test_what_is_no_run_or_is_needed_is_not_removed(charlm, trained, make, name, code, said):
    make(trained)
    before = sorted(Path().rglob("*"))

    result = charlm("runs", "rm", "-y", name)

    assert result.code == code
    assert result.error.endswith(said)
    assert sorted(Path().rglob("*")) == before


def test_without_a_terminal_it_does_not_ask(refused, trained):
    assert refused(2, "runs", "rm", "tiny") == [
        "--yes: missing, and there is no terminal to ask on; add it"
    ]


def test_one_that_may_not_be_removed_keeps_all(charlm, three):
    make_foreign(three / "stopped")

    assert charlm("runs", "rm", "-y", "tiny", "stopped").code == 4
    assert len(os.listdir(three)) == 3


def test_a_mixture_is_removed_with_its_experts(charlm, tiny):
    steps = "train: {max_steps: 2, warmup_steps: 0, batch_size: 2}"
    gpt = f"{{model: {{type: gpt, block_size: 8, n_layer: 1, n_head: 1, n_embd: 8}}, {steps}}}"
    experts = f"{{few: {{model: {{type: ngram, order: 2}}}}, gpt: {gpt}}}"
    tiny.write_text(f"data: {{source: text.txt}}\nmodel: {{type: mixture, experts: {experts}}}\n")
    assert charlm("train", "-c", "tiny.yaml", "-q").code == 0

    assert charlm("runs", "rm", "-y", "tiny").code == 0
    assert os.listdir("runs") == []


def test_a_mixture_and_its_expert_are_removed_together(charlm, trained):
    make_needed(trained)

    assert charlm("runs", "rm", "-y", "tiny", "mix").code == 0
    assert os.listdir("runs") == []


def table(result):
    assert (result.code, result.stderr) == (0, "")
    return list(csv.DictReader(io.StringIO(result.stdout)))


def test_metrics_are_exported_one_row_for_each_step(charlm, trained):
    log = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]

    rows = table(charlm("runs", "export", "tiny"))

    assert list(rows[0]) == [
        *("step", "seconds", "train_loss_nats", "learning_rate", "grad_norm"),
        *("chars_per_second", "val_loss_nats"),
    ]
    assert [int(row["step"]) for row in rows] == list(range(7))
    names = {
        "loss_nats": "train_loss_nats",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
    }
    for record in log:
        row = rows[record["step"]]
        if record["kind"] == "train":
            assert {key: float(row[name]) for key, name in names.items()} == {
                key: record[key] for key in names
            }
        if record["kind"] == "eval":
            assert float(row["val_loss_nats"]) == record["loss_nats"]
            assert float(row["seconds"]) == record["seconds"]
    evaluated = [int(row["step"]) for row in rows if row["val_loss_nats"]]
    assert evaluated == [record["step"] for record in log if record["kind"] == "eval"]
    assert rows[0]["train_loss_nats"] == ""


def test_metrics_are_exported_as_json_lines(charlm, trained):
    rows = table(charlm("runs", "export"))
    result = charlm("runs", "export", "--format", "jsonl", "-o", "-")

    objects = [json.loads(line) for line in result.stdout.splitlines()]

    assert [{k: v for k, v in row.items() if v} for row in rows] == [
        {key: str(value) for key, value in one.items()} for one in objects
    ]


def test_metrics_are_exported_to_a_file(charlm, trained):
    shown = charlm("runs", "export", "tiny").stdout
    result = charlm("runs", "export", "tiny", "-o", "metrics.csv")

    assert (result.code, result.stdout) == (0, "")
    assert result.stderr == "wrote 7 rows to metrics.csv\n"
    assert Path("metrics.csv").read_text() == shown


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("runs/tiny/metrics.jsonl", "inside the run runs/tiny"),
        ("text.txt", "belongs to the text text.txt"),
    ],
)
def test_an_export_writes_over_no_run_and_no_text(charlm, trained, place, what):
    before = Path(place).read_bytes()

    result = charlm("runs", "export", "tiny", "-o", place)

    assert (result.code, result.error) == (2, f"--out {place}: {what}; choose another place")
    assert Path(place).read_bytes() == before


def test_a_damaged_log_is_not_exported(charlm, trained):
    (trained / "metrics.jsonl").write_text('{"kind": "train", "loss_nats": 1}\n')

    result = charlm("runs", "export", "tiny", "-o", "metrics.csv")

    assert result.code == 4
    assert result.error.startswith("runs/tiny/metrics.jsonl:1: not a record of charlm")
    assert not Path("metrics.csv").exists()


def test_a_run_without_a_log_says_so(charlm, trained):
    (trained / "metrics.jsonl").unlink()

    result = charlm("runs", "export", "tiny")

    assert (result.code, result.stdout.count("\n")) == (4, 1)
    assert "cannot be read: No such file" in result.error


def test_a_run_that_is_asked_to_save_saves_after_its_step(charlm, trained):
    run = RunFolder(trained)
    steps = iter(range(1000))
    asked = threading.Thread(target=lambda: answers.append(ask_to_save(run, 60.0)))
    answers = []

    def on_record(record):
        if record.kind == "train" and next(steps) == 1:
            asked.start()
            ends = time.monotonic() + 30
            while not run.request_path.exists() and time.monotonic() < ends:
                time.sleep(0.001)

    train(resume=True, out=trained, train={"max_steps": 14, "eval_every": 100}, on_record=on_record)
    asked.join()

    saved = [r["step"] for r in read_metrics(run.metrics_path) if r["kind"] == "save"]
    assert answers == [True]
    assert saved[-2:] == [8, 14]
    assert not run.request_path.exists()


def test_a_run_that_nobody_trains_is_not_asked_to_save(charlm, trained):
    refused = charlm("runs", "save", "runs/tiny")

    assert refused.code == 2
    assert refused.error == "runs/tiny: is not being trained; what it has is saved"


def test_a_run_that_has_not_heard_the_request_keeps_it(charlm, trained):
    with folder_lock(trained):
        asked = charlm("runs", "save", "runs/tiny", "--wait", "0")

    assert (asked.code, "has not heard it yet" in asked.stderr) == (0, True)
    assert RunFolder(trained).request_path.exists()
