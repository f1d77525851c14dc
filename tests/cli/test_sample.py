import base64
import contextlib
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from charlm.cli import output, prompts
from charlm.cli.main import run
from charlm.library import load
from charlm.sampling import Drawing
from tests.conftest import TINY
from tests.fuzz.targets import terminals

SAMPLE = ("sample", "--max-new-chars", 12, "--seed", 7)


@pytest.fixture
def charlm(charlm):
    """Run a command; an option after those of SAMPLE takes their place."""

    def command(*arguments):
        for name in SAMPLE[1::2] if arguments[:5] == SAMPLE else ():
            if name in arguments[5:]:
                place = arguments.index(name)
                arguments = arguments[:place] + arguments[place + 2 :]
        return charlm(*arguments)

    return command


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
        "ended",
        "seconds",
        "chars_per_second",
        "seed",
        "mean_logprob_nats",
        "logprobs_nats",
    ]
    assert [s["seed"] for s in samples] == [7, 8]
    assert all(s["text"].startswith("fox") and len(s["text"]) == 15 for s in samples)
    assert all((s["prompt"], s["chars"], s["ended"]) == ("fox", 12, "length") for s in samples)
    assert all(s["mean_logprob_nats"] < 0 for s in samples)
    for one in samples:
        assert len(one["logprobs_nats"]) == 12
        assert sum(one["logprobs_nats"]) / 12 == pytest.approx(one["mean_logprob_nats"], abs=1e-4)


def test_sample_i_of_n_is_what_its_own_seed_writes(charlm, trained):
    many = charlm(*SAMPLE, "-n", 3)
    single = [charlm(*SAMPLE, "--seed", seed).stdout for seed in (7, 8, 9)]

    assert many.stdout == "\n".join(single)
    assert many.stderr == ""


def test_samples_that_have_several_lines_are_apart(charlm, trained):
    """A stop text of an empty line leaves none in a sample, so the samples can be told apart."""
    many = charlm(*SAMPLE, "-n", 3, "--stop", "\n\n", "--max-new-chars", 60).stdout
    texts = [
        json.loads(line)["text"]
        for line in charlm(
            *SAMPLE, "-n", 3, "--stop", "\n\n", "--max-new-chars", 60, "--json"
        ).stdout.splitlines()
    ]

    assert many.split("\n\n") == [*texts[:-1], texts[-1] + "\n"]


@pytest.mark.parametrize("option", [("--stop", "\n"), ("--allow", "[a-z]")])
def test_samples_of_one_line_are_a_list(charlm, trained, option):
    many = charlm(*SAMPLE, "-n", 6, *option).stdout

    assert len(many.splitlines()) == 6
    assert "\n\n" not in many


def test_a_prompt_of_several_lines_makes_samples_of_several(charlm, trained):
    command = (*SAMPLE, "-n", 2, "--stop", "\n", "-p", "a\nb")

    assert "\n\na\nb" in charlm(*command).stdout
    assert "\n\n" not in charlm(*command, "--no-echo").stdout


def test_a_separator_is_a_line_between_samples(charlm, trained):
    single = [charlm(*SAMPLE, "--seed", seed).stdout for seed in (7, 8, 9)]

    assert charlm(*SAMPLE, "-n", 3, "--separator", "===").stdout == "===\n".join(single)
    one_line = charlm(*SAMPLE, "-n", 3, "--separator", "", "--stop", "\n").stdout
    assert one_line.count("\n\n") == 2


def test_a_seed_that_was_drawn_is_named_so_that_it_can_be_given(charlm, trained):
    drawn = charlm("sample", "--max-new-chars", 12)
    several = charlm("sample", "--max-new-chars", 12, "-n", 3)

    for result, more in ((drawn, ()), (several, ("-n", 3))):
        seed = re.fullmatch(r"seed (\d+)\n", result.stderr)[1]
        again = charlm("sample", "--max-new-chars", 12, "--seed", seed, *more)
        assert (again.stdout, again.stderr) == (result.stdout, "")
    assert charlm("sample", "--max-new-chars", 12, "-q").stderr == ""
    assert charlm("sample", "--max-new-chars", 12, "--json").stderr == ""


