"""A run that begins with the weights of another."""

import json
from pathlib import Path

import pytest
import torch

from charlm.runs.weights import load_tensors
from tests.training.conftest import state_hash

FROM = "train.init_from=runs/tiny"


def test_it_begins_with_the_best_weights_of_the_other(make_loop, trained):
    loop = make_loop(FROM)

    best = load_tensors(trained / "checkpoints" / "step-6" / "model.safetensors")
    for name, parameter in loop.learner.model.named_parameters():
        assert torch.equal(parameter, best[name])
    assert loop.state.step == 0
    first = next(r for r in loop.records() if r.kind == "eval")
    assert first.loss_nats == pytest.approx(3.416, abs=0.01)


@pytest.mark.parametrize("val", ["0.1", "0"])
def test_resumed_it_does_not_need_the_other_any_more(make_loop, trained, val):
    options = [FROM, f"data.val_fraction={val}"]
    straight = make_loop(*options, out="straight")
    list(straight.records())
    stopped = make_loop(*options)
    for record in stopped.records():
        if record.kind == "train":
            break
    stopped.metrics.close()
    trained.rename("away")

    resumed = make_loop(resume=True)
    assert resumed.state.step == 0
    list(resumed.records())

    assert state_hash(resumed) == state_hash(straight)


def test_the_command_says_which_run(charlm, trained):
    result = charlm("train", "-c", "tiny.yaml", "--init-from", "runs/tiny", "--out", "new")

    assert result.code == 0
    assert "init_from: runs/tiny" in Path("new/config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "core"),
    [
        (["--init-from", "nowhere"], 4, "train.init_from: nowhere: not found; "),
        (
            ["--init-from", "runs/tiny", "model.n_layer=3"],
            4,
            "train.init_from: runs/tiny: its model.n_layer is 2, here 3; make them equal",
        ),
        (
            ["--init-from", "runs/tiny", "data.source=other.txt"],
            4,
            "train.init_from: runs/tiny: has another alphabet: only this text has",
        ),
        (["--init-from", "runs/tiny", "--resume"], 2, "choose one"),
    ],
    ids=["missing", "another model", "another alphabet", "16-with-resume"],
)
def test_what_does_not_fit_is_refused(charlm, trained, arguments, code, core):
    Path("other.txt").write_text(Path("text.txt").read_text() + "\u00e9")
    config = [] if "--resume" in arguments else ["-c", "tiny.yaml", "--out", "new"]

    result = charlm("train", *config, *arguments)

    assert result.code == code
    assert core in result.error
    assert not Path("new").exists()


@pytest.mark.parametrize("what", ["config.yaml", "tokenizer.json"])
def test_weights_that_do_not_belong_to_their_run_are_refused(charlm, trained, what):
    """The shapes fit; the number of heads, or the order of the alphabet, does not."""
    path = trained / what
    text = path.read_text()
    if what == "config.yaml":
        path.write_text(text.replace("n_head: 2", "n_head: 4"))
    else:
        content = json.loads(text)
        content["alphabet"] = content["alphabet"][:-1] + "~"
        path.write_text(json.dumps(content))
        text = Path("text.txt").read_text()
        Path("text.txt").write_text(text.replace(max(text), "~"))

    heads = 4 if what == "config.yaml" else 2
    begin = ("train", "-c", "tiny.yaml", "--init-from", "runs/tiny", "--out", "new")
    result = charlm(*begin, f"model.n_head={heads}")

    assert result.code == 4
    assert result.error.startswith(f"train.init_from: runs/tiny/{what}: ")
    assert "step-6 was saved with" in result.error
    assert not Path("new").exists()
