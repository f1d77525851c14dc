"""A run that begins with the weights of another."""

import json
from pathlib import Path

import pytest
import torch

from charlm.models import ModernGPT
from charlm.runs import RunFolder
from charlm.runs.load import load_model
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
            ["--init-from", "runs/tiny", "data.source=greek.txt"],
            4,
            "train.init_from: runs/tiny: knows no character of this text; train without it",
        ),
        (
            ["--init-from", "runs/tiny", "data.unit=bytes"],
            4,
            "train.init_from: runs/tiny: is a model of chars, this text is read as bytes",
        ),
        (["--init-from", "runs/tiny", "--resume"], 2, "choose one"),
    ],
    ids=["missing", "another model", "no character known", "bytes", "16-with-resume"],
)
def test_what_does_not_fit_is_refused(charlm, trained, arguments, code, core):
    Path("greek.txt").write_text("αβγδ" * 100)
    config = [] if "--resume" in arguments else ["-c", "tiny.yaml", "--out", "new"]

    result = charlm("train", *config, *arguments)

    assert result.code == code
    assert core in result.error
    assert not Path("new").exists()


@pytest.fixture
def other_text():
    """A text without `q`, `P` and `!`, and with characters that the trained run does not know."""
    text = Path("text.txt").read_text()
    text = text.translate(str.maketrans({"q": "é", "P": "Ω", "!": None}))
    Path("other.txt").write_text(text)
    return text


NOTE = (
    "runs/tiny knows 28 of 30 characters; 2 begin fresh ('é', 'Ω'); "
    "3 of its own are left out ('!', 'P', 'q')"
)


def test_another_alphabet_keeps_what_is_known_and_says_so(make_loop, trained, other_text, charlm):
    loop = make_loop(FROM, "data.source=other.txt")
    old = load_model(RunFolder(trained))
    known = [c for c in loop.tokenizer.alphabet if c in old.tokenizer.alphabet]
    here, there = (
        torch.from_numpy(t.encode("".join(known))) for t in (loop.tokenizer, old.tokenizer)
    )
    text = "the lazy dog"

    with torch.no_grad():
        found = loop.learner.model.eval()(torch.from_numpy(loop.tokenizer.encode(text)[None, :8]))
        expected = old.model(torch.from_numpy(old.tokenizer.encode(text)[None, :8]))

    torch.testing.assert_close(found[..., here], expected[..., there])
    result = charlm("train", "-c", "tiny.yaml", "--init-from", "runs/tiny", "--file", "other.txt")
    assert f"note: train.init_from: {NOTE}\n" in result.stderr
    assert charlm("verify", "runs/tiny-2").code == 0


def test_a_run_with_another_alphabet_resumes_with_the_same_bits(make_loop, trained, other_text):
    options = [FROM, "data.source=other.txt"]
    straight = make_loop(*options, out="straight")
    list(straight.records())
    stopped = make_loop(*options)
    for record in stopped.records():
        if record.kind == "train":
            break
    stopped.metrics.close()
    trained.rename("away")

    resumed = make_loop(resume=True)
    list(resumed.records())

    assert state_hash(resumed) == state_hash(straight)


@pytest.mark.parametrize("model", ["n_gram: 3", "order: 3"])
def test_experts_may_come_from_runs_of_other_alphabets(charlm, trained, other_text, model):
    tiny = Path("tiny.yaml").read_text()
    start, end = tiny.index("  type: gpt"), tiny.index("train:")
    counted = "  type: ngram\n  order: 3\n"
    gpt = tiny[start:end] + "  n_gram: 3\n"
    Path("one.yaml").write_text(tiny[:start] + (gpt if "gram" in model else counted) + tiny[end:])
    assert charlm("train", "-c", "one.yaml", "--out", "runs/one", "-q").code == 0
    experts = "{one: {run: runs/one}, two: {model: {type: ngram, order: 2}}}"
    mixture = f"  type: mixture\n  block_size: 8\n  experts: {experts}\n"
    mixture = tiny[:start] + mixture + "run:\n  device: cpu\n"
    Path("mixture.yaml").write_text(mixture.replace("text.txt", "other.txt"))

    result = charlm("train", "-c", "mixture.yaml", "--out", "joined")

    assert result.code == 0, result.stderr
    assert f"model.experts.one.run: {NOTE.replace('tiny', 'one')}\n" in result.stderr
    assert charlm("verify", "joined").code == 0
    assert charlm("eval", "--run", "joined").code == 0


def test_a_kind_that_cannot_be_taken_over_needs_the_same_alphabet(
    charlm, trained, other_text, monkeypatch
):
    monkeypatch.setattr(ModernGPT, "per_character", None)

    result = charlm("train", "-c", "tiny.yaml", FROM, "data.source=other.txt", "--out", "new")

    assert result.code == 4
    assert result.error == (
        "train.init_from: runs/tiny: has another alphabet: only the run has '!' (U+0021), and "
        "models of type 'gpt' cannot be taken over to another; train it on this text"
    )


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