def on_a_terminal(command):
    with terminals() as (out, err):
        assert run([str(word) for word in command]) == 0
    return out.getvalue(), err.getvalue()


def test_titles_are_for_samples_of_several_lines_on_a_terminal(trained):
    assert on_a_terminal([*SAMPLE, "-n", 3])[1].splitlines() == [
        f"--- sample {i} of 3, seed {i + 6}" for i in (1, 2, 3)
    ]
    assert on_a_terminal([*SAMPLE, "-n", 3, "-q"])[1] == ""
    assert on_a_terminal([*SAMPLE, "-n", 3, "--stop", "\n"])[1] == ""


def test_many_samples_for_a_file_have_a_bar(charlm, trained, monkeypatch):
    bars, module = [], sys.modules["charlm.cli.output"]

    class Bar:
        def __init__(self, **options):
            bars.append((options["total"], options["disable"], 0))

        def update(self, count=1):
            bars[-1] = (*bars[-1][:2], bars[-1][2] + count)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(module, "Bar", Bar)
    charlm(*SAMPLE, "-n", 9)
    charlm(*SAMPLE, "-n", 9, "-q")
    charlm(*SAMPLE)

    assert bars == [(9, None, 9), (9, True, 9), (1, True, 1)]


def test_json_says_how_a_text_ended(charlm, trained, monkeypatch):
    letter = charlm(*SAMPLE, "--no-echo").stdout[5]
    stopped = charlm(*SAMPLE, "--json", "--stop", letter, "-n", 2)
    assert json.loads(stopped.stdout.splitlines()[0])["ended"] == "stop"
    assert json.loads(charlm(*SAMPLE, "--json", "--best-of", 2).stdout)["ended"] == "length"

    generate = sys.modules["charlm.sampling.draw"].generate

    def interrupted(*arguments):
        for drawn in generate(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            yield drawn

    monkeypatch.setattr("charlm.sampling.draw.generate", interrupted)
    assert json.loads(charlm(*SAMPLE, "--json").stdout)["ended"] == "interrupted"


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        (
            ("--stop", r"\n"),
            3,
            r"--stop '\n': character {} '\' (U+005C) is not in this "
            r"model's alphabet of 31, so no text can have it; for a newline, write --stop $'\n'",
        ),
        (
            ("-p", r"fox\n"),
            3,
            r"--prompt: character {} '\' (U+005C) is not in this "
            r"model's alphabet of 31; for a newline, write --prompt $'fox\n'",
        ),
        (
            ("--allow", r"ab\n"),
            2,
            r"--allow 'ab\n': a backslash and 'n', and this model has no "
            r"backslash; for a newline, write --allow $'ab\n'",
        ),
        (("--stop", ""), 2, "--stop '': empty, so each text would end at once; leave it out"),
    ],
)
def test_what_the_shell_did_not_read_as_a_newline_is_answered(
    charlm, trained, command, code, error
):
    result = charlm(*SAMPLE, *command)

    assert (result.code, result.stdout) == (code, "")
    assert re.sub(r"character \d", "character {}", result.error) == error


@pytest.mark.parametrize("stop", ["<|end|>", "x☃", "@"])
def test_a_stop_text_that_no_text_can_have_is_refused(charlm, trained, stop):
    result = charlm(*SAMPLE, "--stop", "o", "--stop", stop)
    verb = "are" if len(stop) > 2 else "is"

    assert (result.code, result.stdout) == (3, "")
    assert (
        f"{verb} not in this model's alphabet of 31, so no text can have it; leave it out"
        in result.error
    )


