import errno
import json
from pathlib import Path

import pytest
import torch

from charlm.config import load_config
from charlm.errors import CheckpointError, DataError, MachineError, UsageError
from charlm.lifecycle import begin
from charlm.lifecycle.begin import (
    check_new_folder,
    create_run,
    free_folder,
    new_folder_for_run,
    prepare_text,
)
from charlm.lifecycle.resume import commit_resume, open_run, resumed_config
from charlm.runs import RunFolder
from charlm.runs import state as module
from charlm.runs.state import drift, save_checkpoint
from charlm.storage import read_manifest
from charlm.storage.manifest import write_manifest
from tests.training.conftest import ignore, state_hash


@pytest.fixture
def finished(make_loop):
    loop = make_loop("train.save_every=2")
    list(loop.records())
    return loop


def test_the_best_and_the_two_newest_stay(make_loop):
    loop = make_loop("train.max_steps=9", "train.save_every=1", "train.learning_rate=1e-2")
    list(loop.records())
    run = RunFolder(loop.run.path)

    steps = {c.step for c in run.checkpoints.all()}

    assert steps == {8, 9, run.checkpoints.best().step}


def test_a_save_that_fails_leaves_the_older_checkpoints(finished, monkeypatch):
    run, before = finished.run, {c.step for c in finished.run.checkpoints.all()}

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_weights", fail)
    finished.state.step = 99
    with pytest.raises(MachineError, match="No space left on device; free some space"):
        save_checkpoint(
            run, finished.state, finished.learner.model, finished.learner.optimizers, b"{}"
        )

    assert {c.step for c in run.checkpoints.all()} == before
    assert not list(run.path.glob("checkpoints/.tmp-*"))


def test_saving_a_step_again_replaces_it(finished):
    finished.state.bad_evals = 42

    save_checkpoint(
        finished.run, finished.state, finished.learner.model, finished.learner.optimizers, b"{}"
    )

    last = finished.run.checkpoints.last()
    assert last.step == 6
    assert json.loads((last.path / "state.json").read_text())["bad_evals"] == 42
    assert not list(finished.run.path.glob("checkpoints/.tmp-*"))


def test_another_optimizer_is_refused(finished, make_loop):
    with pytest.raises(CheckpointError, match=r"train\.optimizer: .*'muon'.*'adamw'"):
        make_loop("train.optimizer=muon", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.n_layer=3", r"model\.n_layer: the configuration says 3, the run was made with 2"),
        ("data.source=-", r"data\.source: .*'-'.*'text\.txt'"),
        ("train.batch_size=8", r"train\.batch_size: .* 8.* 4"),
    ],
)
def test_what_would_make_it_another_run_is_refused_with_both_values(finished, change, message):
    with pytest.raises(CheckpointError, match=message):
        resumed_config(finished.run, None, [change])


def test_a_text_that_changed_is_refused_unless_allowed(finished, make_loop, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(text.read_text().replace("fox", "box"))

    with pytest.raises(DataError, match=r"text\.txt: changed .*allow_new_data"):
        make_loop(resume=True)


def test_a_text_that_is_gone_does_not_matter(finished, make_loop, tmp_path):
    (tmp_path / "text.txt").unlink()

    resumed = make_loop("train.max_steps=7", resume=True)
    list(resumed.records())

    assert resumed.state.step == 7


def test_a_state_without_a_field_is_refused(finished):
    folder = finished.run.checkpoints.path(6)
    state = json.loads((folder / "state.json").read_text())
    del state["best_step"]
    (folder / "state.json").write_text(json.dumps(state))
    manifest = read_manifest(folder)
    from charlm.storage.manifest import sha256_of

    manifest["files"]["state.json"] = {
        "size": (folder / "state.json").stat().st_size,
        "sha256": sha256_of(folder / "state.json"),
    }
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))

    with pytest.raises(CheckpointError, match="incomplete"):
        module.load_checkpoint(
            finished.run.checkpoints.last(), finished.learner.model, finished.learner.optimizers
        )


def test_resuming_passes_over_a_damaged_checkpoint_and_ends_alike(make_loop):
    loop = make_loop("train.save_every=2", "train.schedule=constant")
    list(loop.records())
    weights = loop.run.checkpoints.path(6) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    resumed = make_loop(resume=True)

    assert resumed.state.step == 4
    list(resumed.records())
    assert state_hash(resumed) == state_hash(loop)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(finished, make_loop):
    for checkpoint in finished.run.checkpoints.all():
        (checkpoint.path / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"'model\.safetensors' is missing"):
        make_loop(resume=True)


def test_loading_restores_the_whole_state(finished, make_loop):
    resumed = make_loop(resume=True)

    finished.state.metrics_bytes = resumed.state.metrics_bytes
    assert state_hash(resumed) == state_hash(finished)


def test_a_changed_environment_is_named(finished, monkeypatch):
    assert drift(finished.run.checkpoints.last(), finished.config) == []

    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)

    assert len(drift(finished.run.checkpoints.last(), finished.config)) == 1
    assert drift(finished.run.checkpoints.last(), finished.config)[0].endswith("now 77")


