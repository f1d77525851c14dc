"""`charlm.train` does what the command does."""

import json
import os
import signal
from pathlib import Path

import pytest

import charlm as package
from charlm.errors import DataError, UsageError
from charlm.runs.records import EvalRecord, TrainRecord
from tests.conftest import TEXT, TINY


def losses(folder):
    records = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [one["loss_nats"] for one in records if one["kind"] == "train"]


def test_a_run_has_the_losses_of_the_command(charlm, tiny):
    assert charlm("train", "-c", tiny, "-o", "theirs", "train.max_steps=5", "-q").code == 0

    seen = []
    run = package.train(str(tiny), out="ours", on_record=seen.append, train={"max_steps": 5})

    assert losses("ours") == losses("theirs")
    assert [one.loss_nats for one in seen if isinstance(one, TrainRecord)] == losses("ours")
    assert run.path == Path("ours")
    (last,) = {one.loss_nats for one in seen if isinstance(one, EvalRecord) and one.step == 5}
    assert run.evaluate(checkpoint="last").loss_nats == pytest.approx(last)


@pytest.mark.parametrize("kind", ["text", "path", "mapping"])
def test_a_text_may_be_a_string_or_a_path(tiny, kind):
    text = {"text": TEXT, "path": Path("text.txt"), "mapping": None}[kind]
    config = {"model": {"type": "bigram"}, "data": {"source": "text.txt"}, "run": {"device": "cpu"}}

    run = package.train(config, text, train={"max_steps": 3}, seed=5)

    assert run.config.run.seed == 5
    reference = package.train(config, train={"max_steps": 3}, seed=5)
    assert losses(run.path) == losses(reference.path)
    assert (run.path.name, reference.path.name) == ("bigram", "bigram-2")


def test_records_are_a_list_of_any_strings():
    names = [f"{a}nn{b}\n!" for a in "aeiou" for b in "aeiou"] * 2

    run = package.train("ngram", (name for name in names), model={"order": 3})

    assert run.config.data.records == "lines"
    assert run.load().generate(seed=1) in {*names, *run.load().generate(n=40, seed=1)}
    assert run.load().score("anna\n!").unknown == 0


def test_an_interrupt_saves_and_the_run_goes_on_to_the_same_bits(tiny):
    whole = package.train(str(tiny), out="whole")

    def interrupt(record):
        if isinstance(record, TrainRecord) and record.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        package.train(str(tiny), out="parts", on_record=interrupt)
    assert package.open("parts").checkpoints[-1].step == 4
    run = package.train(resume=True, out="parts")

    assert losses("parts") == losses("whole")
    weights = [one.load("last").module.state_dict() for one in (whole, run)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, UsageError, "config: missing; name a preset"),
        ({"config": "gtp"}, UsageError, "did you mean"),
        ({"config": "bigram", "text": []}, DataError, "text: has no records"),
        ({"config": "bigram", "text": [1]}, UsageError, "record 1 is int, not a string"),
        ({"config": "bigram", "text": "x"}, DataError, r"^text: too short"),
        ({"config": "ngram", "text": ["a"]}, DataError, "^text: 1 record"),
        ({"config": "names", "text": ["a\U0010ffff", "b", "c"]}, DataError, "^text: "),
        ({"config": "bigram", "steps": 3}, UsageError, "steps: no section of a configuration"),
        ({"config": "bigram", "train": 3}, UsageError, "give a dictionary"),
        ({"config": "bigram", "train": {"max_step": 3}}, UsageError, "did you mean"),
        ({"config": {"model": {}}, "resume": True}, UsageError, "config: to resume with"),
    ],
)
def test_mistakes_leave_nothing_behind(arguments, error, message):
    with pytest.raises(error, match=message):
        package.train(**arguments)
    assert not list(Path().iterdir())


def test_processes_that_were_started_to_share_a_run_are_sent_to_the_command(tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="start torchrun with -m charlm train, or change"):
        package.train(str(tiny), out="shared", train={"parallel": "ddp"})

    assert not Path("shared").exists()
    assert package.train(str(tiny), out="alone", train={"max_steps": 3}).path.exists()


def test_a_string_that_names_a_file_is_no_text():
    Path("my.txt").write_text(TEXT)

    with pytest.raises(UsageError) as caught:
        package.train("bigram", "my.txt")

    said = "a string is the text itself, and this one names a file; give pathlib.Path('my.txt')"
    assert str(caught.value) == f"text='my.txt': {said}"
    with pytest.raises(DataError, match=r"^text: its val part has 1 of 8 characters"):
        package.baselines("mine.txt")


def test_a_bar_is_drawn_on_request_only(tiny, capsys):
    package.train(str(tiny), out="a")
    assert capsys.readouterr() == ("", "")

    package.train(str(tiny), out="b", progress=True)
    assert "6/6" in capsys.readouterr().err


def test_the_tiny_configuration_is_what_these_tests_take_it_for():
    assert "max_steps: 6" in TINY