def test_words_of_the_shell_that_are_not_utf_8_are_for_models_of_bytes(charlm, trained):
    for option in ("--stop", "--prompt"):
        result = charlm(*SAMPLE, option, "a\udcff")
        assert (result.code, result.error) == (
            3,
            f"{option}: not UTF-8 at byte 1 (0xff); write it in UTF-8",
        )


def test_an_escape_that_the_model_knows_is_remarked(charlm, tiny):
    Path("text.txt").write_text(r"print('a\n') " * 40)
    charlm("train", "--config", "tiny.yaml", "-q")

    result = charlm(*SAMPLE, "--stop", r"\n", "-p", r"a\n")

    assert result.code == 0
    assert result.stderr.splitlines() == [
        rf"charlm: note: {option}: \n is a backslash and a letter here; for a newline, "
        r"write $'\n'"
        for option in ("--prompt", "--stop")
    ]


def test_a_prompt_file_is_named_where_it_is_wrong(charlm, trained):
    Path("prompt.txt").write_text("the ☃")
    assert charlm(*SAMPLE, "--prompt-file", "prompt.txt").error.startswith("prompt.txt: character")

    Path("prompt.txt").write_bytes(b"the \xff")
    result = charlm(*SAMPLE, "--prompt-file", "prompt.txt")
    assert result.code == 3
    assert result.error == "prompt.txt: not UTF-8 at byte 4 (0xff); write it in UTF-8"


def test_many_side_by_side_are_what_each_is_alone(charlm, trained):
    many = charlm(*SAMPLE, "-n", 70, "--json")
    texts = [json.loads(line) for line in many.stdout.splitlines()]

    assert [text["seed"] for text in texts] == [*range(7, 77)]
    for text in texts[::10]:
        alone = charlm(*SAMPLE, "--seed", text["seed"], "--json").stdout
        assert json.loads(alone)["text"] == text["text"]
        assert json.loads(alone)["logprobs_nats"] == pytest.approx(text["logprobs_nats"], abs=1e-3)


def test_the_best_of_some_has_the_highest_mean(charlm, trained):
    every = charlm(*SAMPLE, "-n", 6, "--json").stdout.splitlines()
    means = {json.loads(one)["seed"]: json.loads(one)["mean_logprob_nats"] for one in every}

    best = json.loads(charlm(*SAMPLE, "--best-of", 6, "--json").stdout)
    two = charlm(*SAMPLE, "--best-of", 3, "-n", 2, "--json").stdout.splitlines()

    assert best["seed"] == max(means, key=means.get)
    assert best["mean_logprob_nats"] == pytest.approx(max(means.values()))
    halves = [max((7, 8, 9), key=means.get), max((10, 11, 12), key=means.get)]
    assert [json.loads(one)["seed"] for one in two] == halves


def test_a_stop_ends_the_text_and_is_left_out(charlm, trained):
    whole = json.loads(charlm(*SAMPLE, "--max-new-chars", 60, "--json").stdout)
    letter = whole["text"][9]

    found = json.loads(charlm(*SAMPLE, "--max-new-chars", 60, "--json", "--stop", letter).stdout)
    both = charlm(*SAMPLE, "--max-new-chars", 60, "--stop", "!!!", "--stop", letter, "--json")

    assert found["text"] == whole["text"].partition(letter)[0]
    assert found["chars"] == len(found["text"]) == len(found["logprobs_nats"])
    assert json.loads(both.stdout)["text"] == found["text"]


def test_only_what_is_allowed_is_drawn(charlm, trained):
    by_class = charlm(*SAMPLE, "--allow", "[a-e]", "--no-echo").stdout.strip()
    by_name = charlm(*SAMPLE, "--allow", "edcba", "--no-echo").stdout.strip()
    none = charlm(*SAMPLE, "--allow", "[0-9]")
    broken = charlm(*SAMPLE, "--allow", "[z-a]")

    assert by_class == by_name
    assert len(by_class) == 12
    assert set(by_class) <= set("abcde")
    assert (none.code, none.error) == (
        2,
        "--allow '[0-9]': this model's alphabet has no such character",
    )
    assert broken.code == 2
    assert "write a class as [a-z]" in broken.error


