"""Models of minGPT and makemore become runs that compute the same."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import charlm as package
from tests.conftest import TEXT
from tests.exchange import theirs

NAMES = ["anna", "bo", "bob", "nabab", "o", "ana"]
SYMBOLS = "abno"
SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 12}


@pytest.fixture
def mingpt():
    """A model of minGPT, with the file that its program wrote before the sizes were known."""
    torch.manual_seed(0)
    model = theirs.Transformer(31, **SIZES | {"n_head": 3}, block_size=8, old=True)
    torch.save(model.state_dict(), "model.pt")
    section = dict.fromkeys(("n_layer", "n_head", "n_embd", "vocab_size", "block_size"))
    section |= {"model_type": "gpt-nano", "resid_pdrop": 0.1}
    Path("config.json").write_text(json.dumps({"system": {"seed": 1}, "model": section}))
    Path("text.txt").write_text(TEXT)
    return model


def test_a_model_of_mingpt_has_the_same_logits_and_loss(charlm, mingpt):
    result = charlm("import", "model.pt", "--text", "text.txt")

    assert result.code == 0, result.stderr
    run = package.load("runs/mingpt")
    assert run.config.model.n_head == 3
    ids = torch.from_numpy(run.tokenizer.encode(TEXT[:9]).astype("int64"))[None]
    with torch.no_grad():
        logits = mingpt(ids[:, :-1])
        torch.testing.assert_close(run.module(ids[:, :-1]), logits, rtol=0, atol=1e-5)
    loss = F.cross_entropy(logits[0], ids[0, 1:]).item()
    Path("nine.txt").write_text(TEXT[:9])
    scored = charlm("eval", "--run", "runs/mingpt", "--file", "nine.txt", "--json")
    assert json.loads(scored.stdout)["loss_nats"] == pytest.approx(loss, abs=1e-5)


def test_training_goes_on_with_every_option(charlm, mingpt):
    assert charlm("import", "model.pt", "--text", "text.txt", "-o", "run").code == 0
    keys = ["train.max_steps=2", "train.batch_size=4", "train.warmup_steps=0", "run.device=cpu"]
    keys += ["eval.baselines=false", "data.source=text.txt", "-q", "--out", "on"]

    result = charlm("train", "-c", "run/config.yaml", "--init-from", "run", *keys)

    assert result.code == 0, result.stderr
    assert charlm("train", "--resume", "--out", "on", "train.max_steps=3", "-q").code == 0
    assert charlm("verify", "on").code == 0
    assert package.load("on").step == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt-huge"}, "not a config.json of minGPT's"),
        ({"n_head": "3"}, "names no number of heads"),
        ({"n_head": 5}, "5 heads do not divide the 12 channels"),
    ],
)
def test_a_configuration_of_another_model_is_refused(charlm, mingpt, change, message):
    content = json.loads(Path("config.json").read_text())
    content["model"] |= change
    Path("other.json").write_text(json.dumps(content))

    result = charlm("import", "model.pt", "--meta", "other.json", "--text", "text.txt")

    assert (result.code, message in result.error) == (4, True), result.error


def made(kind, longest=5):
    """A model of makemore's."""
    torch.manual_seed(1)
    vocab = len(SYMBOLS) + 1
    return {
        "transformer": lambda: theirs.Transformer(vocab, **SIZES, block_size=longest + 1, old=True),
        "bigram": lambda: theirs.Bigram(vocab),
        "mlp": lambda: theirs.MLP(vocab, 3, 6, 10),
        "bow": lambda: theirs.BagOfWords(vocab, 6, 10, longest + 1),
        "rnn": lambda: theirs.Recurrent(vocab, 6, 10, gru=False),
        "gru": lambda: theirs.Recurrent(vocab, 6, 10, gru=True),
    }[kind]()


@pytest.mark.parametrize("kind", ["transformer", "bigram", "mlp", "rnn", "gru", "bow"])
def test_a_model_of_makemore_has_the_same_loss_of_each_line(charlm, kind):
    model = made(kind)
    torch.save(model.state_dict(), "model.pt")
    Path("names.txt").write_text("\n".join([*NAMES, ""]))
    heads = ["--n-head", 2] if kind == "transformer" else []

    result = charlm("import", "model.pt", "--text", "names.txt", *heads, "-o", "run")

    assert result.code == 0, result.stderr
    Path("few.txt").write_text("nabo\nbanan\n")
    expected = theirs.loss_of_lines(model, ["nabo", "banan"], SYMBOLS)
    scored = charlm("eval", "--run", "run", "--file", "few.txt", "--json")
    assert json.loads(scored.stdout)["loss_nats"] == pytest.approx(expected, abs=1e-5)
    run = package.load("run")
    assert run.generate(seed=1, max_new_chars=20).strip("\n").isalpha()
    assert run.config.model.block_size == 6


def test_what_is_missing_is_asked_for(charlm):
    torch.save(made("transformer").state_dict(), "model.pt")
    Path("names.txt").write_text("\n".join(NAMES))

    def refusal(*options):
        result = charlm("import", "model.pt", *options)
        return result.code, result.error

    assert refusal("--n-head", 2)[1].startswith("--text: model.pt does not have its alphabet")
    code, message = refusal("--text", "names.txt")
    assert (code, "--n-head: " in message, "--meta config.json" in message) == (2, True, True)
    code, message = refusal("--text", "names.txt", "--n-head", 5)
    assert (code, "5 does not divide the 12 channels" in message) == (2, True)
    Path("other.txt").write_text("abc")
    code, message = refusal("--text", "other.txt", "--n-head", 2)
    assert (code, "has 3 characters, the model has 4" in message) == (3, True)
