"""Options in general: each counts once, whatever the verb."""

from pathlib import Path

import pytest
import typer

from charlm import __version__
from charlm.cli.main import app
from charlm.cli.verb import Verb


def commands(group=None, name=()):
    """Yield every command with the words that call it."""
    for word, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*name, word))
        else:
            yield (*name, word), command


COMMANDS = dict(commands())
SINGLE = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option" and not option.is_flag and not option.multiple
]


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_counts_its_options(name):
    assert isinstance(COMMANDS[name], Verb)


@pytest.mark.parametrize(("name", "option"), SINGLE, ids=str)
def test_an_option_that_is_given_twice_is_refused(refused, name, option):
    flag = max(option.opts, key=len)

    (line,) = refused(2, *name, flag, "1", flag, "2")

    assert line == f"{flag}: given twice: '1', then '2'; keep one"


def test_a_short_and_a_long_name_are_one_option(refused):
    (line,) = refused(2, "train", "-c", "gpt", "--config=ngram")

    assert line == "--config: given twice: 'gpt', then 'ngram'; keep one"


def test_a_flag_may_be_repeated_but_not_contradicted(charlm, refused):
    assert charlm("train", "-c", "gpt", "--print-config", "--print-config").code == 0
    (line,) = refused(2, "sample", "--echo", "--no-echo")
    assert line == "--echo and --no-echo: given both; choose one"


def test_an_option_of_several_values_is_repeatable(charlm, trained):
    result = charlm("sample", "--stop", "a", "--stop", "o", "--prompt", "the ", "--seed", "1")

    assert result.code == 0
    assert not set("ao") & set(result.stdout.removeprefix("the "))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("train.max_steps=5", "train.max_steps=6"), "train.max_steps=5, then train.max_steps=6"),
        (("--minutes", "1", "train.minutes=2"), "train.minutes=2, then --minutes 1"),
        (("--seed", "1", "run.seed=2"), "run.seed=2, then --seed 1"),
        (("--device", "cpu", "run.device=cuda"), "run.device=cuda, then --device cpu"),
        (("--init-from", "a", "train.init_from=b"), "train.init_from=b, then --init-from a"),
        (("--out", "a", "run.out=b"), "run.out=b, then --out a"),
        (
            ("model.experts.a.run=x", "model.experts={}"),
            "model.experts.a.run=x, then model.experts={}",
        ),
    ],
    ids=str,
)
def test_a_key_that_is_given_twice_is_refused(refused, given, said):
    (line,) = refused(2, "train", "-c", "tiny.yaml", *given)

    assert line.partition(": ")[2] == f"given twice: {said}; keep one"


@pytest.mark.parametrize("verb", ["explain", "gradcheck", "lr-find"])
def test_every_verb_with_keys_refuses_one_that_is_given_twice(refused, verb):
    (line,) = refused(2, verb, "-c", "tiny.yaml", "run.seed=1", "run.seed=1")

    assert line == "run.seed: given twice: run.seed=1, then run.seed=1; keep one"


@pytest.mark.parametrize("verb", ["sample", "eval", "verify"])
@pytest.mark.parametrize("run", [["tiny"], ["--run", "tiny"], ["runs/tiny"], ["--run=runs/tiny"]])
def test_a_run_is_an_argument_or_an_option_and_a_bare_name_is_one_of_runs(
    charlm, trained, verb, run
):
    assert charlm(verb, *run).code == 0


def test_a_bare_name_is_looked_up_in_runs_for_training_too(charlm, trained):
    result = charlm("train", "--resume", "--run", "tiny")

    assert result.code == 0
    assert "run    runs/tiny" in result.stderr
    assert charlm("train", "-c", "tiny.yaml", "--init-from", "tiny", "-q").code == 0


def test_a_run_here_comes_before_one_of_runs(charlm, trained):
    trained.rename("other")
    trained.parent.joinpath("other").mkdir(parents=True)
    trained.parent.joinpath("other/config.yaml").write_text("broken")

    assert charlm("sample", "--run", "other").code == 0


