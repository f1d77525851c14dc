import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

SAMPLE = ("sample", "--max-new-chars", 12, "--seed", 7)


def test_stdout_is_the_text_and_nothing_else(charlm, trained):
    result = charlm(*SAMPLE, "--prompt", "the ")

    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith("the ")
    assert result.stdout.endswith("\n")
    assert len(result.stdout.removesuffix("\n")) == 4 + 12


def test_the_same_seed_writes_the_same_text_and_another_another(charlm, trained):
    first, again = charlm(*SAMPLE), charlm(*SAMPLE)
    other = charlm(*SAMPLE, "--seed", 8)

    assert first.stdout == again.stdout
    assert first.stdout != other.stdout


def test_without_a_seed_texts_differ(charlm, trained):
    texts = {charlm("sample", "--max-new-chars", 40).stdout for _ in range(2)}

    assert len(texts) == 2


def test_json_is_one_object_a_sample(charlm, trained):
    result = charlm(*SAMPLE, "--json", "-n", 2, "-p", "fox")

    samples = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.code, result.stderr, len(samples)) == (0, "", 2)
    assert list(samples[0]) == [
        "text",
        "prompt",
        "chars",
        "seconds",
        "chars_per_second",
        "seed",
        "mean_logprob_nats",
    ]
    assert [s["seed"] for s in samples] == [7, 8]
    assert all(s["text"].startswith("fox") and len(s["text"]) == 15 for s in samples)
    assert all((s["prompt"], s["chars"]) == ("fox", 12) for s in samples)
    assert all(s["mean_logprob_nats"] < 0 for s in samples)


def test_sample_i_of_n_is_what_its_own_seed_writes(charlm, trained):
    many = charlm(*SAMPLE, "-n", 3)
    single = "".join(charlm(*SAMPLE, "--seed", seed).stdout for seed in (7, 8, 9))

    assert many.stdout == single
    assert many.stderr.splitlines() == [f"--- sample {i} of 3, seed {i + 6}" for i in (1, 2, 3)]


def test_no_echo_leaves_the_prompt_out(charlm, trained):
    echoed = charlm(*SAMPLE, "-p", "the ")
    silent = charlm(*SAMPLE, "-p", "the ", "--no-echo")
    as_json = charlm(*SAMPLE, "-p", "the ", "--no-echo", "--json")

    assert echoed.stdout == "the " + silent.stdout
    assert json.loads(as_json.stdout)["text"] + "\n" == silent.stdout
    assert json.loads(as_json.stdout)["prompt"] == "the "


@pytest.mark.parametrize("content", [b"the ", b"\xef\xbb\xbfthe "])
def test_a_prompt_may_come_from_a_file(charlm, trained, content):
    Path("prompt.txt").write_bytes(content)

    assert charlm(*SAMPLE, "--prompt-file", "prompt.txt").stdout == (
        charlm(*SAMPLE, "--prompt", "the ").stdout
    )


def test_a_prompt_may_come_from_standard_input(charlm, trained, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"the ")))

    assert charlm(*SAMPLE, "--prompt-file", "-").stdout.startswith("the ")


def test_two_prompts_are_one_too_many(charlm, trained):
    result = charlm(*SAMPLE, "--prompt", "", "--prompt-file", "prompt.txt")

    assert result.code == 2
    assert result.error == "--prompt and --prompt-file: choose one"


@pytest.mark.parametrize(
    ("name", "reason"), [("nope.txt", "No such file or directory"), (".", "Is a directory")]
)
def test_a_prompt_file_that_cannot_be_read_is_named(charlm, trained, name, reason):
    result = charlm(*SAMPLE, "--prompt-file", name)

    assert result.code == 3
    assert result.error.startswith(f"{name}: cannot be read: {reason}; name a text file")


def test_the_prompt_of_the_configuration_is_the_default(charlm, trained):
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("prompt: ''", "prompt: fox"))

    assert charlm(*SAMPLE).stdout.startswith("fox")
    assert charlm(*SAMPLE, "-p", "").stdout == charlm(*SAMPLE, "-p", "\n", "--no-echo").stdout


def test_temperature_zero_takes_the_likeliest_whatever_the_seed(charlm, trained):
    texts = {charlm(*SAMPLE, "--temperature", 0, "--seed", seed).stdout for seed in (1, 2)}

    assert texts == {charlm(*SAMPLE, "--top-k", 1).stdout}


def test_a_run_folder_alone_is_enough(charlm, trained):
    trained.rename("moved")
    for path in ("text.txt", "tiny.yaml"):
        Path(path).unlink()

    assert charlm(*SAMPLE, "--run", "moved").code == 0


def test_a_step_can_be_chosen(charlm, trained):
    texts = {charlm(*SAMPLE, "--checkpoint", step, "--temperature", 0).stdout for step in (3, 6)}
    last = charlm(*SAMPLE, "--checkpoint", "last", "--temperature", 0).stdout

    assert last in texts


@pytest.mark.parametrize("which", ["first", "-1", "6.0", ""])
def test_a_checkpoint_is_best_or_last_or_a_step(charlm, trained, which):
    result = charlm(*SAMPLE, f"--checkpoint={which}")

    assert result.code == 2
    assert result.error == f"--checkpoint {which!r}: use best, last or a step"


def test_no_characters_may_be_asked_for(charlm, trained):
    result = charlm("sample", "--max-new-chars", 0, "--json", "-p", "fox")

    assert json.loads(result.stdout)["text"] == "fox"
    assert json.loads(result.stdout)["mean_logprob_nats"] is None


def test_control_characters_of_a_prompt_are_not_sent_to_the_terminal(charlm, trained):
    result = charlm(*SAMPLE, "-p", "\x1b[31m")

    assert result.code == 3
    assert "'\\x1b' (U+001B) at position 0" in result.error
    assert "\x1b" not in result.stderr


def test_bytes_are_written_as_text(charlm, tiny):
    charlm("train", "--config", "tiny.yaml", "-q", "data.unit=bytes")

    result = charlm(*SAMPLE, "-p", "é☃")

    assert result.code == 0
    assert result.stdout.startswith("é☃")
