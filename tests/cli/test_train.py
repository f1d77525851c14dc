import contextlib
import io
import json
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from charlm.cli.training_bar import TrainingBar
from charlm.cli.training_output import broken_plan
from charlm.config import load_config
from charlm.errors import MachineError
from charlm.runs import RunFolder
from charlm.runs.metrics import read_metrics
from charlm.runs.mixture import Fitted
from charlm.runs.records import CompileRecord, EvalRecord, TrainRecord, TuneRecord
from charlm.storage import folder_lock
from charlm.training import plan
from charlm.training.plan import Size

TRAIN = ("train", "--config", "tiny.yaml")


def test_a_tiny_run_trains_and_says_what_came_of_it(charlm, tiny):
    result = charlm(*TRAIN)

    assert result.code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith("validation loss  3.")
    assert first.endswith(" bits per character, step 6)")
    assert second.startswith("reached          past uniform (3.4340), short of ")
    assert result.stderr.splitlines()[0] == (
        "text   text.txt: 2,322 train, 258 val characters; 31 symbols"
    )
    assert result.stderr.splitlines()[-1].endswith("charlm sample --run runs/tiny")
    assert [line.split()[1] for line in result.stderr.splitlines() if line.startswith("step")] == [
        "0",
        "3",
        "6",
    ]


def test_it_says_when_gradients_are_worked_out_by_hand(charlm, tiny):
    result = charlm(*TRAIN, "train.gradients=by_hand")

    assert result.code == 0
    (device,) = [line for line in result.stderr.splitlines() if line.startswith("device")]
    assert device.endswith("float32, gradients by hand")


PLANNED = ("train.optimizer=muon", "train.plan=true")


@pytest.fixture
def two_sizes(monkeypatch):
    """Sizes as tiny as the text, the second of which any machine has time for."""
    sizes = (Size(0, 1, 1, 8, 4, 2, 1e-2), Size(1, 2, 2, 16, 4, 3, 2e-2))
    monkeypatch.setattr(plan, "SIZES", sizes)


