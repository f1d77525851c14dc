from pathlib import Path

import pytest

from charlm.reporting.facts import facts_of
from charlm.reporting.opened import named, open_run, open_runs
from charlm.runs import RunFolder


@pytest.fixture
def facts(opened):
    return lambda name: facts_of(opened(name))


def test_a_sentence_says_what_a_run_is(facts):
    assert facts("gpt").sentence.startswith("gpt is a gpt (modern) model with ")
    assert "trained for 4 steps on 2,322 characters of text.txt." in facts("gpt").sentence
    assert "counted in 2,322 characters" in facts("ngram").sentence
    assert "joined from 2 experts on" in facts("linear").sentence
    assert "96 records (" in facts("records").sentence
    assert "bytes of hostile.txt" in facts("bytes").sentence
    assert "It was not scored on a validation part." in facts("unscored").sentence


def test_the_loss_is_that_of_the_checkpoint(charlm, runs, facts):
    rows = dict(facts("gpt").rows)

    scored = charlm("eval", runs("gpt"), "--device", "cpu").stdout
    nats = float(rows["validation loss"].split()[0])
    assert abs(nats - float(scored.split()[1])) < 2e-4
    assert rows["checkpoint"].endswith(", the best on the validation part")
    assert dict(facts("unscored").rows)["checkpoint"] == "step 4"


def test_settings_that_are_not_the_defaults_are_told_apart(facts):
    settings = {one.key: one for one in facts("gpt").settings}

    assert not settings["train.max_steps"].usual
    assert settings["train.max_steps"].value == "4"
    assert settings["train.beta1"].usual
    assert settings["train.minutes"].value == "null"
    assert settings["model.type"].value == "gpt"
    assert settings["sample.prompt"].value == "''"
    experts = {one.key for one in facts("linear").settings}
    assert "model.experts.gpt.train.max_steps" in experts


def test_baselines_that_the_run_has_kept_are_named(charlm, tiny):
    assert charlm("train", "--config", "tiny.yaml", "--out", "run").code == 0

    run = open_run(RunFolder(Path("run")), "cpu")

    assert run.ladder is not None
    assert "not as good as" in facts_of(run).sentence


def test_two_runs_never_share_a_name():
    paths = ["runs/gpt", "other/gpt", "runs/ngram", "runs/gpt"]

    assert named([RunFolder(Path(path)) for path in paths]) == [
        "runs/gpt (1)",
        "other/gpt",
        "ngram",
        "runs/gpt (2)",
    ]


def test_the_first_of_several_is_the_main_one(runs):
    found = open_runs([runs("ngram"), runs("gpt")], "cpu")

    assert [one.name for one in found] == ["ngram", "gpt"]
    assert found[0].val is not None
    assert open_runs([runs("unscored")], "cpu")[0].val is None
