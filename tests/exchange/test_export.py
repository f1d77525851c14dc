"""Exported models compute the same, and hold no text."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import charlm as package
from charlm.errors import UsageError
from charlm.exchange import FORMS, hugging_face, onnx_form, same
from charlm.models import build_model
from charlm.runs import find_run
from charlm.runs.load import load_model


@pytest.fixture
def gpt2(charlm, tiny):
    """A run of the style gpt2."""
    keys = ["model.style=gpt2", "train.max_steps=2", "eval.baselines=false", "-q", "--out", "small"]
    assert charlm("train", "--config", "tiny.yaml", *keys).code == 0
    return "small"


# test_onnx.py looks at its own, in a process whose functions have no checks of types in the way.
@pytest.mark.parametrize("form", sorted({*FORMS} - {"onnx"}))
def test_no_form_holds_the_text_or_the_optimizer_or_a_place(charlm, gpt2, form, tmp_path):
    if form == "gguf":
        pytest.importorskip("gguf", reason="pip install gguf")
    result = charlm("export", gpt2, "out", "--to", form)

    assert result.code == 0, result.stderr
    assert result.stdout.startswith("out: ")
    for path in (tmp_path / "out").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert b"quick brown" not in data
        assert str(tmp_path).encode() not in data
        assert "optimizer" not in path.name
    card = (tmp_path / "out/README.md").read_text()
    facts = find_run(tmp_path / gpt2).config
    assert f"{facts.model.parameter_count(31):,}" in card
    assert "text, SHA-256" in card


@pytest.mark.parametrize("form", ["charlm", "npz"])
def test_a_mixture_leaves_without_the_folders_of_its_text_and_its_experts(tiny, tmp_path, form):
    text, quick = tmp_path / "text.txt", {"baselines": False}
    plain = {"model": {"type": "bigram"}}
    one = package.train(plain, text, out=tmp_path / "one", train={"max_steps": 2}, eval=quick)
    trained = {**plain, "train": {"max_steps": 2, "init_from": str(one.path)}}
    experts = {"a": {"run": str(one.path)}, "b": trained}
    model = {"model": {"type": "mixture", "experts": experts}}
    package.train(model, text, out=tmp_path / "mixed", eval=quick)

    package.export(tmp_path / "mixed", tmp_path / "out", form)

    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]
    if form == "charlm":
        ours, theirs = package.load(tmp_path / "mixed"), package.load(tmp_path / "out")
        assert theirs.score("the dog").total_nats == ours.score("the dog").total_nats


@pytest.mark.parametrize("kind", ["bigram", "ngram", "context-mixing"])
def test_every_kind_leaves_in_our_own_form(charlm, tiny, kind):
    keys = ["data.source=text.txt", "eval.baselines=false", "-q", "--out", "run"]
    assert charlm("train", "-c", kind, *keys).code == 0
    result = charlm("export", "run", "alone")
    assert (result.code, "hold the text" in result.stderr) == (0, kind == "context-mixing")

    ours, theirs = package.load("run"), package.load("alone")

    assert theirs.generate("the", seed=3) == ours.generate("the", seed=3)
    assert theirs.score("the dog").total_nats == ours.score("the dog").total_nats
    assert charlm("score", "--run", "alone", "text.txt").code == 0
    assert charlm("eval", "--run", "alone", "--file", "text.txt").code == 0


def test_arrays_are_the_weights(charlm, gpt2):
    assert charlm("export", gpt2, "arrays", "--to", "npz", "--json").code == 0

    saved = load_model(find_run(Path(gpt2)))
    with np.load("arrays/weights.npz") as arrays:
        weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    config = json.loads(Path("arrays/config.json").read_text())["model"]
    model = build_model(saved.config.model, 31)
    model.load_state_dict(weights)
    assert same.largest_difference(saved.model, model.eval()) == 0
    assert config["n_layer"] == 2


def test_transformers_weights_compute_what_the_run_does(charlm, gpt2):
    result = charlm("export", gpt2, "theirs", "--to", "hf", "--json")

    assert json.loads(result.stdout)["difference"] < 1e-5
    config = json.loads(Path("theirs/config.json").read_text())
    assert (config["activation_function"], config["eos_token_id"]) == ("gelu", None)


OTHERS = {
    "as others have it": [
        "model.style=gpt2",
        "model.bias=true",
        "model.gelu=tanh",
        "model.tied=false",
    ],
    "nanochat": ["model.token_shift=false"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_so_do_those_of_a_model_with_options(charlm, tiny, name):
    keys = ["train.max_steps=2", "eval.baselines=false", "-q", "--out", "run"]
    assert charlm("train", "--config", "tiny.yaml", *OTHERS[name], *keys).code == 0

    result = charlm("export", "run", "theirs", "--to", "hf", "--json")

    assert json.loads(result.stdout)["difference"] < 1e-5
    config = json.loads(Path("theirs/config.json").read_text())
    assert not config["tie_word_embeddings"]
    assert config.get("activation_function", "gelu_new") == "gelu_new"


def test_what_would_differ_is_not_written(charlm, gpt2, monkeypatch):
    monkeypatch.setattr(hugging_face, "EPSILON", 0.5)

    result = charlm("export", gpt2, "theirs", "--to", "hf")

    assert result.code == 5
    assert "logits differ" in result.error
    assert not Path("theirs").exists()


def test_a_model_without_a_counterpart_is_refused(charlm, trained):
    result = charlm("export", trained, "theirs", "--to", "hf")

    assert result.code == 2
    assert "its token shift has no place there; use --to onnx, or train it with" in result.error
    assert "model.token_shift=false" in result.error


def test_a_package_that_a_graph_needs_is_named(charlm, trained, monkeypatch):
    monkeypatch.setattr(onnx_form, "find_spec", lambda name: None)

    result = charlm("export", trained, "out", "--to", "onnx")

    assert result.code == 5
    assert result.error == "an export to onnx: needs onnx, onnxscript; pip install 'charlm[onnx]'"


def test_what_counts_is_no_graph(charlm, tiny, monkeypatch):
    monkeypatch.setattr(onnx_form, "find_spec", lambda name: True)
    keys = ["data.source=text.txt", "eval.baselines=false", "-q", "--out", "run"]
    assert charlm("train", "-c", "ngram", *keys).code == 0

    result = charlm("export", "run", "out", "--to", "onnx")

    assert result.code == 2
    assert "counts, so it is no graph of tensor operations; use --to charlm" in result.error
    assert not Path("out").exists()


def test_python_exports_too(gpt2, tmp_path):
    done = package.export(gpt2, tmp_path / "x", "npz")

    assert done.bytes == sum(one.stat().st_size for one in done.folder.iterdir())
    with pytest.raises(UsageError, match="exists; name a new folder"):
        package.export(gpt2, tmp_path / "x", "npz")
    with pytest.raises(UsageError, match="form 'tf': unknown"):
        package.export(gpt2, tmp_path / "y", "tf")


def test_a_copy_without_text_writes_the_same(charlm, trained):
    assert charlm("runs", "copy", trained, "whole").code == 0
    assert charlm("runs", "copy", trained, "bare", "--without", "text").code == 0

    assert not Path("bare/tokens").exists()
    texts = {package.load(name).generate("the", seed=1) for name in (trained, "whole", "bare")}
    assert len(texts) == 1
    assert charlm("train", "--resume", "--out", "whole", "train.max_steps=7", "-q").code == 0
    assert charlm("verify", "whole").code == 0
    again = charlm("runs", "copy", trained, "bare")
    assert (again.code, "holds a run" in again.error) == (2, True)