@pytest.mark.parametrize(
    ("allow", "expected"),
    [("[[a]", "a"), ("[]a]", "a"), ("[a-c]|[d-f]", "acdf"), ("[a]{9}", "a"), ("[^b-z\n ]", "!.J")],
)
def test_what_looks_like_a_class_and_is_none_are_characters(charlm, trained, allow, expected):
    result = charlm(*SAMPLE, "--allow", allow, "--no-echo", "--max-new-chars", 100)

    assert (result.code, result.stderr) == (0, "")
    if not allow.startswith("[^"):
        assert set(result.stdout.strip()) == set(expected)
    else:
        assert not set(result.stdout.strip()) & set("bcdefghijklmnopqrstuvwxyz")


def test_int8_texts_are_drawn_one_by_one(charlm, trained, monkeypatch):
    module, kinds = sys.modules["charlm.sampling.generate"], []
    plain = module.reader_of

    def watched(model, weights, *, several):
        kinds.append((weights, several))
        return plain(model, weights, several=several)

    monkeypatch.setattr(module, "reader_of", watched)

    assert charlm(*SAMPLE, "--weights", "int8", "-n", 6).code == 0
    assert charlm(*SAMPLE, "-n", 6).code == 0

    assert kinds == [("int8", False), ("float32", True)]


def test_a_long_text_is_not_kept(charlm, trained, monkeypatch):

    module, longest = sys.modules["charlm.cli.sample_output"], []
    end = module.Show.end
    monkeypatch.setattr(
        module.Show,
        "end",
        lambda self, p, text: longest.append(len(text.pieces)) or end(self, p, text),
    )
    charlm(*SAMPLE, "--max-new-chars", 50)
    charlm(*SAMPLE, "--max-new-chars", 50, "--json")

    assert longest == [1, 50]


def test_a_stopped_batch_shows_only_the_text_that_was_shown(charlm, trained, monkeypatch):
    writing = sys.modules["charlm.sampling.draw"]
    generate = writing.generate

    def interrupted(*arguments):
        for i, drawn in enumerate(generate(*arguments)):
            if i == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield drawn

    monkeypatch.setattr(writing, "generate", interrupted)
    result = charlm(*SAMPLE, "-n", 10, "--no-echo")

    assert result.code == 130
    assert len(result.stdout.rstrip("\n")) == 4


def test_settings_change_the_text_or_are_refused(charlm, trained):
    plain = charlm(*SAMPLE, "--max-new-chars", 80).stdout
    for option, value, wrong in (
        ("--min-p", 1, 0),
        ("--typical-p", 0.1, 2),
        ("--repetition-penalty", 5, 0),
    ):
        assert charlm(*SAMPLE, "--max-new-chars", 80, option, value).stdout != plain
        refused = charlm(*SAMPLE, option, wrong)
        assert refused.code == 2
        assert refused.error.startswith(f"{option} ")


def test_unknown_characters_can_be_written_as_the_model_can(charlm, trained):
    found = charlm(*SAMPLE, "-p", "thé ☃", "--unknown", "nearest", "--no-echo")

    assert found.stdout == charlm(*SAMPLE, "-p", "the ", "--no-echo").stdout


def test_alternatives_are_listed_for_machines(charlm, trained):
    result = json.loads(charlm(*SAMPLE, "--json", "--show-alternatives").stdout)

    assert len(result["alternatives"]) == result["chars"]
    for likely, letter, nats in zip(
        result["alternatives"], result["text"][-12:], result["logprobs_nats"], strict=True
    ):
        assert [p for _, p in likely] == sorted((p for _, p in likely), reverse=True)
        assert len(likely) == 5
        if letter in dict(likely):
            assert math.log(dict(likely)[letter]) == pytest.approx(nats, abs=0.05)