def test_a_name_that_is_no_run_is_answered_with_the_runs_there_are(refused, trained):
    assert refused(4, "eval", "quickstart") == ["quickstart: not found; runs there: runs/tiny"]


@pytest.mark.parametrize("verb", ["sample", "eval", "verify"])
def test_a_run_is_given_once(refused, verb):
    (line,) = refused(2, verb, "a", "--run", "b")

    assert line == "--run: given twice: 'a', then 'b'; keep one"


@pytest.mark.parametrize("verb", [["baselines"], ["data", "info"]], ids=" ".join)
def test_a_text_is_an_argument_or_an_option(charlm, refused, verb):
    given, named = charlm(*verb, "text.txt"), charlm(*verb, "--file", "text.txt")

    assert given.code == named.code == 0
    assert given.stderr == named.stderr
    assert refused(2, *verb) == ["TEXT: missing; name a file, folder, glob, named text or -"]
    assert refused(2, *verb, "a", "--file", "b") == ["--file: given twice: 'a', then 'b'; keep one"]


def test_a_text_to_train_on_is_an_option_too(charlm, tiny):
    shown = charlm("train", "-c", "gpt", "--file", "text.txt", "--print-config").stdout

    assert "\n  source: text.txt\n" in shown
    assert "V = 31" in charlm("explain", "-c", "gpt", "--file", "text.txt").stdout


@pytest.mark.parametrize(
    ("command", "option", "mend"),
    [
        (
            "train",
            "--force",
            "charlm never writes over a run; choose another --out, or first: charlm runs rm RUN",
        ),
        ("train", "--learning-rate", "set train.learning_rate=VALUE"),
        ("train", "--lr", "set train.learning_rate=VALUE"),
        ("lr-find", "--max_iters", "set train.max_steps=VALUE"),
        ("explain", "--n-layer", "set model.n_layer=VALUE"),
        ("train", "--text", "use --file"),
        ("sample", "--max-new-tokens", "use --max-new-chars"),
        ("sample", "--num-samples", "use -n"),
        ("eval", "--data", "use --file"),
    ],
)
def test_an_option_of_another_program_is_answered_with_ours(refused, command, option, mend):
    assert refused(2, command, option, "3") == [f"{option}: no such option; {mend}"]


def test_an_option_that_means_nothing_is_only_refused(charlm):
    assert charlm("doctor", "--force").error.startswith("No such option: --force")
    assert charlm("train", "--confg", "gpt").error.startswith("No such option: --confg")


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version_has_two_names(charlm, option):
    assert charlm(option).stdout == f"charlm {__version__}\n"


def test_the_place_of_a_result_has_a_short_name(charlm, tiny):
    assert charlm("train", "-c", "tiny.yaml", "-q", "-o", "here").code == 0
    assert Path("here/config.yaml").is_file()
    assert charlm("graph", "a*2", "a=3", "-o", "drawn.dot").code == 0
    assert Path("drawn.dot").is_file()


def test_a_run_to_resume_may_be_an_argument(charlm, refused, trained):
    assert "run    runs/tiny\n" in charlm("train", "--resume", "tiny", "train.max_steps=7").stderr
    assert "run    runs/tiny\n" in charlm("train", "--resume", "runs/tiny").stderr
    (line,) = refused(2, "train", "--resume", "a", "--out", "b")
    assert line == "--out: given twice: 'a', then 'b'; keep one"


def test_a_text_among_the_keys_is_answered_with_its_key(refused):
    (line,) = refused(2, "train", "-c", "gpt", "text.txt")

    assert line == "text.txt: expected KEY=VALUE; a text is given as data.source=text.txt"


def test_a_part_of_the_run_and_another_text_are_not_scored_at_once(refused, trained):
    (line,) = refused(2, "eval", "--file", "text.txt", "--split", "val")

    assert line == "--split val: a --file is scored as a whole; leave one out"
