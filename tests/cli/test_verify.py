import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from charlm.cli.signals import StopSignals
from charlm.storage.manifest import read_manifest, write_manifest


def test_a_sound_run_is_said_to_be_part_by_part(charlm, trained):
    result = charlm("verify", "runs/tiny")

    assert (result.code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(line.startswith("sound    runs/tiny/") for line in lines)
    assert lines[0] == "sound    runs/tiny/config.yaml: model gpt"
    assert "sound    runs/tiny/metrics.jsonl: 6 steps, each recorded once" in lines
    assert lines[-1].startswith("sound    runs/tiny/checkpoints/step-6: 4 files, ")


def test_the_newest_run_is_checked_without_a_name(charlm, trained):
    assert charlm("verify").stdout.startswith("sound    runs/tiny/config.yaml")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "then"),
    [
        (
            "checkpoints/step-6/model.safetensors",
            "charlm train --resume runs/tiny continues from the newest sound checkpoint",
        ),
        (
            "checkpoints/step-3/state.json",
            "charlm train --resume runs/tiny continues from the newest sound checkpoint",
        ),
        ("tokens/ids.bin", "see above how to mend it"),
    ],
)
def test_a_flipped_bit_is_found_and_the_rest_is_checked_too(charlm, trained, name, then):
    parts = len(charlm("verify").stdout.splitlines())
    flip(trained / name)

    result = charlm("verify")

    assert result.code == 4
    assert len(result.stdout.splitlines()) == parts
    (damaged,) = [line for line in result.stdout.splitlines() if line.startswith("damaged")]
    assert name in damaged
    assert "SHA-256 differs" in damaged
    assert result.error == f"runs/tiny: 1 part is damaged; {then}"


def test_one_checkpoint_can_be_checked(charlm, trained):
    folder = "runs/tiny/checkpoints/step-6"
    assert charlm("verify", folder).stdout.startswith(f"sound    {folder}: 4 files")

    (trained / "checkpoints" / "step-6" / "MANIFEST.json").unlink()

    assert charlm("verify", folder).code == 4
    assert "no MANIFEST.json, so it was never finished" in charlm("verify").stdout


@pytest.mark.parametrize(
    ("lines", "core"),
    [
        (
            ['{"kind": "train", "step": 1}', '{"kind": "train", "step": 1}'],
            "line 2: step 1 follows",
        ),
        (['{"kind": "train", "step": 2}'], "line 1: step 2 follows step 0"),
        (['{"kind": "train"}'], "line 1: 'step'"),
        (["[]"], "line 1: "),
        (["{"], "line 1: "),
    ],
)
def test_a_damaged_log_is_found(charlm, trained, lines, core):
    (trained / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    result = charlm("verify")

    assert result.code == 4
    assert f"runs/tiny/metrics.jsonl: {core}" in result.stdout


def test_what_a_kill_leaves_is_no_damage(charlm, trained):
    with (trained / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    (trained / "checkpoints" / ".tmp-new-0123abcd-step-9").mkdir()

    result = charlm("verify")

    assert result.code == 0
    assert (
        "6 steps; its last record is cut short: charlm train --resume does it again"
        in result.stdout
    )
    assert ".tmp-new-0123abcd-step-9: not finished: being written, or left" in result.stdout


def test_a_mixture_is_checked_with_its_experts(charlm, tiny):
    Path("mix.yaml").write_text(
        "data: {source: text.txt}\neval: {baselines: false}\nmodel:\n  type: mixture\n"
        "  block_size: 8\n  experts:\n    counts: {model: {type: ngram, order: 2}}\n"
        "    gpt: {model: {type: gpt, block_size: 8, n_layer: 1, n_head: 2, n_embd: 8},\n"
        "      train: {max_steps: 4, batch_size: 4, warmup_steps: 1}}\n"
    )
    assert charlm("train", "-c", "mix.yaml", "--out", "mix", "-q").code == 0

    found = [line for line in charlm("verify", "mix").stdout.splitlines() if "experts/gpt" in line]

    assert any("metrics.jsonl: 4 steps, each recorded once" in line for line in found)
    assert any("checkpoints/step-4" in line for line in found)


def test_json_is_an_object_for_each_part(charlm, trained):
    flip(trained / "tokens" / "ids.bin")

    parts = [json.loads(line) for line in charlm("verify", "--json").stdout.splitlines()]

    assert [part["path"] for part in parts if part["state"] == "damaged"] == ["runs/tiny/tokens"]
    assert all((part["problem"] is None) == (part["state"] == "sound") for part in parts)


@pytest.mark.parametrize("what", ["nowhere", "empty"])
def test_what_is_no_run_is_refused(charlm, tiny, what):
    Path("empty").mkdir()

    result = charlm("verify", what)

    assert result.code == 4
    assert result.error.startswith(f"{what}: n")
    assert result.error.endswith("; name a run folder or a checkpoint")


def test_a_run_without_its_text_is_damaged(charlm, trained):
    shutil.rmtree(trained / "tokens")

    assert charlm("verify").code == 4


def test_a_signal_ends_it(charlm, trained, monkeypatch):
    monkeypatch.setattr(StopSignals, "requested", lambda self: True)
    monkeypatch.setattr(StopSignals, "exit_code", 143)

    assert charlm("verify").code == 143


@pytest.mark.parametrize(
    ("spoil", "core"),
    [
        (lambda run: (run / "tokenizer.json").write_text("garbage"), "tokenizer.json: "),
        (
            lambda run: (run / "config.yaml").write_text(
                (run / "config.yaml").read_text().replace("n_head: 2", "n_head: 1")
            ),
            "config.yaml: model.n_head is 1, step-6 was saved with 2",
        ),
        (
            lambda run: (run / "metrics.jsonl").unlink(),
            "metrics.jsonl: shorter than its checkpoint says; restore it",
        ),
        (
            lambda run: (run / "checkpoints/step-6").rename(run / "checkpoints/step-60"),
            "step-60: is a checkpoint of step 6; rename it, or restore it",
        ),
    ],
    ids=["alphabet", "heads", "log", "renamed"],
)
def test_what_a_checkpoint_rests_on_is_checked_too(charlm, trained, spoil, core):
    spoil(trained)

    result = charlm("verify")

    assert result.code == 4
    assert core in result.stdout


def test_a_log_that_ends_in_its_first_line_is_not_called_sound_too(charlm, trained):
    log = trained / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:40])

    lines = [line for line in charlm("verify").stdout.splitlines() if "metrics.jsonl" in line]

    assert lines == [
        "damaged  runs/tiny/metrics.jsonl: shorter than its checkpoint says; restore it or start "
        "a new run"
    ]


