"""A power cut at every point of saving, pruning, encoding and fitting leaves the old or the new."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from charlm.config import load_config
from charlm.errors import CharlmError
from charlm.lifecycle.begin import create_run, new_folder_for_run, prepare_text
from charlm.lifecycle.resume import commit_resume, open_run, resumed_config
from charlm.models import build_model
from charlm.runs import RunFolder
from charlm.runs.metrics import MetricsLog
from charlm.runs.state import load_checkpoint
from charlm.storage import atomic, manifest, new_folder, verify_folder, write_file
from charlm.training import Job, TrainingLoop
from tests.torture.power import LEFT, Moment, lay, moments, same
from tests.training.conftest import ignore

SAVES = ("train.save_every=1", "train.max_steps=4", "train.eval_every=2")


def begin(root: Path, *overrides: str):
    """Make a run in `root` and its loop."""
    config = load_config("tiny.yaml", overrides)
    text = prepare_text(config, ignore, ignore)
    with new_folder_for_run(root / "run"):
        prepared = create_run(config, root / "run", text, ignore)
    return loop_of(prepared)


def loop_of(prepared):
    model = build_model(prepared.config.model, prepared.tokenizer.vocab_size, 0)
    job = Job(prepared.config, prepared.run, prepared.corpus, prepared.tokenizer, model)
    return TrainingLoop(job, prepared.checkpoint)


def reopen(root: Path):
    run = RunFolder(root / "run")
    return open_run(resumed_config(run, None, []), run, ignore)


def content(folder: Path) -> str:
    """SHA-256 over all files but the manifest, by name."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name != manifest.NAME:
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def each_cut(found, target, promised=lambda number: None):
    """Lay out what a cut leaves at each moment; yield its number and what to call it.

    Equal trees of which the same is promised once.
    """
    before = set()
    for number, moment in enumerate(found):
        for how in LEFT:
            tree = moment.left(how)
            key = (promised(number), same(tree))
            if key not in before:
                before.add(key)
                lay(tree, target)
                yield number, f"{number} before {moment.what}, {how} left"
                shutil.rmtree(target)


def failures_of_saving(tmp_path: Path) -> Iterator[str]:
    """Train with a save at every step; say after which cuts the run does not go on as promised."""
    (tmp_path / "disk").mkdir()
    one = begin(tmp_path / "disk", *SAVES)
    Path("text.txt").unlink()  # so that it is not read again each time
    saved: dict[int, str] = {}
    promises: list[tuple[int, int]] = []  # from which moment on a step is promised

    def work() -> None:
        for record in one.records():
            if record.kind == "save":
                saved[record.step] = content(one.run.checkpoints.path(record.step))
                promises.append((len(found), record.step))

    found: list[Moment] = []
    moments(tmp_path / "disk", work, found)
    assert len(found) > 50

    def promise(number: int) -> int:
        return max((step for at, step in promises if at <= number), default=-1)

    for number, cut in each_cut(found, tmp_path / "cut", promise):
        promised = promise(number)
        try:
            prepared = reopen(tmp_path / "cut")
            step = prepared.checkpoint.step if prepared.checkpoint else -1
            if step not in (promised, promised + 1):
                yield f"{cut}: step {step}, promised {promised}"
            elif step >= 0:
                if content(prepared.checkpoint.path) != saved[step]:
                    yield f"{cut}: step {step} is not what was saved"
                again = loop_of(prepared)
                state = load_checkpoint(
                    prepared.checkpoint, again.learner.model, again.learner.optimizers
                )
                MetricsLog(prepared.run.metrics_path, keep=state.metrics_bytes).close()
        except CharlmError as error:
            yield f"{cut}: {error}"


def test_a_cut_while_saving_and_pruning_leaves_the_old_or_the_new_checkpoint(tiny, tmp_path):
    assert list(failures_of_saving(tmp_path)) == []


def test_a_cut_while_a_damaged_checkpoint_is_set_aside_loses_neither(tiny, tmp_path):
    (tmp_path / "disk").mkdir()
    one = begin(tmp_path / "disk", *SAVES)
    list(one.records())
    weights = one.run.checkpoints.path(4) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    damaged = content(weights.parent)
    prepared = reopen(tmp_path / "disk")
    assert prepared.checkpoint.step == 3

    found: list[Moment] = []
    moments(tmp_path / "disk", lambda: commit_resume(prepared), found)

    assert len(found) >= 2
    names = set()
    for _, cut in each_cut(found, tmp_path / "cut"):
        assert reopen(tmp_path / "cut").checkpoint.step == 3, cut
        (left,) = (tmp_path / "cut/run/checkpoints").glob("*step-4")
        assert content(left) == damaged, cut
        names.add(left.name)
    assert names == {"step-4", "damaged-step-4"}


def skip(*_):
    pass


def in_place(path, kind):
    """Work under the final name."""
    return path if kind == "new" else path.with_name(f".tmp-{kind}-{'0' * 8}-{path.name}")