def test_colours_are_for_a_terminal(charlm, trained, monkeypatch):
    plain = charlm(*SAMPLE)
    piped = charlm(*SAMPLE, "--show-alternatives")
    monkeypatch.setattr("charlm.cli.output.colours", lambda: True)
    coloured = charlm(*SAMPLE, "--show-alternatives")

    assert piped.stdout == plain.stdout
    assert "colours need a terminal" in piped.stderr
    assert "\x1b[3" in coloured.stdout
    assert re.sub(r"\x1b\[\d*m", "", coloured.stdout) == plain.stdout


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_who_wants_no_colours_gets_none(monkeypatch, terminal, environment, expected):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal))

    assert output.colours() is expected


def test_int8_weights_write_too(charlm, trained):
    result = charlm(*SAMPLE, "--weights", "int8", "--json", "-n", 6)

    texts = [json.loads(line) for line in result.stdout.splitlines()]
    assert [text["seed"] for text in texts] == [*range(7, 13)]
    assert all(text["chars"] == 12 for text in texts)


def converse(charlm, monkeypatch, lines, *arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return charlm(*SAMPLE, "--interactive", *arguments)


def test_a_conversation_continues_one_prompt_after_the_other(charlm, trained, monkeypatch):
    result = converse(charlm, monkeypatch, ["the ", "☃", "fox"])

    first = charlm(*SAMPLE, "-p", "the ").stdout
    second = charlm(*SAMPLE, "-p", "fox", "--seed", 8).stdout
    assert (result.code, result.stdout) == (0, f"{first}\n{second}")
    assert "'☃' (U+2603)" in result.stderr


def test_an_interrupt_stops_the_text_and_not_the_conversation(charlm, trained, monkeypatch):
    writing = sys.modules["charlm.sampling.draw"]
    generate, texts = writing.generate, []

    def interrupted(*arguments):
        texts.append(0)
        for i, drawn in enumerate(generate(*arguments)):
            if len(texts) == 1 and i == 3:
                for _ in range(3):  # once is enough, and more is no more
                    os.kill(os.getpid(), signal.SIGINT)
            yield drawn

    monkeypatch.setattr(writing, "generate", interrupted)
    result = converse(charlm, monkeypatch, ["the ", "fox"], "--no-echo")

    lines = result.stdout.splitlines()
    assert result.code == 0
    assert len(lines[0]) == 4
    assert result.stdout.endswith(charlm(*SAMPLE, "-p", "fox", "--seed", 8, "--no-echo").stdout)


def test_a_conversation_asks_for_its_own_prompts(charlm, trained):
    result = charlm("sample", "-i", "--json")

    assert result.code == 2
    assert "leave out --prompt, --prompt-file and --json" in result.error


def test_a_person_who_types_an_unknown_letter_is_told_what_to_do(charlm, trained, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("zoë\n".encode())))

    result = charlm("sample", "-i")

    said = "not in this model's alphabet of 31; type others; or start again with --unknown nearest"
    assert f"{said}, which takes similar ones, or --unknown skip\n" in result.stderr


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
    assert result.error == "--prompt and --prompt-file: given both; choose one"


@pytest.mark.parametrize(
    ("name", "reason"), [("nope.txt", "No such file or directory"), (".", "Is a directory")]
)
def test_a_prompt_file_that_cannot_be_read_is_named(charlm, trained, name, reason):
    result = charlm(*SAMPLE, "--prompt-file", name)

    assert result.code == 3
    assert result.error.startswith(f"{name}: cannot be read: {reason}; name a file")


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
    assert result.error == f"--checkpoint {shlex.quote(which)}: expected best, last or a step"


def test_no_characters_may_be_asked_for(charlm, trained):
    result = charlm("sample", "--max-new-chars", 0, "--json", "-p", "fox")

    assert json.loads(result.stdout)["text"] == "fox"
    assert json.loads(result.stdout)["mean_logprob_nats"] is None