def test_checkpoints_newer_than_the_one_resumed_from_make_way(finished, make_loop):
    (finished.run.checkpoints.path(6) / "model.safetensors").write_bytes(b"damaged")
    config = resumed_config(finished.run, None, ["train.max_steps=5"])
    prepared = open_run(config, finished.run, ignore)
    assert prepared.checkpoint.step == 4

    commit_resume(prepared)

    assert finished.run.checkpoints.last().step == 4
    assert RunFolder(finished.run.path).config.train.max_steps == 5


def test_a_refused_resume_leaves_the_configuration_as_it_was(finished, monkeypatch):
    before = finished.run.config_path.read_bytes()
    for change, error in [
        ("run.device=cuda:99", MachineError),
        ("sample.prompt=\u00e9", DataError),
    ]:
        config = resumed_config(finished.run, None, [change])
        with pytest.raises(error):
            open_run(config, finished.run, ignore)

    assert finished.run.config_path.read_bytes() == before


def test_a_resume_says_what_it_changes(finished):
    config = resumed_config(finished.run, None, ["train.max_steps=9", "run.seed=5"])

    notes = open_run(config, finished.run, ignore).notes

    assert "changed from here on: train.max_steps 6 -> 9; run.seed 1337 -> 5" in notes


def test_a_resume_says_that_the_rate_was_lowered(finished):
    path = finished.run.checkpoints.last().path
    state = json.loads((path / "state.json").read_text())
    facts = read_manifest(path)
    (path / "MANIFEST.json").unlink()
    (path / "state.json").write_text(json.dumps(state | {"rate_factor": 0.25}))
    write_manifest(path, {key: facts[key] for key in facts if key not in ("format", "files")})

    notes = open_run(resumed_config(finished.run, None, []), finished.run, ignore).notes

    assert notes == ["steps were not finite: the learning rate is 0.25 of the configured one"]


def test_a_new_text_that_is_too_short_is_refused_before_the_old_one_goes(finished, tmp_path):
    (tmp_path / "text.txt").write_text("the")
    config = finished.run.config
    before = (finished.run.tokens_path / "ids.bin").read_bytes()

    with pytest.raises(DataError, match="too short: of its 3 characters"):
        open_run(config, finished.run, ignore, allow_new_data=True)

    assert (finished.run.tokens_path / "ids.bin").read_bytes() == before


def test_a_start_that_was_killed_can_be_made_again(tiny, tmp_path):
    config = load_config("tiny.yaml")
    text = prepare_text(config, ignore, ignore)
    out = tmp_path / "out"
    out.mkdir()
    create_run(config, out, text, ignore)
    (out / "config.yaml").unlink()  # killed just before its last write
    (out / ".lock-holder.json").write_text("{}")

    check_new_folder(out)
    with new_folder_for_run(out):
        create_run(config, out, text, ignore)

    assert (out / "config.yaml").is_file()


def test_two_starts_without_a_name_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = iter("aab")  # what both saw free at first
    monkeypatch.setattr(begin, "next_free_name", lambda name: Path("runs", next(names)))

    with free_folder("x") as one, free_folder("x") as other:
        assert (one, other) == (Path("runs/a"), Path("runs/b"))
        (one / "config.yaml").touch()

    assert sorted(path.name for path in Path("runs").iterdir()) == ["a"]


def test_a_users_own_files_are_no_leftovers(tmp_path):
    for name in (".tmp-notes.txt", ".lock-data", "tokens"):
        out = tmp_path / name.strip(".")
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(UsageError, match="is not empty and not a run"):
            check_new_folder(out)


def saved_where(run, change):
    """Change what the checkpoints of a run say about where they were saved."""
    for checkpoint in run.checkpoints.all():
        manifest = read_manifest(checkpoint.path)
        change(manifest["environment"])
        (checkpoint.path / "MANIFEST.json").write_text(json.dumps(manifest))


def as_before(run):
    """Make a run look like one of before recipes were counted and precision was settled."""
    run.config_path.write_text(run.config_path.read_text().replace("dtype: float32", "dtype: auto"))
    saved_where(run, lambda environment: environment.pop("recipe"))


def test_a_run_of_another_torch_is_resumed_and_said_to_be_not_bit_exact(make_loop):
    list(make_loop("train.max_steps=4").records())
    run = RunFolder(Path("run"))
    saved_where(run, lambda environment: environment.update(torch="2.14.1"))

    prepared = open_run(resumed_config(run, None, []), run, ignore)
    loop = make_loop("train.max_steps=6", resume=True)
    list(loop.records())

    assert prepared.notes == [f"not bit-exact: torch was 2.14.1, now {torch.__version__}"]
    assert loop.state.step == 6


def test_a_run_of_another_recipe_goes_on_and_is_told(finished):
    as_before(finished.run)
    run = finished.run

    prepared = open_run(resumed_config(run, None, []), run, ignore)

    assert prepared.notes == ["not bit-exact: recipe was 1, now 4"]