BREAKS = {
    "no flush of files": (atomic, "flush_file", skip),
    "no flush of folders": (atomic, "flush_folder", skip),
    "no rename": (atomic, "_beside", in_place),
    "no hash": (manifest, "sha256_of", lambda path: "0" * 64),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_this_harness_sees_what_is_missing(tiny, tmp_path, monkeypatch, broken):
    module, name, instead = BREAKS[broken]
    if broken == "no rename":
        monkeypatch.setattr(atomic, "_replace_folder", skip)
    if broken == "no hash":  # alone, flushing makes up for it
        monkeypatch.setattr(atomic, "flush_file", skip)
    monkeypatch.setattr(module, name, instead)

    assert next(failures_of_saving(tmp_path), None)


@pytest.mark.parametrize("model", [[], ["data.unit=bytes"]], ids=["characters", "bytes"])
def test_a_cut_while_encoding_leaves_no_run_or_a_whole_one(tiny, tmp_path, model):
    (tmp_path / "disk").mkdir()
    found = moments(tmp_path / "disk", lambda: begin(tmp_path / "disk", *model))
    whole = content(tmp_path / "disk" / "run" / "tokens")

    outcomes = set()
    for number, cut in each_cut(found, tmp_path / "cut"):
        exists = RunFolder(tmp_path / "cut" / "run").exists()
        outcomes.add(exists)
        assert exists or number < len(found) - 1, cut
        if exists:
            reopen(tmp_path / "cut")
        else:  # the same command makes it anew
            begin(tmp_path / "cut", *model)
        assert content(tmp_path / "cut" / "run" / "tokens") == whole, cut

    assert outcomes == {True, False}


def test_a_cut_while_fitting_leaves_the_tables_or_none(tiny, tmp_path):
    tiny.write_text("data: {source: text.txt}\nmodel: {type: ngram, order: 3, block_size: 8}\n")
    (tmp_path / "disk").mkdir()
    one = begin(tmp_path / "disk")
    found = moments(tmp_path / "disk", lambda: list(one.records()))
    whole = content(one.run.checkpoints.path(1))

    outcomes = set()
    for number, cut in each_cut(found, tmp_path / "cut"):
        prepared = reopen(tmp_path / "cut")
        outcomes.add(prepared.checkpoint is not None)
        if prepared.checkpoint:
            assert content(prepared.checkpoint.path) == whole, cut
        else:
            assert number < len(found) - 1, cut
            again = loop_of(prepared)
            list(again.records())
            assert again.state.val_loss_nats == one.state.val_loss_nats

    assert outcomes == {True, False}


def test_a_cut_while_a_file_is_replaced_leaves_the_old_or_the_new(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    write_file(disk / "file", b"old old old")
    found = moments(disk, lambda: write_file(disk / "file", b"new new"))

    outcomes = []
    for _number, cut in each_cut(found, tmp_path / "cut"):
        outcomes.append((tmp_path / "cut" / "file").read_bytes())
        assert outcomes[-1] in (b"old old old", b"new new"), cut

    assert outcomes[0] == b"old old old"
    assert outcomes[-1] == b"new new"


@pytest.mark.parametrize("copied", ["before", "during"])
def test_a_cut_while_a_log_with_another_name_is_copied_loses_nothing_that_is_kept(tmp_path, copied):
    disk, copy = tmp_path / "disk", tmp_path / "copy.jsonl"
    disk.mkdir()
    (disk / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n')
    found: list[Moment] = []
    promised = [(0, b'{"step": 1}\n')]  # from which moment on

    def link() -> None:
        os.link(disk / "metrics.jsonl", copy)
        linked.append(copy.read_bytes())

    def work() -> None:
        log = MetricsLog(disk / "metrics.jsonl", keep=12)
        for step in (3, 4):
            if copied == "during" and step == 4:
                link()
            log.append({"step": step})
            log.flush()
            promised.append((len(found), log.path.read_bytes()))
        log.close()

    linked: list[bytes] = []
    if copied == "before":
        link()
    moments(disk, work, found)

    def promise(number: int) -> bytes:
        return max(content for at, content in promised if at <= number)

    for number, cut in each_cut(found, tmp_path / "cut", promise):
        left = (tmp_path / "cut/metrics.jsonl").read_bytes()
        assert left.startswith(promise(number)), cut
    assert left == b'{"step": 1}\n{"step": 3}\n{"step": 4}\n'
    assert copy.read_bytes() == linked[0]


def filled(path: Path, text: str) -> None:
    with new_folder(path, {"text": text}) as folder:
        for name in "abcdef":
            (folder / name).write_text(text)


WORKS = {
    "replaced": lambda folder: filled(folder / "tokens", "new"),
    "moved": lambda folder: atomic.move_folder(folder / "tokens", folder / "aside"),
    "removed": lambda folder: atomic.remove_folder(folder / "tokens"),
}


@pytest.mark.parametrize("work", WORKS)
def test_a_cut_while_a_folder_that_cannot_be_renamed_is_copied_leaves_it_whole(
    tmp_path, monkeypatch, work
):
    rename = os.rename

    def refusing(path, target):
        if ".tmp-new-" not in str(path):  # all others are in the lower layer of an overlay
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))
        rename(path, target)

    disk = tmp_path / "disk"
    disk.mkdir()
    filled(disk / "tokens", "old")
    monkeypatch.setattr(os, "rename", refusing)
    found = moments(disk, lambda: WORKS[work](disk))

    outcomes = set()
    for _, cut in each_cut(found, tmp_path / "cut"):
        atomic.remove_leftovers(tmp_path / "cut")
        texts = {path.name: verify_folder(path)["text"] for path in (tmp_path / "cut").iterdir()}
        assert work == "removed" or texts, cut
        outcomes |= set(texts.items())

    wanted = {"replaced": {("tokens", "new")}, "moved": {("aside", "old")}, "removed": set()}
    assert outcomes == {("tokens", "old")} | wanted[work]