@pytest.mark.usefixtures("two_sizes", "tiny")
def test_minutes_are_planned_and_the_run_keeps_its_plan(charlm):
    result = charlm(*TRAIN, *PLANNED, "train.learning_rate=5e-3", "--minutes", "0.02")

    assert result.code == 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("plan")]
    assert line.startswith("plan   2 layers of 16 channels, dropout ")
    config = load_config("runs/tiny/config.yaml")
    assert (config.model.n_layer, config.model.n_embd, config.model.n_head) == (2, 16, 2)
    assert (config.train.batch_size, config.train.learning_rate) == (3, 5e-3)

    again = charlm(*TRAIN, *PLANNED, "train.learning_rate=5e-3", "--minutes", "0.03", "--resume")
    assert again.code == 0, again.stderr
    assert "plan   " not in again.stderr
    assert load_config("runs/tiny/config.yaml").model == config.model

    other = charlm(*TRAIN, *PLANNED, "model.n_layer=1", "--minutes", "0.04", "--resume")
    assert other.code != 0
    assert "model.n_layer: the configuration says 1" in other.stderr

    kept = Path("runs/tiny/config.yaml").read_text()
    conflict = charlm(*TRAIN, *PLANNED, "train.micro_batch_size=2", "--minutes", "0.04", "--resume")
    assert conflict.code == 2
    assert "as planned" in conflict.error
    assert "micro_batch_size 2 does not divide batch_size 3" in conflict.error
    assert Path("runs/tiny/config.yaml").read_text() == kept


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("size", "code", "message"),
    [
        (Size(0, 1, 1, 8, 99, 2, 1e-2), 3, "needs 100"),
        (Size(0, 10**6, 1, 512, 4, 2, 1e-2), 2, "training needs about"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_it_begins(
    charlm, monkeypatch, size, code, message
):
    monkeypatch.setattr(plan, "SIZES", (size,))
    monkeypatch.setattr(plan, "seconds_a_step", lambda *_: 1.0)
    Path("text.txt").write_text(Path("text.txt").read_text() * 30)
    result = charlm(*TRAIN, *PLANNED, "--minutes", "0.02", "data.val_fraction=0.001")
    assert result.code == code, result.stderr
    assert message in result.error
    assert not Path("runs").exists()


def test_the_run_folder_is_complete(charlm, tiny):
    charlm(*TRAIN, "--out", "here")

    names = {path.name for path in Path("here").iterdir()}
    assert names >= {"config.yaml", "tokenizer.json", "tokens", "metrics.jsonl", "checkpoints"}
    assert not list(Path("here").rglob(".tmp-*"))
    assert not Path("runs").exists()


def test_runs_take_the_next_free_name(charlm, tiny):
    for _ in range(3):
        assert charlm(*TRAIN, "-q").code == 0

    assert sorted(path.name for path in Path("runs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]


def test_the_configuration_may_name_the_folder_and_the_option_wins(charlm, tiny):
    assert charlm(*TRAIN, "-q", "run.out=1.10").code == 0
    tiny.write_text(tiny.read_text() + "  out: other\n")
    assert charlm(*TRAIN, "-q", "--out", "mine").code == 0

    assert Path("1.10/config.yaml").is_file()
    assert Path("mine/config.yaml").is_file()
    assert not Path("other").exists()


def test_quiet_leaves_the_result_and_nothing_else(charlm, tiny):
    result = charlm(*TRAIN, "-q")

    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith("validation loss ")


def test_json_is_one_object_with_the_same_loss_as_the_records(charlm, tiny):
    result = charlm(*TRAIN, "--json")

    assert (result.code, result.stderr) == (0, "")
    summary = json.loads(result.stdout)
    assert list(summary) == [
        "run",
        "step",
        "loss_nats",
        "best_loss_nats",
        "best_step",
        "counted_bigram_nats",
        "seconds",
        "baselines",
        "reached",
    ]
    records = map(json.loads, Path("runs/tiny/metrics.jsonl").read_text().splitlines())
    losses = [record["loss_nats"] for record in records if record["kind"] == "eval"]
    assert summary["run"] == "runs/tiny"
    assert summary["step"] == 6
    assert summary["loss_nats"] == losses[-1]
    assert summary["best_loss_nats"] == min(losses)


def test_without_a_validation_part_there_is_no_loss_to_report(charlm, tiny):
    plain = charlm(*TRAIN, "data.val_fraction=0")
    as_json = charlm(*TRAIN, "data.val_fraction=0", "--json")

    assert "no validation part to score" in plain.stdout
    summary = json.loads(as_json.stdout)
    assert summary["loss_nats"] is summary["best_step"] is summary["counted_bigram_nats"] is None


def test_print_config_prints_what_would_run_and_makes_nothing(charlm, tiny):
    options = ("train.max_steps=5", "--seed", 3, "--minutes", 2, "--device", "cpu")
    result = charlm(*TRAIN, *options, "--print-config")

    Path("resolved.yaml").write_text(result.stdout)
    config = load_config("resolved.yaml")

    assert (result.code, result.stderr) == (0, "")
    assert not Path("runs").exists()
    assert config == load_config(
        "tiny.yaml", ["train.max_steps=5", "run.seed=3", "train.minutes=2", "run.device=cpu"]
    )


def test_an_option_wins_over_the_file(charlm, tiny):
    tiny.write_text(tiny.read_text() + "  seed: 1\n")

    assert "\n  seed: 2\n" in charlm(*TRAIN, "--seed", 2, "--print-config").stdout


def test_a_preset_trains_under_its_own_name(charlm, tiny):
    small = ["data.source=text.txt", "train.max_steps=1", "train.warmup_steps=0", "run.device=cpu"]

    assert charlm("train", "-c", "bigram", "-q", *small, "model.block_size=8").code == 0
    assert Path("runs/bigram/config.yaml").is_file()


def test_the_configuration_is_asked_for(charlm, tiny):
    result = charlm("train")

    assert result.code == 2
    assert result.error.startswith("--config: missing; name a YAML file or a preset, such as")


def test_a_finished_run_goes_on_with_more_steps(charlm, trained):
    result = charlm("train", "--resume", "--out", trained, "train.max_steps=9", "--json")

    assert json.loads(result.stdout)["step"] == 9
    assert "nothing was left" not in result.stderr


def test_resume_goes_on_with_what_another_process_left_before_the_lock_was_free(
    charlm, trained, monkeypatch
):
    @contextlib.contextmanager
    def lock_after_another(folder):
        monkeypatch.setattr("charlm.lifecycle.start.folder_lock", folder_lock)
        assert charlm("train", "--resume", "--out", folder, "train.max_steps=8", "-q").code == 0
        with folder_lock(folder):
            yield

    monkeypatch.setattr("charlm.lifecycle.start.folder_lock", lock_after_another)

    assert charlm("train", "--resume", "--out", trained, "sample.top_k=3", "-q").code == 0

    config = RunFolder(trained).config
    assert (config.train.max_steps, config.sample.top_k) == (8, 3)


def test_resume_takes_the_newest_run(charlm, trained):
    result = charlm("train", "--resume")

    assert result.code == 0
    assert "continuing from step 6" in result.stderr
    assert "runs/tiny" in result.stderr


def test_resume_without_a_run_says_how_to_make_one(charlm):
    result = charlm("train", "--resume")

    assert result.code == 4
    assert "train one first, for example with --config quickstart" in result.error


@pytest.mark.parametrize("override", ["model.n_layer=3", "data.unit=bytes", "train.batch_size=8"])
def test_resume_refuses_another_run_in_the_old_folder(charlm, trained, override):
    result = charlm("train", "--resume", "--out", trained, override)

    assert result.code == 4
    assert override.split("=")[0] in result.error
    assert result.error.endswith("start a new run for a change")


def test_resume_can_show_its_configuration(charlm, trained):
    result = charlm("train", "--resume", "--print-config", "train.max_steps=9")

    assert (result.code, result.stderr) == (0, "")
    assert "  max_steps: 9\n" in result.stdout


def test_a_budget_of_minutes_takes_the_place_of_max_steps(charlm, tiny):
    result = charlm(*TRAIN, "--minutes", "0.001", "train.max_steps=1000000000", "--json")

    assert result.code == 0
    assert json.loads(result.stdout)["step"] < 1000


def test_text_may_come_from_standard_input(charlm, tiny, monkeypatch):
    with Path("text.txt").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        result = charlm(*TRAIN, "data.source=-", "-q")

    assert result.code == 0
    assert charlm("train", "--resume", "train.max_steps=7", "-q").code == 0


@pytest.mark.parametrize("name", ["a b", "new\nline", "é☃", "--dash"])
def test_any_name_serves_for_a_text_and_a_run(charlm, tiny, name):
    Path("text.txt").rename(f"{name}.txt")

    trained = charlm(*TRAIN, "-q", f"data.source={name}.txt", f"--out={name}")
    resumed = charlm("train", "--resume", f"--out={name}", "train.max_steps=7", "-q")

    assert (trained.code, trained.stderr) == (0, "")
    assert resumed.code == 0
    assert charlm("sample", f"--run={name}", "--max-new-chars", 3).code == 0


def test_the_name_of_a_text_need_not_be_utf_8(charlm, tiny):
    Path("text.txt").rename("h\udcff.txt")

    assert charlm(*TRAIN, "-q", "data.source=h\udcff.txt", "--out", "run").code == 0
    assert charlm("train", "--resume", "--out", "run", "train.max_steps=7", "-q").code == 0


def test_samples_are_written_and_shown_where_they_are_asked_for(charlm, tiny):
    result = charlm(*TRAIN, "train.sample_every=2", "train.sample_chars=5", "sample.prompt=the")

    written = sorted(Path("runs/tiny/samples").iterdir())
    texts = [path.read_text() for path in written]
    assert [path.name for path in written] == ["step-2.txt", "step-4.txt", "step-6.txt"]
    assert all(text.startswith("the") and len(text) == 8 for text in texts)
    assert all(f" {text.strip()!r}\n" in result.stderr for text in texts)


def test_the_loser_of_a_race_for_a_folder_leaves_it_to_the_winner(charlm, tiny):
    from charlm.storage import folder_lock

    Path("mine").mkdir()
    with folder_lock(Path("mine")):
        Path("mine/.tmp-new-1234abcd-tokens").mkdir()
        result = charlm(*TRAIN, "--out", "mine")

        assert Path("mine/.tmp-new-1234abcd-tokens").is_dir()

    assert result.code == 5
    assert "is writing there; wait for it or choose another --out" in result.error


def test_too_little_time_for_a_step_is_said(charlm, tiny):
    result = charlm(*TRAIN, "--minutes", "0.0000001")

    assert result.code == 0
    assert "the budget ended before the first step" in result.stderr


@pytest.mark.parametrize("times", [1, 2])
def test_a_start_that_was_killed_before_it_was_a_run_is_made_again(charlm, tiny, times):
    """However often: looking at the lock leaves the sign of whose folder this is."""
    for name in ("tokens", "checkpoints", ".tmp-new-0123abcd-tokens"):
        Path("run", name).mkdir(parents=True)
    for name in (".lock", ".lock-holder.json"):
        Path("run", name).touch()
    for _ in range(times - 1):
        assert charlm("train", "-c", "tiny.yaml", "--out", "run", "lr=1").code == 2
        from charlm.lifecycle.begin import check_new_folder

        check_new_folder(Path("run"))

    assert charlm("train", "-c", "tiny.yaml", "--out", "run", "-q").code == 0


def test_what_fails_late_leaves_what_is_not_its_own(charlm, tiny, monkeypatch):
    """The folder was moved away while it trained, and another took its name."""
    from charlm.training.gradients import GradientLearner

    step = GradientLearner.step

    def moved(self):
        record = step(self)
        if record.step == 4:
            Path("x").rename("kept")
            Path("x/photos").mkdir(parents=True)
            Path("x/thesis.txt").write_text("precious")
        return record

    monkeypatch.setattr(GradientLearner, "step", moved)

    assert charlm("train", "-c", "tiny.yaml", "--out", "x", "-q").code == 5

    assert Path("x/thesis.txt").read_text() == "precious"
    assert Path("x/photos").is_dir()
    assert Path("kept/checkpoints/step-3").is_dir()


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples", "config.yaml", "checkpoints"])
def test_nothing_is_written_through_a_link_in_a_run(charlm, trained, name):
    own = trained / name
    if own.exists():
        own.rename("elsewhere")
    else:
        Path("elsewhere").mkdir()
    own.symlink_to(Path("elsewhere").resolve())
    (trained / ".lock-holder.json").symlink_to(Path("text.txt").resolve())
    before = Path("text.txt").read_text()

    result = charlm("train", "--resume", "train.max_steps=8", "train.sample_every=1")

    assert (result.code, Path("text.txt").read_text()) == (4, before)
    assert f"{name}: is a link; put a " in result.error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
@pytest.mark.parametrize("name", ["metrics.jsonl", "tokenizer.json"])
def test_a_pipe_in_a_run_is_not_waited_for(charlm, trained, name):
    (trained / name).unlink()
    os.mkfifo(trained / name)

    assert charlm("train", "--resume", "train.max_steps=8").code == 4
    assert charlm("verify").code == 4


def test_a_run_that_failed_before_its_first_step_can_be_begun_again(charlm, tiny, monkeypatch):
    command = ("train", "-c", "tiny.yaml", "--out", "runs/new", "-q")

    def fail(*_):
        raise MachineError("run.compile", "failed (odd)", "set run.compile=false")

    with monkeypatch.context() as broken:
        broken.setattr("charlm.training.loop.TrainingLoop.save", fail)
        assert charlm(*command).code == 5
        assert not Path("runs").exists()

        def mine(loop, *_):
            (loop.run.path / "samples").mkdir()
            (loop.run.path / "samples/mine.txt").touch()
            (loop.run.path / "checkpoints/mine").mkdir()
            fail()

        broken.setattr("charlm.training.loop.TrainingLoop.save", mine)
        assert charlm(*command).code == 5
        left = {str(path.relative_to("runs/new")) for path in Path("runs/new").rglob("*")}
        assert left == {"samples", "samples/mine.txt", "checkpoints", "checkpoints/mine"}
        shutil.rmtree("runs/new")

        broken.undo()
        broken.setattr("charlm.training.gradients.GradientLearner.step", fail)
        assert charlm(*command).code == 5
        assert Path("runs/new/checkpoints/step-0").is_dir()  # which can be gone on from

    assert charlm("train", "--resume", "--out", "runs/new", "-q").code == 0


def test_a_name_of_two_lines_is_shown_in_one(charlm, tiny):
    name = "a\nb.txt"
    Path("text.txt").rename(name)

    said = charlm("train", "-c", "tiny.yaml", f"data.source={name}", "--out", "new").stderr

    assert "text   a\\nb.txt: 2,322 train" in said


def test_a_finished_schedule_that_is_made_longer_is_noted(charlm, trained):
    resume = ("train", "--resume", "--out", trained, "-q")
    shutil.copytree(trained, "runs/again")
    keys = ("train.schedule=constant", "train.learning_rate=0.000232")

    rises = charlm(*resume, "train.max_steps=12").stderr
    more = charlm(*resume, "train.max_steps=13").stderr
    steady = charlm(*resume[:3], "runs/again", "-q", "train.max_steps=12", *keys).stderr
    rates = [
        r["learning_rate"]
        for r in read_metrics(Path("runs/again/metrics.jsonl"))
        if r["kind"] == "train"
    ]

    assert (
        "note: the learning rate rises from 0.00023 to 0.00069, because the schedule is "
        f"longer now; to keep the rate, set {keys[0]} and {keys[1]}"
    ) in rises
    assert "learning rate rises" not in more + steady
    assert rates[5:] == pytest.approx([0.000232] * 7, rel=0.01)


def test_a_text_of_another_python_is_not_asked_back(charlm, tiny, monkeypatch):
    text = Path("text.txt").read_bytes()
    monkeypatch.setattr("charlm.text.sources._python_docs", lambda: io.BytesIO(text))
    assert charlm(*TRAIN, "-q", "data.source=python-docs").code == 0
    before = Path("runs/tiny/tokens/MANIFEST.json").read_bytes()

    monkeypatch.setattr("charlm.text.sources._python_docs", lambda: io.BytesIO(text + b"Q?"))
    result = charlm("train", "--resume", "train.max_steps=7")

    assert result.code == 0, result.stderr
    (note,) = [line for line in result.stderr.splitlines() if "another python-docs" in line]
    version = ".".join(map(str, sys.version_info[:3]))
    assert note.endswith(
        f"Python {version} has another python-docs than this run, which continues with its own copy"
    )
    assert Path("runs/tiny/tokens/MANIFEST.json").read_bytes() == before


def test_a_dry_run_checks_all_and_keeps_nothing(charlm, tiny):
    before = sorted(Path().rglob("*"))

    result = charlm(*TRAIN, "--dry-run")

    assert result.code == 0
    text, model, device, run, length = result.stdout.splitlines()
    assert text == "text   text.txt: 2,322 train, 258 val characters; 31 symbols"
    assert model.startswith("model  gpt (modern): ")
    assert (device[:11], run) == ("device cpu ", "run    runs/tiny")
    assert re.fullmatch(
        r"length 6 steps, about [\d.]+ KiB of memory and [\d.]+ KiB a checkpoint", length
    )
    assert result.stderr == "dry run: nothing was trained or kept\n"
    assert sorted(Path().rglob("*")) == before
    assert "\nlength 1 minute, " in charlm(*TRAIN, "--dry-run", "--minutes", "1").stdout


@pytest.mark.parametrize(
    ("preset", "changes", "length"),
    [
        ("ngram", [], "1 step,"),
        ("gpt", ["--minutes", "1"], "1 minute,"),
        ("gpt", ["--minutes", "2"], "2 minutes,"),
        ("mixture", ["train.max_steps=7", "model.experts.gpt.train.max_steps=300"], "301 steps,"),
    ],
)
def test_a_dry_run_says_how_long_the_run_would_be(charlm, preset, changes, length):
    Path("text.txt").write_text("words of a text " * 100)
    result = charlm("train", "-c", preset, "data.source=text.txt", *changes, "--dry-run")

    assert "about 0 bytes" not in result.stdout
    assert next(x for x in result.stdout.splitlines() if x.startswith("length ")).startswith(
        f"length {length}"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--init-from", "nothing"], 4, "nothing"),
        (["--out", "text.txt"], 2, "text.txt: is a file; choose another --out"),
        (["data.source=no.txt"], 3, "no.txt"),
        (["--resume"], 2, "--resume with --dry-run: there is no new run to check"),
    ],
)
def test_a_dry_run_refuses_what_training_refuses(refused, arguments, code, said):
    (line,) = refused(code, *TRAIN, "--dry-run", *arguments)

    assert said in line


def test_new_data_is_allowed_only_with_resume(refused):
    (line,) = refused(2, *TRAIN, "--allow-new-data")

    assert line == "--allow-new-data: only a run that is resumed can get new data; add --resume"


def test_resume_with_a_configuration_takes_the_newest_run_of_it(charlm, trained):
    for age, name in ((10, "tiny-2"), (0, "other"), (0, "tiny-big")):
        shutil.copytree(trained, trained.with_name(name))
        then = time.time() - age
        os.utime(trained.with_name(name) / "metrics.jsonl", (then, then))
    os.utime(trained / "metrics.jsonl", (time.time() - 60,) * 2)

    assert "run    runs/tiny-2\n" in charlm(*TRAIN, "--resume").stderr
    assert "run    runs/other\n" in charlm(*TRAIN, "--resume", "--out", "other").stderr
    assert "run    runs/other\n" in charlm(*TRAIN, "--resume", "run.out=other").stderr


def test_resume_with_a_configuration_that_has_no_run_names_the_runs(refused, trained):
    (line,) = refused(4, "train", "-c", "gpt", "--resume")

    assert line == "runs/: no run named gpt or gpt-N there; name another with --out: runs/tiny"


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (700, 60.0, None),
        (14, 60.0, "about 739 updates were planned and 14 done"),
        (739, 89.0, "the run took 89 s instead of 60"),
        (739, 63.4, "the run took 63.4 s instead of 60"),
        (
            14,
            89.0,
            "about 739 updates were planned and 14 done, and the run took 89 s instead of 60",
        ),
    ],
)
def test_a_plan_that_could_not_be_kept_is_said_to(done, seconds, said):
    loop = SimpleNamespace(
        clock=SimpleNamespace(budget=60.0),
        state=SimpleNamespace(seconds=seconds),
        learner=SimpleNamespace(updates=lambda: {"": done}),
    )
    found = broken_plan(SimpleNamespace(plans={"": SimpleNamespace(updates=739)}), loop)

    assert (found and found.partition(": ")[0]) == said


def test_a_short_budget_and_the_time_of_its_run_are_told_apart():
    loop = SimpleNamespace(
        clock=SimpleNamespace(budget=3.0),
        state=SimpleNamespace(seconds=3.3),
        learner=SimpleNamespace(updates=dict),
    )

    assert str(broken_plan(SimpleNamespace(plans={}), loop)).startswith(
        "the run took 3.3 s instead of 3:"
    )


def training_bar():
    return TrainingBar(
        SimpleNamespace(
            clock=SimpleNamespace(budget=None),
            config=SimpleNamespace(model=SimpleNamespace(kind="mixture")),
            tokenizer=SimpleNamespace(unit="chars"),
            job=SimpleNamespace(),
            learner=SimpleNamespace(total_steps=9),
            state=SimpleNamespace(step=0),
        )
    )


def test_a_terminal_sees_how_long_compiling_takes_and_a_file_one_line(monkeypatch, capsys):
    monkeypatch.setattr("charlm.cli.training_bar.TICK", 0.01)
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    record = CompileRecord(expected=9.0, cached=True)
    for terminal in False, True:
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        bar, drawn = training_bar(), threading.Event()
        draw = bar.bar.set_postfix_str
        bar.bar.set_postfix_str = lambda text, draw=draw, drawn=drawn: (draw(text), drawn.set())
        bar.show(record)
        with bar.compiling(record):
            if terminal:
                assert drawn.wait(200)
        bar.close()
        said = capsys.readouterr().err

        assert "compiling the model (cached, about 9 s)\n" in said
        assert ("compiling, 0 s of about 9" in said) is terminal
        assert terminal or said.count("\n") == 1


def test_the_first_join_is_not_shown_with_the_training_loss_of_an_expert(capsys):
    bar = training_bar()
    fitted = Fitted({"a": 1.0}, 1.0, 1.5, {"a": 1.5}, 100, {}, 0.0, 0.0)
    bar.show(TrainRecord(step=8, loss_nats=3.25, seconds=1.0, expert="a"))
    bar.show(TuneRecord(fitted=fitted))
    bar.show(EvalRecord(step=0, chars=9, loss_nats=1.75, best=False, seconds=1.0))
    bar.close()

    assert "step 0  train 1.5000  val 1.7500 nats" in capsys.readouterr().err


def test_it_says_how_many_files_a_text_has(charlm, tiny):
    Path("texts").mkdir()
    for name in ("p1", "p2", "p10"):
        Path("texts", name).write_text("words of a text " * 20)

    result = charlm(
        "train", "-c", "tiny.yaml", "data.source=texts", "train.max_steps=2", "--out", "r"
    )

    assert "text   texts, 3 files: 865 train, 97 val characters; 12 symbols\n" in result.stderr


def test_a_sample_of_an_expert_has_its_name(charlm, tiny):
    gpt = "model: {type: gpt, block_size: 8, n_layer: 1, n_head: 1, n_embd: 8}"
    steps = "train: {max_steps: 2, warmup_steps: 0, batch_size: 2, sample_every: 1}"
    experts = f"{{few: {{model: {{type: ngram, order: 2}}}}, small: {{{gpt}, {steps}}}}}"
    tiny.write_text(f"data: {{source: text.txt}}\nmodel: {{type: mixture, experts: {experts}}}\n")

    said = charlm("train", "-c", "tiny.yaml").stderr

    assert " small alone: '" in said


def test_the_lowest_loss_is_the_best_even_that_of_a_first_join(capsys):
    bar = training_bar()
    bar.show(EvalRecord(step=0, chars=9, loss_nats=1.75, best=False, seconds=1.0))
    bar.show(EvalRecord(step=1, chars=9, loss_nats=1.80, best=True, seconds=2.0))
    bar.show(EvalRecord(step=2, chars=9, loss_nats=1.70, best=True, seconds=3.0))
    bar.close()

    ends = [line.split()[-1] for line in capsys.readouterr().err.splitlines()]
    assert ends == ["s", "s", "best"]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            TRAIN,
            "at step 6; to train on, raise the number: charlm train --resume train.max_steps=12",
        ),
        ((*TRAIN, "--minutes", "0.01"), "; to train on, raise train.minutes=0.01"),
        (
            (*TRAIN, "train.patience=1", "train.eval_every=1", "train.learning_rate=3"),
            "patience=1; ",
        ),
        (
            ("train", "--config", "ngram", "data.source=text.txt"),
            "; a model of this type learns in one step",
        ),
    ],
)
def test_a_finished_run_that_is_resumed_has_nothing_left_to_do(charlm, tiny, options, advice):
    assert charlm(*options, "--out", "run").code == 0

    again = charlm("train", "--resume", "--out", "run", "-q")

    assert again.code == 0
    assert "charlm: note: nothing was left to do: this run was finished at step " in again.stderr
    assert advice in again.stderr


def test_a_run_that_is_resumed_with_less_time_than_it_took_blames_no_other_program(charlm, tiny):
    assert charlm(*TRAIN, "--out", "run").code == 0

    again = charlm("train", "--resume", "--minutes", "0.0001", "--out", "run", "-q")

    assert "nothing was left to do" in again.stderr
    assert "other programs" not in again.stderr
