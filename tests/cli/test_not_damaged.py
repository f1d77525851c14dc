"""What cannot be read now may be sound, and what is gone was there: nothing is thrown away for it."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from charlm.storage import manifest

RUN = Path("runs/tiny")
LAST = RUN / "checkpoints/step-6"
RESUME = ("train", "--resume", "--out", RUN, "-q", "train.max_steps=8", "eval.baselines=false")


def contents():
    """Every file of the run, and what is in it; what belongs to the lock comes and goes."""
    return {
        path: path.read_bytes()
        for path in RUN.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


@pytest.fixture
def unchanged(trained, charlm):
    """Run a command that must refuse in one line and change nothing."""

    def command(code, *arguments):
        before = contents()
        result = charlm(*arguments)
        assert result.code == code, result.stderr
        assert len(f"charlm: error: {result.error}") <= 200
        assert contents() == before
        return result.error

    return command


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_once_is_no_damage(unchanged, charlm, monkeypatch, number):
    real, tries = manifest.sha256_of, []

    def sha256_of(path):
        if path == LAST / "model.safetensors":
            tries.append(path)
            if len(tries) == 1:
                raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(manifest, "sha256_of", sha256_of)

    line = unchanged(5, *RESUME)

    assert line.startswith(f"{LAST / 'model.safetensors'}: {os.strerror(number)}; ")
    assert line.endswith("or move step-6 away to go on from an older")
    assert charlm(*RESUME).code == 0


@pytest.mark.parametrize("command", [RESUME, ("sample", "--run", RUN), ("eval", "--run", RUN)])
def test_checkpoints_that_cannot_be_listed_are_not_none(unchanged, charlm, monkeypatch, command):
    listdir = os.listdir

    def refuse(path="."):
        if Path(path) == RUN / "checkpoints":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)

    assert unchanged(5, *command).startswith("runs/tiny/checkpoints: Permission denied; user ")
    verified = charlm("verify", RUN)
    assert verified.code == 5
    assert "unread   runs/tiny/checkpoints: Permission denied; " in verified.stdout
    assert verified.error == "runs/tiny: 1 part is unread; see above how to mend it"


def test_checkpoints_that_are_gone_are_not_begun_anew(unchanged, charlm):
    shutil.rmtree(RUN / "checkpoints")

    line = unchanged(4, *RESUME)

    assert line == (
        "runs/tiny/checkpoints: no checkpoint there, metrics.jsonl knows of step 6; restore them or "
        "start a new run"
    )
    verified = charlm("verify", RUN)
    assert verified.code == 4
    assert f"damaged  {line}" in verified.stdout


def test_before_anything_was_saved_a_run_begins_anew(trained, charlm):
    log = RUN / "metrics.jsonl"
    first = log.read_bytes().splitlines(keepends=True)
    until = next(i for i, line in enumerate(first) if b'"save"' in line) + 1
    log.write_bytes(b"".join(first[:until]))
    shutil.rmtree(RUN / "checkpoints")

    result = charlm(*RESUME)

    assert result.code == 0
    assert "no checkpoint yet: starting at step 0" in result.stderr
    assert charlm("verify", RUN).code == 0


@pytest.mark.parametrize("name", [".DS_Store", "._model.safetensors", ".nfs0000a1", "Thumbs.db"])
@pytest.mark.parametrize("folder", [LAST, RUN / "tokens"])
def test_what_a_system_leaves_in_a_folder_is_no_damage(trained, charlm, folder, name):
    (folder / name).write_bytes(b"Bud1")

    assert charlm("verify", RUN).code == 0
    result = charlm(*RESUME)

    assert result.code == 0
    assert "damaged" not in result.stderr


def test_what_is_damaged_is_set_aside_and_not_read_again(trained, charlm):
    weights = LAST / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    bytes_of = {path.name: path.read_bytes() for path in LAST.iterdir()}

    assert charlm(*RESUME).code == 0

    aside = RUN / "checkpoints/damaged-step-6"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == bytes_of
    verified = charlm("verify", RUN)
    assert verified.code == 0
    assert f"unused   {aside}: damaged, set aside in training: nothing reads it" in verified.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name on this system")
@pytest.mark.parametrize("place", ["checkpoints/step-70", ".lock-holder.json"])
def test_a_pipe_in_a_place_of_ours_is_not_waited_for(trained, charlm, place):
    os.mkfifo(RUN / place)

    assert charlm(*RESUME).code == 0


def test_a_record_that_does_not_end_where_it_should_is_noticed(unchanged, charlm):
    log = RUN / "metrics.jsonl"
    log.write_bytes(b"\n" + log.read_bytes())

    line = unchanged(4, *RESUME)

    assert line.startswith("runs/tiny/metrics.jsonl: not as its checkpoint says; restore it or ")
    (damaged,) = [part for part in charlm("verify", RUN).stdout.splitlines() if "damaged" in part]
    assert damaged.startswith("damaged  runs/tiny/metrics.jsonl: line 1: ")
    assert damaged.endswith("; restore it")


def test_the_text_of_a_run_among_experts_of_ones_own_is_verified(trained, charlm):
    place = Path("experts/mine")
    shutil.copytree(RUN, place)
    ids = place / "tokens/ids.bin"
    ids.write_bytes(ids.read_bytes()[::-1])

    result = charlm("verify", place)

    assert result.code == 4
    assert "damaged  experts/mine/tokens/ids.bin: SHA-256 differs" in result.stdout


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("batch_size: 4", "batch_size: 8", "train.batch_size is 8, step-6 was saved with 4"),
        ("val_fraction: 0.1", "val_fraction: 0.3", "data.val_fraction is 0.3, step-6 was saved"),
        ("dropout: 0.0", "dropout: 0.5", "model.dropout is 0.5, step-6 was saved with 0.0"),
    ],
)
def test_what_may_not_change_may_not_by_hand_either(unchanged, charlm, before, after, said):
    config = RUN / "config.yaml"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))

    assert unchanged(4, *RESUME).startswith(f"runs/tiny/config.yaml: {said}")
    verified = charlm("verify", RUN)
    assert verified.stdout.count("damaged") == 1
    assert f"damaged  runs/tiny/config.yaml: {said}" in verified.stdout
    assert verified.error == "runs/tiny: 1 part is damaged; see above how to mend it"


def test_what_may_change_is_told_when_it_was_by_hand(trained, charlm):
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1337", "seed: 5"))

    assert "run.seed 1337 -> 5" in charlm(*RESUME).stderr


def test_a_text_does_not_take_the_place_of_the_runs_own_before_all_is_looked_at(unchanged):
    """An alphabet in which the text can be written, but not that of the weights."""
    text, alphabet = Path("text.txt"), RUN / "tokenizer.json"
    text.write_text(text.read_text() + "the fox\n")
    content = json.loads(alphabet.read_bytes())
    content["alphabet"] += "\u00e9"
    alphabet.write_text(json.dumps(content))

    line = unchanged(4, *RESUME, "--allow-new-data")

    assert line == (
        "runs/tiny/tokenizer.json: not the alphabet that step-6 was saved with; restore it"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty (0 bytes)"), (b"the \xff fox", "not UTF-8 at byte 4 (0xff)")],
)
def test_a_text_that_became_none_is_no_text_that_is_gone(unchanged, charlm, content, reason):
    text = Path("text.txt")
    text.write_bytes(content)

    line = unchanged(3, *RESUME)

    assert line.startswith(f"text.txt: {reason}")
    assert "changed since this run began; restore it, or move it away to go on" in line
    text.unlink()
    result = charlm(*RESUME)
    assert result.code == 0
    assert "text.txt: no longer readable; using the run's own copy" in result.stderr


def test_a_configuration_that_could_not_be_read_again_is_not_written(unchanged, charlm):
    """The file has less than 1 MiB; with all that it leaves out, the run's would have more."""
    prompt = "fox " * ((1 << 18) - 100)
    Path("long.yaml").write_text(
        Path("tiny.yaml").read_text().replace("prompt: ''", "")
        + f"sample: {{prompt: '{prompt}'}}\n"
    )

    line = unchanged(2, *RESUME, "--config", "long.yaml")
    assert line.startswith("long.yaml, as planned: more than 1,048,576 bytes (1 MiB)")
    line = unchanged(2, "train", "--config", "long.yaml", "--out", "long", "-q")
    assert line.startswith("long/config.yaml: more than 1,048,576 bytes (1 MiB)")
    assert not Path("long").exists()


