import functools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from charlm.backprop import check, rules
from charlm.backprop.cases import CASES
from charlm.backprop.check import SMALL_MODELS, Difference
from charlm.cli.gradcheck import SMALL_VOCAB
from charlm.config import load_config, preset_names
from charlm.models import build_model


@pytest.fixture
def one_rule(monkeypatch):
    """Leave all rules but one unchecked, to save time."""
    monkeypatch.setattr(check, "check_rules", lambda: iter([("Add", Difference(0.0, 0.0))]))


@pytest.fixture
def few_probes(monkeypatch):
    """Try one direction for each input, to save time."""
    for name in ("check_rule", "check_model"):
        monkeypatch.setattr(check, name, functools.partial(getattr(check, name), probes=0))


def weights(config, vocab):
    return [name for name, _ in build_model(config, vocab).named_parameters()]


def rows(stdout):
    """Read the rows of a table: heading, name and verdict."""
    heading, found = "", []
    for line in stdout.splitlines()[4:-2]:
        if line.startswith("  "):
            *words, _, _, verdict = line.split()
            found.append((heading, " ".join(words), verdict))
        else:
            heading = line
    return found


def everything():
    return [("rules", name) for name in CASES] + [
        (title, name)
        for title, config in SMALL_MODELS.items()
        for name in weights(config, SMALL_VOCAB)
    ]


def test_every_rule_and_every_weight_of_all_small_models_is_a_row(charlm, few_probes, tmp_path):
    result = charlm("gradcheck")

    assert (result.code, result.stderr) == (0, "")
    assert rows(result.stdout) == [(*row, "pass") for row in everything()]
    lines = result.stdout.splitlines()
    assert lines[0] == "largest difference in float64, relative to the largest gradient"
    assert lines[2].split() == ["autograd", "finite", "differences"]
    assert lines[3].split() == ["tolerance", "<=", "1e-10", "<=", "1e-06"]
    assert lines[-1] == f"{len(everything())} checked, 0 failed"
    assert len({len(line) for line in lines if line.endswith("  pass")}) == 1  # columns stand
    assert not list(tmp_path.iterdir())  # and nothing was written


def test_as_json_it_is_one_object(charlm, few_probes, tmp_path):
    result = charlm("gradcheck", "--json")

    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert list(found) == ["passed", "autograd_tolerance", "finite_tolerance", "rows"]
    assert (found["passed"], found["autograd_tolerance"], found["finite_tolerance"]) == (
        True,
        1e-10,
        1e-6,
    )
    assert [(row["group"], row["name"]) for row in found["rows"]] == everything()
    for row in found["rows"]:
        assert list(row) == ["group", "name", "autograd", "finite", "passed", "reason"]
        assert row["reason"] is None
        assert row["passed"] is True
        assert 0 <= row["autograd"] <= 1e-10
        assert 0 <= row["finite"] <= 1e-6
    assert not list(tmp_path.iterdir())


def test_a_configuration_has_a_row_for_each_of_its_weights(charlm, tiny, one_rule):
    before = set(Path().rglob("*"))

    result = charlm("gradcheck", "--config", "tiny.yaml", "--vocab-size", 5)

    assert (result.code, result.stderr) == (0, "")
    expected = weights(load_config("tiny.yaml").model, 5)
    assert rows(result.stdout) == [
        ("rules", "Add", "pass"),
        *(("gpt (modern)", name, "pass") for name in expected),
    ]
    assert set(Path().rglob("*")) == before


def test_overrides_change_the_model_that_is_checked(charlm, tiny, one_rule):
    result = charlm("gradcheck", "-c", "tiny.yaml", "model.style=gpt2", "model.n_layer=1", "--json")

    found = json.loads(result.stdout)
    expected = weights(load_config("tiny.yaml", ["model.style=gpt2", "model.n_layer=1"]).model, 65)
    assert [row["name"] for row in found["rows"]] == ["Add", *expected]
    assert {row["group"] for row in found["rows"]} == {"rules", "gpt (gpt2)"}


TRAINED = [name for name in preset_names() if load_config(name).model.trained_by == "gradients"]


@pytest.mark.parametrize("name", TRAINED)
def test_every_preset_with_weights_can_be_checked(charlm, one_rule, name):
    smaller = {"block_size": 4, "n_layer": 1, "n_embd": 8, "n_head": 2}
    fields = type(load_config(name).model).model_fields
    overrides = [f"model.{key}={size}" for key, size in smaller.items() if key in fields]

    result = charlm("gradcheck", "--config", name, "--vocab-size", 5, *overrides)

    assert (result.code, result.stderr) == (0, "")
    expected = weights(load_config(name, overrides).model, 5)
    assert [row[1] for row in rows(result.stdout)] == ["Add", *expected]