@pytest.mark.parametrize(("size", "notes"), [(1, ["not bit-exact: recipe was 2, now 4"]), (2, [])])
def test_a_run_whose_gradients_were_added_in_another_order_is_told(make_loop, size, notes):
    list(make_loop("train.max_steps=2", f"train.micro_batch_size={size}").records())
    run = RunFolder(Path("run"))
    saved_where(run, lambda environment: environment.update(recipe=2))

    assert open_run(resumed_config(run, None, []), run, ignore).notes == notes


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ((), ["not bit-exact: recipe was 3, now 4"]),
        (("run.fused=false",), []),
        (("run.dtype=bfloat16",), []),
    ],
)
def test_a_recurrent_run_of_before_its_products_were_added_in_place_is_told(
    make_loop, tiny, changes, notes
):
    gpt = tiny.read_text().replace("  style: modern\n", "").replace("  n_head: 2\n", "")
    tiny.write_text(gpt.replace("type: gpt", "type: gru"))
    list(make_loop("train.max_steps=2", "run.dtype=float32", *changes).records())
    run = RunFolder(Path("run"))
    saved_where(run, lambda environment: environment.update(recipe=3))

    assert open_run(resumed_config(run, None, []), run, ignore).notes == notes


def test_any_other_run_of_before_leaves_the_same_bits(finished):
    saved_where(finished.run, lambda environment: environment.update(recipe=3))

    assert drift(finished.run.checkpoints.last(), finished.config) == []


@pytest.mark.parametrize(
    ("exact", "notes"),
    [("false", ["not bit-exact: processes was 1, now 2"]), ("true", []), ("auto", [])],
)
def test_another_number_of_processes_is_told_where_it_changes_the_bits(make_loop, exact, notes):
    list(make_loop("train.max_steps=2", f"train.exact={exact}").records())
    run = RunFolder(Path("run"))
    config = resumed_config(run, None, [])

    assert open_run(config, run, ignore).notes == []
    assert open_run(config, run, ignore, processes=2).notes == notes


def test_a_run_of_before_the_number_of_processes_was_kept_says_nothing(make_loop):
    list(make_loop("train.max_steps=2", "train.exact=false").records())
    run = RunFolder(Path("run"))
    saved_where(run, lambda environment: environment.pop("processes"))

    assert open_run(resumed_config(run, None, []), run, ignore, processes=2).notes == []


def test_a_run_of_before_keeps_the_precision_that_auto_meant(finished, monkeypatch):
    as_before(finished.run)
    monkeypatch.setattr("charlm.models.device.bfloat16_is_faster", lambda: True)

    config = resumed_config(finished.run, None, [])

    assert config.run.dtype == "float32"
    prepared = open_run(config, finished.run, ignore)
    commit_resume(prepared)
    assert RunFolder(finished.run.path).config.run.dtype == "float32"


# Runs that are older than `data.joiner`: their files were joined with nothing, p10 before p2


@pytest.fixture
def older(make_loop):
    Path("texts").mkdir()
    for number in (1, 2, 10):
        Path(f"texts/p{number}.txt").write_text(f"the\nwords of part {number} " * 20)
    in_order = "".join(Path(f"texts/p{n}.txt").read_text() for n in (1, 10, 2))
    Path("fused.txt").write_text(in_order)
    loop = make_loop("data.source=fused.txt")
    list(loop.records())
    run = loop.run
    facts = read_manifest(run.tokens_path) | {"source": "texts"}
    (run.tokens_path / "MANIFEST.json").unlink()
    left_out = ("format", "files", "joiner", "source_files")
    write_manifest(run.tokens_path, {k: v for k, v in facts.items() if k not in left_out})
    kept = [line for line in run.config_path.read_text().splitlines() if "joiner" not in line]
    run.config_path.write_text("\n".join(kept).replace("fused.txt", "texts"))
    return RunFolder(run.path)


def test_a_run_older_than_the_joiner_still_has_its_text(older):
    prepared = open_run(resumed_config(older, None, []), older, ignore)

    assert prepared.notes == ["changed from here on: data.source 'fused.txt' -> 'texts'"]
    assert "joiner" not in prepared.corpus.facts


def test_a_changed_text_of_an_older_run_is_joined_as_texts_are_today(older):
    with Path("texts/p2.txt").open("a") as file:
        file.write("end")
    config = resumed_config(older, None, [])
    with pytest.raises(DataError, match="texts: changed since this run began"):
        open_run(config, older, ignore)
    Path("texts/p1.txt").write_text("the words of part 1\n" * 20)
    Path("texts/p2.txt").write_text("the words of part 2\n" * 20)

    prepared = open_run(config, older, ignore, allow_new_data=True)

    assert prepared.corpus.facts["joiner"] == "\n"
    text = prepared.tokenizer.decode(prepared.corpus.splits["val"].read(0, 20))
    assert text in Path("texts/p10.txt").read_text()