def test_a_text_that_was_moved_is_found_by_its_new_name(unchanged, charlm):
    Path("text.txt").rename("moved.txt")

    assert charlm(*RESUME, "data.source=moved.txt").code == 0

    assert "source: moved.txt" in (RUN / "config.yaml").read_text()
    line = unchanged(3, *RESUME, "data.source=nowhere.txt")
    assert line.startswith("nowhere.txt: no such file or named text; ")
    Path("moved.txt").write_text("the lazy dog\n" * 60)
    line = unchanged(3, *RESUME, "data.source=moved.txt")
    assert line.startswith("moved.txt: changed since this run began")


def test_a_name_that_says_what_to_do_is_no_advice(unchanged):
    """What an error says to do comes after its last semicolon; names may have some."""
    Path("a; b.txt").write_bytes(b"the \xff fox")
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace("source: text.txt", "source: a; b.txt"))

    assert unchanged(3, *RESUME).startswith("a; b.txt: not UTF-8 at byte 4 (0xff)")


@pytest.mark.parametrize("prompt", ["0" * 64, "\u0436" * 300_000])
def test_whatever_the_prompt_checkpoints_can_be_read(charlm, tiny, prompt):
    Path("text.txt").write_text(f"{'0' * 64}\u0436\n" * 30)
    Path("tiny.yaml").write_text(
        Path("tiny.yaml").read_text() + f"sample: {{prompt: '{prompt}'}}\n"
    )

    assert charlm("train", "--config", "tiny.yaml", "--out", RUN, "-q").code == 0

    assert charlm("verify", RUN).code == 0
    assert charlm(*RESUME).code == 0


def test_a_finished_run_without_its_only_checkpoint_is_not_begun_anew(unchanged, charlm, tiny):
    Path("counts.yaml").write_text("data: {source: text.txt}\nmodel: {type: ngram, order: 3}\n")
    assert charlm("train", "--config", "counts.yaml", "--out", "counts", "-q").code == 0
    shutil.rmtree("counts/checkpoints/step-1")

    line = unchanged(4, "train", "--resume", "--out", "counts", "-q")

    assert line.startswith(
        "counts/checkpoints: no checkpoint there, metrics.jsonl knows of step 1; "
    )
    assert charlm("verify", "counts").code == 4