MIXTURE = """\
model:
  type: mixture
  experts:
    counts: {model: {type: ngram}}
    old: {run: runs/old}
    table: {model: {type: bigram, block_size: 4}}
    mean: {model: {type: averaging, block_size: 4, n_embd: 4}, train: {batch_size: 1_000_000_000_000}}
"""


def test_of_a_mixture_the_experts_it_trains_are_checked(charlm, one_rule):
    Path("mixture.yaml").write_text(MIXTURE)

    result = charlm("gradcheck", "-c", "mixture.yaml", "--vocab-size", 5)

    assert (result.code, result.stderr) == (0, "")
    experts = load_config("mixture.yaml").model.experts
    of_mean = [("mean: averaging", name, "pass") for name in weights(experts["mean"].model, 5)]
    assert rows(result.stdout) == [
        ("rules", "Add", "pass"),
        ("table: bigram", *weights(experts["table"].model, 5), "pass"),
        *of_mean,
    ]


def test_a_model_without_gradients_is_refused(charlm):
    Path("mixture.yaml").write_text(MIXTURE[: MIXTURE.index("    table")])

    counted, mixed = charlm("gradcheck", "-c", "ngram"), charlm("gradcheck", "-c", "mixture.yaml")

    assert (counted.code, counted.stdout) == (mixed.code, mixed.stdout) == (2, "")
    assert counted.error == (
        "ngram: this ngram is counted, not trained: it has no gradients to check; "
        "name a model that is trained by gradients, such as gpt"
    )
    assert mixed.error == (
        "mixture.yaml: this mixture trains no expert: it has no gradients to check; "
        "name a model that is trained by gradients, such as gpt"
    )


def test_the_symbols_are_65_if_nobody_says(charlm, one_rule, monkeypatch):
    sizes = []

    def note(model, windows):
        sizes.append(model.vocab_size)
        yield "weight", Difference(0.0, 0.0)

    monkeypatch.setattr(check, "check_model", note)

    charlm("gradcheck", "-c", "bigram")
    charlm("gradcheck", "-c", "bigram", "--vocab-size", 7)
    charlm("gradcheck")

    assert sizes == [65, 7, *[SMALL_VOCAB] * len(SMALL_MODELS)]


def without_the_product_rule(self, dout, x):
    return (dout * (x * math.sqrt(0.5)).erf().add(1) / 2,)


def test_what_is_wrong_is_named_and_is_exit_code_1(charlm, tiny, few_probes, monkeypatch):
    monkeypatch.setattr(rules.GELU, "backward", without_the_product_rule)
    options = "model.style=gpt2", "model.n_layer=1"

    result = charlm("gradcheck", "-c", "tiny.yaml", *options, "--vocab-size", 5)

    assert result.code == 1
    passing = ("blocks.0.mlp.contract.weight", "final_norm.weight")  # the gradient comes from there
    names = weights(load_config("tiny.yaml", options).model, 5)
    failed = [("rules", "GELU"), *(("gpt (gpt2)", n) for n in names if n not in passing)]
    assert [row[:2] for row in rows(result.stdout) if row[2] == "FAIL"] == failed
    assert {row[2] for row in rows(result.stdout)} == {"pass", "FAIL"}
    assert result.stdout.endswith(f"\n{len(CASES) + len(names)} checked, {len(failed)} failed\n")
    listed = ", ".join(" ".join(row) for row in failed)
    assert result.error == f"wrong gradients: {listed}; see charlm/backprop/rules.py"


def test_an_infinite_difference_is_null_in_json(charlm, few_probes, monkeypatch):
    monkeypatch.setattr(rules.LogSoftmax, "backward", lambda self, dout, out: (None,))

    result = charlm("gradcheck", "--config", "bigram", "model.block_size=2", "--json")

    found = json.loads(result.stdout)
    assert result.code == 1
    assert found["passed"] is False
    failed = [row for row in found["rows"] if not row["passed"]]
    assert [row["name"] for row in failed] == ["LogSoftmax", "cross-entropy in parts"]
    assert failed[0] == {
        "group": "rules",
        "name": "LogSoftmax",
        "autograd": None,
        "finite": None,
        "passed": False,
        "reason": "no gradient for an input of (2, 5, 8)",
    }
    assert result.error.startswith(
        "wrong gradients: rules LogSoftmax, rules cross-entropy in parts;"
    )