def test_control_characters_of_a_prompt_are_not_sent_to_the_terminal(charlm, trained):
    result = charlm(*SAMPLE, "-p", "\x1b[31m")

    assert result.code == 3
    assert "character 1 '\\x1b' (U+001B)" in result.error
    assert "\x1b" not in result.stderr


@pytest.fixture(scope="module")
def _of_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of_bytes")
    data = b"".join(bytes([0xFF, i, 0xE2, 0x98, 0x83, 0x20]) for i in range(256))
    (folder / "text.txt").write_bytes(data)
    (folder / "tiny.yaml").write_text(TINY)
    settings = ("data.unit=bytes", "train.sample_every=6", "sample.temperature=2.0")
    with contextlib.chdir(folder):
        assert run(["train", "--config", "tiny.yaml", "-q", "run.dtype=float32", *settings]) == 0
    return folder


@pytest.fixture
def of_bytes(_of_bytes, tmp_path):
    """A copy of a run of a model of bytes, of a text that is not UTF-8: its bytes."""
    shutil.copytree(_of_bytes, tmp_path, dirs_exist_ok=True)
    return Path("runs/tiny")


def drawn(command):
    """Return what a command writes to a file, in bytes."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(file):
        assert run([str(word) for word in command]) == 0
    return file.buffer.getvalue()


def test_bytes_are_written_as_they_are_drawn(charlm, of_bytes):
    written = drawn([*SAMPLE, "-p", "é☃\udcff"])
    prompt = "é☃".encode() + b"\xff"

    exact = b"".join(load(of_bytes).stream_bytes(prompt, seed=7, max_new_chars=12))
    assert written == prompt + exact + b"\n"
    assert len(exact) == 12
    with pytest.raises(UnicodeDecodeError):
        written.decode()


def test_json_of_bytes_is_unicode_and_has_the_bytes_too(charlm, of_bytes):
    written = drawn([*SAMPLE, "-p", "é", "--show-alternatives", "--json"])
    record, exact = json.loads(written), drawn([*SAMPLE, "-p", "é"]).removesuffix(b"\n")

    assert record["text"] == "".join(
        "\ufffd" if c >= "\udc80" else c for c in exact.decode("utf-8", "surrogateescape")
    )
    assert base64.b64decode(record["text_base64"]) == exact
    assert (record["prompt"], "prompt_base64" in record) == ("é", False)
    names = [name for likely in record["alternatives"] for name, _ in likely]
    assert all(len(name) == 1 or re.fullmatch(r"\\x[89a-f][0-9a-f]", name) for name in names)
    assert "\ufffd" not in names


def test_a_prompt_file_of_any_bytes_is_read_by_a_model_of_bytes(charlm, of_bytes):
    prompt = b"\xef\xbb\xbf\xff\0\x80\xe2"
    Path("prompt.bin").write_bytes(prompt)

    assert drawn([*SAMPLE, "--prompt-file", "prompt.bin"]).startswith(prompt)


def test_a_stop_text_of_bytes_ends_bytes(charlm, of_bytes):
    whole = drawn([*SAMPLE, "--no-echo"]).removesuffix(b"\n")
    end = whole[5:7]

    argument = end.decode("utf-8", "surrogateescape")
    assert drawn([*SAMPLE, "--no-echo", "--stop", argument]) == whole[: whole.find(end)] + b"\n"
    made = load(of_bytes).stream_bytes(seed=7, max_new_chars=12, stop=end)
    assert b"".join(made) == whole[: whole.find(end)]


def test_a_terminal_shows_escapes_for_bytes(charlm, of_bytes):
    written = on_a_terminal([*SAMPLE, "-p", "é\udcff"])[0]

    assert written.startswith("é\\xff")
    assert written.isprintable() or "\n" in written


def test_a_sample_of_training_holds_its_bytes(charlm, of_bytes):
    records = map(json.loads, (of_bytes / "metrics.jsonl").read_text().splitlines())
    (record,) = (record for record in records if record["kind"] == "sample")

    exact = (of_bytes / "samples/step-6.txt").read_bytes()
    assert base64.b64decode(record["text_base64"]) == exact
    assert "\ufffd" in record["text"]
    assert list(record)[-1] == "seconds"


def test_python_gets_text_that_it_can_print(of_bytes):
    pieces = [*load(of_bytes).stream("\udcff", seed=7, max_new_chars=40)]

    "".join(pieces).encode()
    assert "\ufffd" in pieces


@pytest.mark.parametrize("option", ["-n", "--best-of"])
def test_more_texts_than_anyone_reads_are_refused(charlm, trained, option):
    result = charlm("sample", option, 10**20)

    assert result.code == 2
    assert result.error.startswith(f"{option} {10**20}: expected a number of at most 1,000,000; ")


def test_a_signal_ends_the_search_for_the_best(charlm, trained, monkeypatch):
    """Each group of texts is drawn until the signal; the best of them is shown."""
    groups, draw = [], Drawing.draw

    def drawn(self, seeds, show=None):
        groups.append(len(seeds))
        if len(groups) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(self, seeds, show)

    monkeypatch.setattr(Drawing, "draw", drawn)

    result = charlm("sample", "--best-of", 100_000, "--max-new-chars", 3, "--seed", 1)

    assert result.code == 130
    assert groups == [64, 64]
    assert len(result.stdout.strip("\n")) >= 3


def test_a_line_that_never_ends_is_refused(charlm, trained, monkeypatch):
    monkeypatch.setattr(prompts, "MAX_PROMPT", 1000)
    monkeypatch.setattr("sys.stdin", io.StringIO("the " * 1000))

    result = charlm("sample", "-i")

    assert result.code == 3
    assert result.error.startswith("standard input: longer than ")


def test_a_model_that_adapts_learns_from_the_prompt_and_the_run_stays(charlm, tiny):
    assert charlm("train", "--config", "ngram", "data.source=text.txt", "-q").code == 0
    Path("prompt.txt").write_text("zebra zoo! " * 5 + "ze", encoding="utf-8")
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    prompt = (*SAMPLE, "--prompt-file", "prompt.txt", "--no-echo")
    prompt += ("--temperature", 0)

    as_trained = charlm(*prompt).stdout
    adapted, again = (charlm(*prompt, "--adapt") for _ in range(2))

    assert adapted.stdout == "bra zoo! zeb\n"
    assert adapted.stdout == again.stdout != as_trained
    assert adapted.stderr == ""
    assert before == {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    (three,) = {
        record["text"]
        for record in map(
            json.loads, charlm(*prompt, "--adapt", "-n", 3, "--json").stdout.splitlines()
        )
    }
    assert three == adapted.stdout.removesuffix("\n")


def test_a_gpt_learns_from_the_prompt_if_its_weights_may(charlm, trained):
    prompt = (*SAMPLE, "--prompt", "the quick " * 8)

    still = charlm(*prompt, "--adapt")
    learns = ("--set", "adapt.weights=true", "--set", "adapt.learning_rate=0.1")
    learning = charlm(*prompt, "--adapt", *learns)

    assert "--adapt: the model learned nothing; try --set adapt.weights=true" in still.stderr
    assert learning.stderr == ""
    assert still.stdout == charlm(*prompt).stdout
    assert learning.stdout != still.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "adapt.weights=true"], "nothing is learned; add --adapt"),
        (["--adapt", "--set", "run.seed=1"], "only keys of the section adapt"),
        (["--adapt", "--weights", "int8"], "only float32 weights can learn"),
    ],
)
def test_what_does_not_go_with_adapting_is_refused(charlm, trained, options, message):
    result = charlm(*SAMPLE, *options)

    assert result.code == 2
    assert message in result.stderr
