import json
import os
import signal

import pytest


def test_it_draws_the_curve_and_suggests_a_rate(charlm, tiny):
    result = charlm("lr-find", "-c", "tiny.yaml", "--steps", "30")

    assert result.code == 0
    lines = result.stdout.splitlines()
    assert lines[0].strip() == "loss (nats, smoothed) by learning rate"
    assert any("10^-3" in line for line in lines)
    assert lines[-1].startswith("try    train.learning_rate=")
    assert sorted(os.listdir()) == ["text.txt", "tiny.yaml"]  # nothing is kept


def test_it_prints_the_curve_for_machines(charlm, tiny):
    found = json.loads(charlm("lr-find", "-c", "tiny.yaml", "--steps", "30", "--json").stdout)

    assert found["learning_rates"][0] == pytest.approx(1e-5)
    assert len(found["learning_rates"]) == len(found["loss_nats"]) == len(found["smooth_nats"])
    assert found["lowest_at"] in found["learning_rates"]
    assert found["suggestion"] == float(f"{found['lowest_at'] / 10:.0e}")


def test_a_loss_that_still_falls_at_the_end_is_said_to(charlm, tiny):
    result = charlm("lr-find", "-c", "tiny.yaml", "--steps", "10", "--to", "1e-3")

    assert "still falling at the end; raise --to" in result.stderr


def test_rates_that_never_learn_suggest_nothing(charlm, tiny):
    arguments = ("lr-find", "-c", "tiny.yaml", "--steps", "10", "--from", "100", "--to", "1e6")
    result = charlm(*arguments)
    found = json.loads(charlm(*arguments, "--json").stdout)

    assert (result.code, found["suggestion"]) == (0, None)
    assert "the loss never fell below" in result.stderr
    assert "try " not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-c", "tiny.yaml", "--from", "1", "--to", "0.1"],
            "--from 1 --to 0.1: expected from < to",
        ),
        (
            ["-c", "tiny.yaml", "--from", "0"],
            "--from 0 --to 1: expected from < to, between 1e-12 and 1e+06",
        ),
        (["-c", "tiny.yaml", "--to", "inf"], "expected from < to"),
        (["-c", "tiny.yaml", "--from", "nan"], "expected from < to"),
        (["-c", "ngram"], "model.type: ngram has no learning rate"),
        (["-c", "mixture"], "model.type: mixture has no learning rate"),
        ([], "--config: missing; name a YAML file or a preset"),
        (
            ["-c", "tiny.yaml", "--from", "1e5", "--to", "1e6", "train.weight_decay=1e38"],
            "not finite after step 1",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(charlm, tiny, arguments, message):
    result = charlm("lr-find", *arguments)

    assert result.code == 2
    assert message in result.error


def test_a_signal_ends_it_without_a_suggestion(charlm, tiny, monkeypatch):
    from charlm.training.gradients import GradientLearner

    update = GradientLearner.update

    def interrupted(self, rate):
        os.kill(os.getpid(), signal.SIGINT)
        return update(self, rate)

    monkeypatch.setattr(GradientLearner, "update", interrupted)

    result = charlm("lr-find", "-c", "tiny.yaml")

    assert (result.code, result.stdout) == (130, "")
    assert "error" not in result.stderr
