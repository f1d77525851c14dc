"""nanoGPT's checkpoints become runs, and nothing in a file is run."""

import io
import math
import os
import pickle
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import charlm as package
from charlm.exchange.pickled import read_plain_pickle
from tests.conftest import TEXT
from tests.exchange.theirs import Transformer

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8}


@pytest.fixture
def theirs(tmp_path):
    """A checkpoint and its alphabet, as nanoGPT writes them."""
    torch.manual_seed(0)
    symbols = sorted(set(TEXT))
    model = Transformer(len(symbols), **SIZES)
    save(model.state_dict(), vocab_size=len(symbols))
    itos = dict(enumerate(symbols))
    meta = {"vocab_size": len(symbols), "itos": itos, "stoi": {s: i for i, s in itos.items()}}
    Path("meta.pkl").write_bytes(pickle.dumps(meta))
    Path("text.txt").write_text(TEXT)
    return model


def save(state, name="ckpt.pt", **arguments):
    content = {
        "model": state,
        "optimizer": {"state": {}},
        "model_args": {**SIZES, "bias": False, "dropout": 0.1, **arguments},
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"device": "cpu"},
    }
    torch.save(content, name)


@pytest.mark.parametrize("alphabet", [("--meta", "meta.pkl"), ("--text", "text.txt")])
def test_the_run_computes_what_their_model_does(charlm, theirs, alphabet):
    result = charlm("import", "ckpt.pt", *alphabet)

    assert result.code == 0, result.stderr
    assert result.stdout.startswith("runs/nanogpt: gpt (gpt2)")
    model = package.load("runs/nanogpt")
    idx = torch.randint(31, (3, 8))
    with torch.no_grad():
        torch.testing.assert_close(model.module(idx), theirs(idx), rtol=0, atol=1e-5)
    assert model.step == 250
    ids = torch.from_numpy(model.tokenizer.encode(TEXT[:9]).astype("int64"))
    loss = F.cross_entropy(theirs(ids[None, :-1])[0], ids[1:]).item()
    Path("nine.txt").write_text(TEXT[:9])
    printed = charlm("eval", "--run", "runs/nanogpt", "--file", "nine.txt", "--json").stdout
    assert f'"loss_nats": {loss:.4f}'[:19] in printed


def test_a_compiled_model_with_biases_has_other_names(charlm, theirs):
    model = Transformer(31, **SIZES, bias=True)
    state = {f"_orig_mod.{name}": w for name, w in model.state_dict().items()}
    save(state, vocab_size=31, bias=True)

    assert charlm("import", "ckpt.pt", "--meta", "meta.pkl", "-o", "run").code == 0

    run, idx = package.load("run"), torch.randint(31, (3, 8))
    with torch.no_grad():
        torch.testing.assert_close(run.module(idx), model(idx), rtol=0, atol=1e-5)
    assert run.generate(seed=1, max_new_chars=5)


def test_training_goes_on_from_the_weights(charlm, theirs):
    assert charlm("import", "ckpt.pt", "--text", "text.txt", "-o", "run").code == 0
    keys = ["data.source=text.txt", "model.style=gpt2", "eval.baselines=false", "-q"]
    Path("tiny.yaml").write_text(
        "model: {type: gpt, style: gpt2, block_size: 8, n_layer: 2, n_head: 2, n_embd: 16, dropout: 0.1}\n"
        "train: {max_steps: 0}\n"
    )
    result = charlm("train", "-c", "tiny.yaml", "--init-from", "run", *keys, "train.max_steps=1")
    assert result.code == 0, result.stderr


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda c: c.pop("model_args"), "no model_args and model"),
        (lambda c: c["model"].update({"transformer.ln_f.bias": torch.zeros(16)}), "lacks transf"),
        (lambda c: c["model_args"].update(n_embd="16"), "no sizes"),
        (lambda c: c["model_args"].update(n_embd=10**9), "n_embd 16, its sizes say 1000000000"),
        (lambda c: c["model_args"].update(n_layer=10**7), "n_layer 2, its sizes say 10000000"),
        (lambda c: c.update(iter_num=2**63), "no sizes"),
        (lambda c: c["model"].pop("transformer.h.1.ln_2.weight"), "lacks transformer.h.1"),
        (lambda c: c["model"].update(extra=torch.zeros(1)), "has extra"),
        (lambda c: c["model"].update({"lm_head.weight": torch.zeros(31, 16)}), "its head is not"),
        (lambda c: c["model"]["transformer.wpe.weight"].fill_(math.nan), "position_embed"),
        (lambda c: c.update(iter_num="many"), "no sizes"),
    ],
)
def test_a_broken_checkpoint_is_refused(charlm, theirs, broken, message):
    content = torch.load("ckpt.pt", weights_only=True)
    broken(content)
    torch.save(content, "ckpt.pt")

    result = charlm("import", "ckpt.pt", "--meta", "meta.pkl")

    assert result.code == 4
    assert message in result.error
    assert not Path("runs/nanogpt").exists()