def test_what_is_no_expert_is_passed_over(charlm, trained):
    (trained / "experts" / "half" / "checkpoints").mkdir(parents=True)
    (trained / "experts" / ".DS_Store").touch()

    assert charlm("verify").code == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name on this system")
def test_a_pipe_in_the_place_of_the_log_is_not_waited_for(charlm, trained):
    shutil.rmtree(trained / "checkpoints")
    (trained / "metrics.jsonl").unlink()
    os.mkfifo(trained / "metrics.jsonl")

    result = charlm("verify")

    assert result.code == 4
    assert "damaged  runs/tiny/metrics.jsonl: is a pipe; put a regular file" in result.stdout


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json", "metrics.jsonl", "checkpoints"])
def test_what_is_written_through_a_link_is_refused_by_both(charlm, trained, name):
    (trained / name).rename("elsewhere")
    (trained / name).symlink_to(Path("elsewhere").absolute())

    refused = charlm("train", "--resume", "--out", "runs/tiny", "-q")

    assert refused.code == 4
    assert f"damaged  {refused.error}" in charlm("verify").stdout


def test_a_line_of_the_log_that_a_checkpoint_vouches_for_is_not_done_again(charlm, trained):
    log = trained / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b'{"kind"', b'{"k\xffnd"', 1))

    result = charlm("verify")

    assert result.code == 4
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("damaged")]
    assert line.startswith("damaged  runs/tiny/metrics.jsonl: line 1: ")
    assert line.endswith("; restore it")


def test_weights_of_another_version_are_sound_and_refused(charlm, trained):
    folder = trained / "checkpoints" / "step-6"
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"version": "99"})
    facts = read_manifest(folder)
    (folder / "MANIFEST.json").unlink()
    write_manifest(folder, {key: facts[key] for key in facts if key not in ("format", "files")})

    result = charlm("verify")

    assert result.code == 4
    assert "sound    runs/tiny/checkpoints/step-6: 4 files" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("refused")]
    weights = "runs/tiny/checkpoints/step-6/model.safetensors"
    assert line.startswith(f"refused  {weights}: weights of version 99 of its model, ")
    assert result.error == "runs/tiny: 1 part is refused; see above how to mend it"


def test_a_name_of_two_lines_is_shown_in_one(charlm, trained):
    trained.rename("a\nb")

    result = charlm("verify", "a\nb")

    assert result.code == 0
    assert all(line.startswith("sound    a\\nb/") for line in result.stdout.splitlines())
