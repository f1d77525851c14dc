"""Training without autograd: the same run, worked out by hand."""

import pytest
import torch

from charlm.errors import NonFiniteError
from charlm.runs.weights import load_tensors
from charlm.training import gradients
from charlm.training.compile_cost import Cost
from charlm.training.compiling import worth_trying
from tests.training.conftest import state_hash, stop_and_resume, timeless

BY_HAND = "train.gradients=by_hand"

MODELS = {
    "bigram": "{type: bigram, block_size: 8}",
    "averaging": "{type: averaging, block_size: 8, n_embd: 16}",
    "attention": "{type: attention, block_size: 8, n_embd: 16}",
    "multihead": "{type: multihead, block_size: 8, n_embd: 16, n_head: 2}",
    "gpt2": "{type: gpt, style: gpt2, block_size: 8, n_layer: 1, n_head: 2, n_embd: 16}",
    "modern": "{type: gpt, style: modern, block_size: 8, n_layer: 1, n_head: 2, n_embd: 16}",
}
PLAIN = "run.fused=false"  # whose dropout drops other numbers
VARIANTS = {
    **{name: [] for name in MODELS},
    "modern, n-grams": ["model.n_gram=4"],
    "gpt2, dropout": ["model.dropout=0.2", PLAIN],
    "modern, accumulated": ["train.micro_batch_size=2", "model.dropout=0.1", PLAIN],
    "modern, muon": ["train.optimizer=muon"],
}


@pytest.fixture
def of_kind(tiny):
    """Let the tiny configuration be of another kind."""

    def write(kind):
        tiny.write_text(
            f"data: {{source: text.txt}}\nmodel: {MODELS[kind]}\n"
            "train: {batch_size: 4, warmup_steps: 2, eval_every: 200}\n"
            "run: {device: cpu}\n"
        )

    return write


def finish(loop):
    return list(loop.records())


def losses(records, kind="train"):
    return [record.loss_nats for record in records if record.kind == kind]


