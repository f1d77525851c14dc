"""What weights belong to: kept whole, and held against what stands beside them later."""

import json

import pytest

from charlm.config import read_config
from charlm.errors import CheckpointError
from charlm.runs import RunFolder
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.provenance import (
    PROVENANCE,
    provenance_json,
    provenance_of,
    provenance_of_unjoined,
)

GPT = (
    b"data: {source: text.txt}\nmodel: {type: gpt, block_size: 8, n_layer: 1, n_head: 2, n_embd: 8}"
)


def of_experts(name: str, heads: int) -> bytes:
    return (
        f"model: {{type: mixture, experts: {{{name}: {{model: {{type: gpt, n_head: {heads}, "
        "n_embd: 8}}}}"
    ).encode()


@pytest.fixture
def kept(tmp_path):
    """Keep a configuration in a run, and return what is read back."""

    def keep(config: bytes, *overrides: str, alphabet: str = "abc"):
        run = RunFolder(tmp_path)
        (tmp_path / PROVENANCE).write_bytes(
            provenance_json(read_config(config, "a.yaml", overrides), alphabet)
        )
        return provenance_of_unjoined(run)

    return keep


@pytest.mark.parametrize("name", ["gpt", "run", "train", "dropout", "tune_fraction", "experts"])
def test_whatever_an_expert_is_called_its_weights_belong_to_its_model(kept, name):
    then = kept(of_experts(name, 2))
    key = f"model.experts.{name}.model.n_head"

    then.check(read_config(of_experts(name, 2), "a.yaml"), "abc")
    with pytest.raises(CheckpointError, match=f"{key} is 1, it was begun with 2; restore it"):
        then.check(read_config(of_experts(name, 1), "a.yaml"), "abc")


def test_weights_do_not_rest_on_how_they_were_trained(kept):
    then = kept(GPT)
    now = read_config(GPT, "a.yaml", ["model.dropout=0.5", "train.optimizer=muon"])

    then.check(now, "abc")


def test_another_alphabet_is_refused(kept):
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: not the alphabet that it was begun"
    ):
        kept(GPT).check(read_config(GPT, "a.yaml"), "cba")


@pytest.mark.parametrize(
    "change", ["model.dropout=0.5", "data.val_fraction=0.3", "train.batch_size=3", "model.n_head=1"]
)
def test_training_does_not_go_on_with_another(kept, change):
    before, now = read_config(GPT, "a.yaml"), read_config(GPT, "a.yaml", [change])

    with pytest.raises(CheckpointError, match=change.replace("=", " is ")):
        kept(GPT).differences(before, now)


def test_training_goes_on_from_another_place(kept):
    then = kept(b"model: {type: mixture, experts: {old: {run: a}}}", "data.source=a.txt")
    now = b"data: {source: b.txt}\nmodel: {type: mixture, experts: {old: {run: b}}}"

    found = then.differences(read_config(now, "a.yaml"), read_config(now, "a.yaml"))

    assert found == {"data.source": ("a.txt", "b.txt"), "model.experts.old.run": ("a", "b")}


def test_an_expert_does_not_become_that_of_a_run(kept):
    then = kept(of_experts("gpt", 2))
    config = of_experts("gpt", 2).replace(b"{gpt: {", b"{gpt: {run: other, ")
    now = read_config(config, "a.yaml")

    with pytest.raises(CheckpointError, match=r"model\.experts\.gpt\.run is 'other'"):
        then.differences(now, now)


def test_manifests_of_before_are_read(tmp_path):
    """The first checkpoints keep nothing, later ones had it in the manifest."""
    path = tmp_path / "checkpoints" / "step-5"
    path.mkdir(parents=True)
    now = read_config(GPT, "a.yaml")
    older = {"model": {"n_head": 4, "type": "gpt"}, "alphabet_sha256": "0" * 64}
    newer = older | {"config": json.loads(provenance_json(now, "abc"))["config"]}

    provenance_of(Checkpoint(path, 5, {})).check(now, "abc")
    assert provenance_of(Checkpoint(path, 5, {"belongs": older})).differences(now, now) == {}
    with pytest.raises(CheckpointError, match=r"model\.n_head is 2, step-5 was saved with 4"):
        provenance_of(Checkpoint(path, 5, {"belongs": older})).check(now, "abc")
    with pytest.raises(CheckpointError, match="not the alphabet that step-5 was saved with"):
        provenance_of(Checkpoint(path, 5, {"belongs": newer})).check(now, "abc")


@pytest.mark.parametrize("key", ["gelu=tanh", "token_shift=false"])
def test_a_run_of_before_an_option_was_trained_without_it(tmp_path, key):
    style = "model.style=gpt2" if "gelu" in key else "model.style=modern"
    before = read_config(GPT, "a.yaml", [style])
    kept = json.loads(provenance_json(before, "abc"))
    for name in ("gelu", "token_shift", "bias", "tied"):
        del kept["config"]["model"][name]
    (tmp_path / PROVENANCE).write_text(json.dumps(kept))
    then, now = provenance_of_unjoined(RunFolder(tmp_path)), [style, f"model.{key}"]

    then.check(before, "abc")
    assert then.differences(before, before) == {}
    for refuse in (lambda c: then.check(c, "abc"), lambda c: then.differences(before, c)):
        with pytest.raises(CheckpointError, match=f"model.{key.split('=')[0]} is "):
            refuse(read_config(GPT, "a.yaml", now))


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b'{"config": ' + b'{"a": ' * 970 + b"1" + b"}" * 971]
)
def test_what_is_none_is_refused(tmp_path, content):
    (tmp_path / PROVENANCE).write_bytes(content)

    with pytest.raises(CheckpointError, match=r"belongs\.json: cannot be read .*; restore it or"):
        provenance_of_unjoined(RunFolder(tmp_path))


def test_a_section_that_is_gone_is_refused(kept):
    then = kept(of_experts("gpt", 2).replace(b"{gpt: {", b"{gpt: {run: other, "))
    now = read_config(b"model: {type: mixture, experts: {gpt: {run: other}}}", "a.yaml")

    with pytest.raises(CheckpointError, match=r"model\.experts\.gpt\.model is None, it was begun"):
        then.differences(now, now)