def forget(self, dout, x):
    return ()


def misspell(self, dout, x):
    return (dout * x.sgin(),)


def mismatch(self, dout, x):
    return (dout @ x,)


def return_nothing(self, dout, x):
    pass


@pytest.mark.parametrize(
    ("backward", "reason"),
    [
        (forget, "ValueError: 0 gradients for 1 inputs"),
        (misspell, "AttributeError: 'Tensor' object has no attribute 'sgin'"),
        (mismatch, "RuntimeError: "),
        (return_nothing, "TypeError: "),
    ],
)
def test_a_backward_that_cannot_run_is_a_row_with_the_reason(charlm, monkeypatch, backward, reason):
    monkeypatch.setattr(rules.GELU, "backward", backward)
    monkeypatch.setattr(
        check, "check_rules", lambda: iter([("GELU", check.check_rule("GELU", probes=0))])
    )

    result = charlm("gradcheck", "--config", "bigram", "model.block_size=2", "--vocab-size", 3)

    assert result.code == 1
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("  GELU ")]
    assert f"FAIL  {reason}" in row
    assert result.error.startswith("wrong gradients: rules GELU;")


def test_the_memory_that_matters_is_that_of_the_check(charlm, one_rule, few_probes):
    result = charlm("gradcheck", "-c", "bigram", "train.batch_size=100000000", "--vocab-size", 3)

    assert result.code == 0


@pytest.mark.parametrize("difference", [math.inf, math.nan])
def test_an_infinite_difference_is_a_failure_in_the_table(charlm, monkeypatch, difference):
    found = Difference(difference, 0.0)
    monkeypatch.setattr(check, "check_rules", lambda: iter([("Add", found)]))

    result = charlm("gradcheck", "--config", "bigram", "model.block_size=2", "--vocab-size", 3)

    assert result.code == 1
    assert f"  {difference:>10}             0.0e+00  FAIL\n" in result.stdout


def test_overrides_need_a_configuration_to_override(charlm, tmp_path):
    result = charlm("gradcheck", "model.n_layer=1")

    assert (result.code, result.stdout) == (2, "")
    assert result.error == ("model.n_layer=1: there is nothing to override; name a --config too")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_fit_is_refused(charlm, tiny):
    result = charlm("gradcheck", "--config", "tiny.yaml", "model.n_layer=1000000000")

    assert (result.code, result.stdout) == (2, "")
    assert "training needs about" in result.error


@pytest.mark.parametrize(
    ("arguments", "core"),
    [
        (["--config", "nope.yaml"], "nope.yaml: "),
        (["--config", "tiny.yaml", "model.n_layer=0"], "model.n_layer=0: must be at least 1"),
        (["--config", "tiny.yaml", "--vocab-size", "0"], "--vocab-size "),
        (["--vocab-size", "many"], "--vocab-size "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(charlm, tiny, arguments, core):
    result = charlm("gradcheck", *arguments)

    assert (result.code, result.stdout) == (2, "")
    assert core in result.error


def test_no_text_is_needed(charlm, tiny, one_rule):
    Path("text.txt").unlink()

    assert charlm("gradcheck", "-c", "tiny.yaml", "model.n_layer=1").code == 0


def test_a_stop_leaves_the_rows_there_are_and_no_verdict(charlm, monkeypatch):
    def interrupted():
        yield "Add", Difference(0.0, 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        yield "Multiply", Difference(0.0, 0.0)

    monkeypatch.setattr(check, "check_rules", interrupted)

    as_table, as_json = charlm("gradcheck"), charlm("gradcheck", "--json")

    assert (as_table.code, as_table.stderr) == (143, "")
    assert as_table.stdout.splitlines()[-1].startswith("  Add ")
    assert (as_json.code, as_json.stdout, as_json.stderr) == (143, "", "")


def test_control_c_ends_it_without_a_traceback(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "charlm", "gradcheck", "--config", "gpt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        pipesize=1024,  # which its rows do not fit into: it cannot end before it gets the signal
    )
    assert process.stdout is not None
    process.stdout.readline()  # it is under way
    process.send_signal(signal.SIGINT)

    _, errors = process.communicate(timeout=200)

    assert (process.returncode, errors) == (130, b"")
    assert not list(tmp_path.iterdir())