@pytest.mark.parametrize("steps", [50, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_steps_have_the_losses_of_autograd(of_kind, make_loop, variant, steps):
    of_kind(variant.split(",")[0])
    options = [f"train.max_steps={steps}", "train.learning_rate=3e-3", *VARIANTS[variant]]

    with_autograd = finish(make_loop(*options, out="autograd"))
    loop = make_loop(*options, BY_HAND, out="by_hand")
    by_hand = finish(loop)

    assert loop.learner.by_hand is not None
    assert len(losses(by_hand)) == steps
    assert losses(by_hand) == pytest.approx(losses(with_autograd), abs=1e-4, rel=0)
    scores = losses(by_hand, "eval")
    assert scores == pytest.approx(losses(with_autograd, "eval"), abs=1e-4, rel=0)
    assert scores[-1] < scores[0] - 0.0015 * steps  # it learned something on the way


def test_gradients_are_autograds_unless_asked_otherwise(make_loop, monkeypatch):
    def refuse(*_):
        raise AssertionError("not asked for")

    monkeypatch.setattr(gradients.ByHand, "__call__", refuse)

    assert len(losses(finish(make_loop()))) == 6
    with pytest.raises(AssertionError, match="not asked for"):
        finish(make_loop(BY_HAND, out="by_hand"))


def test_a_run_by_hand_asks_autograd_for_nothing(make_loop, monkeypatch):
    expected = losses(finish(make_loop(out="autograd")))

    def refuse(*_, **__):
        raise AssertionError("this was to be done by hand")

    for place in (torch.Tensor, torch.autograd):
        monkeypatch.setattr(place, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    found = losses(finish(make_loop(BY_HAND)))

    assert found == pytest.approx(expected, abs=1e-5)


HARD = ["train.max_steps=8", "model.dropout=0.2", "train.micro_batch_size=2", BY_HAND]


@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_two_runs_by_hand_of_one_seed_end_with_equal_bits(of_kind, make_loop, kind):
    of_kind(kind)
    one, other = make_loop(*HARD), make_loop(*HARD, out="other")

    finish(one)
    torch.manual_seed(3)  # whatever the global generator holds must not matter
    finish(other)

    assert state_hash(one) == state_hash(other)
    assert timeless(one.run.metrics_path) == timeless(other.run.metrics_path)


@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_stopped_and_resumed_by_hand_equals_uninterrupted(of_kind, make_loop, kind):
    of_kind(kind)
    straight = make_loop(*HARD, out="straight")
    finish(straight)

    for cut in (1, 5):
        resumed = stop_and_resume(make_loop, cut, *HARD)

        assert resumed.learner.by_hand is not None  # the run remembers how it was asked
        assert state_hash(resumed) == state_hash(straight), cut
        assert timeless(resumed.run.metrics_path) == timeless(straight.run.metrics_path), cut


@pytest.mark.parametrize("first", ["autograd", "by_hand"])
def test_a_run_goes_on_with_the_other_kind_of_gradients(make_loop, first):
    second = {"autograd": "by_hand", "by_hand": "autograd"}[first]
    options = ["train.max_steps=30", "train.eval_every=10", "model.dropout=0.2", PLAIN]
    straight = make_loop(*options, f"train.gradients={first}", out="straight")
    expected = losses(finish(straight))
    stopped = make_loop(
        *options, f"train.gradients={first}", should_stop=lambda: stopped.state.step == 10
    )
    finish(stopped)

    resumed = make_loop(f"train.gradients={second}", resume=True)
    found = losses(finish(resumed))

    assert (resumed.learner.by_hand is not None) == (second == "by_hand")
    assert resumed.state.step == 30
    assert found == pytest.approx(expected[10:], abs=1e-4)


@pytest.mark.parametrize("kind", ["multihead", "gpt2", "modern"])
def test_it_trains_in_bfloat16(of_kind, make_loop, kind):
    of_kind(kind)
    options = ["train.max_steps=40", "train.learning_rate=1e-2", BY_HAND]
    single = losses(finish(make_loop(*options, out="single")))

    loop = make_loop(*options, "run.dtype=bfloat16")
    narrow = losses(finish(loop))

    assert narrow != single
    assert narrow[-1] < narrow[0] - 0.3
    assert narrow == pytest.approx(single, abs=0.1)
    saved = load_tensors(loop.run.checkpoints.last().path / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_a_model_by_hand_is_not_compiled(make_loop):
    config, model = (make_loop(out="run").config, make_loop(out="other").learner.model)
    train = config.train.model_copy(update={"gradients": "by_hand"})

    assert worth_trying(config, model, 3600.0, Cost())
    assert not worth_trying(config.model_copy(update={"train": train}), model, 3600.0, Cost())


def test_a_weight_that_is_not_finite_ends_a_run_by_hand_too(make_loop):
    loop = make_loop(BY_HAND)
    with torch.no_grad():
        next(loop.learner.model.parameters()).fill_(torch.nan)

    with pytest.raises(NonFiniteError, match="step 1: loss nan"):
        loop.learner.step()


@pytest.mark.parametrize("options", [["train.micro_batch_size=2"], ["train.grad_clip=0.01"]])
def test_a_table_learns_from_its_looked_up_rows_as_from_all_of_them(of_kind, make_loop, options):
    of_kind("modern")
    dense, sparse = (
        make_loop("train.max_steps=5", "model.n_gram=4", *options, out=name)
        for name in ("dense", "sparse")
    )
    dense.learner.model.ngram_embedding.sparse = False

    expected, found = ([r for r in finish(one) if r.kind == "train"] for one in (dense, sparse))

    assert sparse.learner.model.ngram_embedding.table.weight.grad.is_sparse
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    norms = [r.grad_norm for r in found]
    assert norms == pytest.approx([r.grad_norm for r in expected], rel=1e-4)
