"""A run folder from a stranger, and copies with hard links: nothing outside of the folder changes."""

import os
import shutil
from pathlib import Path

import pytest

from charlm.runs import RunFolder
from charlm.storage import folder_lock
from charlm.training.gradients import GradientLearner

RUN = Path("runs/tiny")
RESUME = ("train", "--resume", "--out", RUN, "-q")
LEFTOVER = ".tmp-old-1234abcd-"


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that no command may change: what it holds is checked at the end."""
    folder = tmp_path / "elsewhere"
    (folder / "checkpoints/step-3").mkdir(parents=True)
    (folder / "checkpoints/step-3/notes.txt").write_text("precious")
    (folder / "log").write_text("precious\n" * 500)
    before = contents(folder)
    yield folder
    assert contents(folder) == before


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["link", "hard link"])
def test_a_link_that_a_crash_could_have_left_is_not_put_in_place_of_the_log(
    charlm, trained, elsewhere, link
):
    (trained / "metrics.jsonl").unlink()
    link(elsewhere / "log", trained / f"{LEFTOVER}metrics.jsonl")

    refused = charlm(*RESUME, "train.max_steps=8")

    assert refused.code == 4
    assert "metrics.jsonl: shorter than its checkpoint says" in refused.error


@pytest.mark.parametrize("name", ["checkpoints", "samples", "experts", "tokens"])
def test_a_linked_folder_that_a_crash_could_have_left_is_not_put_in_place(
    charlm, trained, elsewhere, name
):
    shutil.rmtree(trained / name, ignore_errors=True)
    (trained / f"{LEFTOVER}{name}").symlink_to(elsewhere / "checkpoints")

    charlm(*RESUME, "train.max_steps=8", "train.sample_every=1")

    assert not (trained / name).is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "tokens", "tokenizer.json", ".lock"])
def test_a_start_that_looks_killed_does_not_lead_elsewhere(charlm, tiny, elsewhere, name):
    Path("new").mkdir()
    Path("new/.lock-holder.json").touch()
    place = elsewhere / ("log" if "." in name else "checkpoints")
    Path("new", name).symlink_to(place)

    refused = charlm("train", "-c", "tiny.yaml", "--out", "new", "-q")

    assert (refused.code, refused.error) == (
        2,
        "new: is not empty and not a run; choose another --out",
    )
    assert Path("new", name).readlink() == place


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "checkpoints", "samples"])
def test_a_start_in_a_folder_with_leftovers_does_not_follow_them(charlm, tiny, elsewhere, name):
    Path("new").mkdir()
    Path("new/.lock-holder.json").touch()
    place = elsewhere / ("log" if "." in name else "checkpoints")
    Path("new", LEFTOVER + name).symlink_to(place)

    train = ("train", "-c", "tiny.yaml", "--out", "new", "-q", "train.sample_every=1")
    assert charlm(*train).code == 0

    assert not Path("new", name).is_symlink()
    assert charlm("verify", "new").code == 0


def test_checkpoints_of_a_stranger_do_not_look_like_a_killed_start(charlm, trained):
    (trained / "config.yaml").unlink()
    (trained / "metrics.jsonl").unlink()
    (trained / ".lock-holder.json").touch()

    refused = charlm("train", "-c", "tiny.yaml", "--out", RUN, "-q")

    assert refused.code == 2
    assert (trained / "checkpoints/step-6").is_dir()


READERS = (("sample", "--run"), ("eval", "--run"), ("compare",), ("verify",))


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json", "checkpoints", "tokens"])
@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_no_link_in_a_run_is_followed_to_read(charlm, trained, command, name):
    if name == "tokens" and command[0] == "sample":
        return  # it reads no text
    (trained / name).rename("there")
    (trained / name).symlink_to(Path("there").absolute())

    refused = charlm(*command, RUN)

    assert refused.code == 4
    assert f"{RUN / name}: is a link; put a " in refused.stdout + refused.stderr


def test_a_run_that_the_user_names_by_a_link_is_read_and_resumed(charlm, trained):
    Path("short").symlink_to(RUN)

    for command in READERS:
        assert charlm(*command, "short").code == 0
    assert charlm("train", "--resume", "--out", "short", "-q", "train.max_steps=8").code == 0
    assert (trained / "checkpoints/step-8").is_dir()


def hard_linked(run: Path, copy: Path) -> None:
    """Copy a folder as `cp -al` does."""
    shutil.copytree(run, copy, copy_function=os.link)


def test_a_copy_with_hard_links_and_its_original_do_not_write_into_each_other(charlm, trained):
    copy = trained.with_name("copy")
    hard_linked(trained, copy)
    before = contents(copy)

    assert charlm(*RESUME, "train.max_steps=9").code == 0
    assert contents(copy) == before
    mine = contents(trained)
    assert charlm("train", "--resume", "--out", copy, "-q", "train.max_steps=12").code == 0

    assert contents(trained) == mine
    assert charlm("verify", trained).code == charlm("verify", copy).code == 0


def test_a_copy_with_hard_links_made_during_training_stays_as_it_was(charlm, tiny, monkeypatch):
    step, before = GradientLearner.step, {}

    def copied(self):
        if self.state.step == 4:
            hard_linked(RUN, Path("copy"))
            before.update(contents(Path("copy")))
        return step(self)

    monkeypatch.setattr(GradientLearner, "step", copied)
    train = ("train", "-c", "tiny.yaml", "--out", RUN, "-q", "train.save_every=2")

    assert charlm(*train, "train.max_steps=9").code == 0

    assert before
    assert contents(Path("copy")) == before
    assert charlm("verify", RUN).code == 0


def test_a_copy_with_hard_links_has_a_lock_of_its_own(trained):
    copy = RunFolder(trained.with_name("copy"))
    hard_linked(trained, copy.path)

    with folder_lock(copy.path), folder_lock(trained):
        pass

    assert (trained / ".lock").stat().st_ino != (copy.path / ".lock").stat().st_ino