class Trap:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("data", [b"", b"PK", b"\x80\x04N.", pickle.dumps(Trap()), b"x" * 99])
def test_other_files_are_refused_unread(charlm, theirs, data):
    Path("ckpt.pt").write_bytes(data)
    result = charlm("import", "ckpt.pt", "--meta", "meta.pkl")
    assert (result.code, Path("trapped").exists()) == (4, False)

    save(theirs.state_dict(), vocab_size=31)
    Path("meta.pkl").write_bytes(data)
    result = charlm("import", "ckpt.pt", "--meta", "meta.pkl")
    assert (result.code, Path("trapped").exists()) == (4, False)


def test_a_checkpoint_that_would_run_something_is_refused(charlm, theirs):
    torch.save({"model": Trap(), "model_args": {}}, "ckpt.pt")

    result = charlm("import", "ckpt.pt", "--meta", "meta.pkl")

    assert result.code == 4
    assert "refused unread" in result.error
    assert not Path("trapped").exists()
    assert zipfile.is_zipfile("ckpt.pt")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_plain_pickle_is_read_in_every_protocol(protocol):
    content = {"itos": {i: chr(32 + i) for i in range(300)}, "stoi": {"a": 70_000, "ä": 2**40}}
    Path("meta.pkl").write_bytes(pickle.dumps(content, protocol))

    assert read_plain_pickle(Path("meta.pkl")) == content
    assert pickle.load(io.BytesIO(Path("meta.pkl").read_bytes())) == content


def test_operations_that_it_lacks_are_named(charlm, theirs):
    data = pickle.dumps({"itos": [1, 2]})
    Path("meta.pkl").write_bytes(data)

    result = charlm("import", "ckpt.pt", "--meta", "meta.pkl")

    assert "it asks for EMPTY_LIST" in result.error
    assert any(operation.name == "EMPTY_LIST" for operation, *_ in pickletools.genops(data))


@pytest.mark.parametrize(
    ("meta", "code", "message"),
    [
        ({"itos": {0: "a"}}, 3, "has 1 characters, the model has 31"),
        ({"itos": {0: "b", 1: "a"}}, 4, "not in the order of Unicode"),
        ({"itos": {0: "ab"}}, 4, "not single characters"),
        ({"itos": {1: "a"}}, 4, "has no itos"),
        ({}, 4, "has no itos"),
    ],
)
def test_an_alphabet_that_does_not_fit_is_refused(charlm, theirs, meta, code, message):
    Path("meta.pkl").write_bytes(pickle.dumps(meta))

    result = charlm("import", "ckpt.pt", "--meta", "meta.pkl")

    assert (result.code, message in result.error) == (code, True), result.error


def test_an_alphabet_is_asked_for(charlm, theirs):
    result = charlm("import", "ckpt.pt")
    assert (result.code, "give one of them" in result.error) == (2, True)
    assert charlm("import", "nope.pt", "--meta", "meta.pkl").code in (3, 4, 5)
