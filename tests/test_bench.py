"""Where `scripts/bench profile` says the time of a step goes."""

import json
import time
from types import SimpleNamespace

import pytest

from benches import profile
from benches.profile import ATTENTION, COPIES, FAULTS, LOSS, NORMS, OPTIMIZER, PRODUCTS, PYTHON


def event(name, own, *children, number=-1):
    """An event as the profiler returns it, with its self time."""
    return SimpleNamespace(
        name=name, self_cpu_time_total=own, cpu_children=children, sequence_nr=number
    )


def step(*children):
    gradients = event("charlm::gradients", 1, *children)
    return event("charlm::step", 2, gradients, event("aten::_foreach_norm", 4))


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (event("aten::matmul", 3, event("aten::mm", 5)), {PRODUCTS: 5, NORMS: 3}),
        (event("charlm::attention", 3, event("aten::add", 5)), {PYTHON: 3, ATTENTION: 5}),
        (event("aten::bmm", 3), {ATTENTION: 3}),
        (event("charlm::attention.kernel", 3), {ATTENTION: 3}),
        (event("charlm::norm.kernel", 3, event("aten::copy_", 5)), {NORMS: 8}),
        (event("AttentionBranch", 3, event("aten::mm", 5)), {ATTENTION: 3, PRODUCTS: 5}),
        (event("RMSNormBackward", 3, event("aten::sum", 5)), {NORMS: 8}),
        (event("charlm::attention.all", 1, event("RMSNorm", 2)), {ATTENTION: 1, NORMS: 2}),
        (event("aten::_log_softmax", 3), {LOSS: 3}),
        (event("aten::_softmax", 3), {ATTENTION: 3}),
        (event("aten::native_layer_norm", 3), {NORMS: 3}),
        (event("aten::copy_", 3), {COPIES: 3}),
        (event("a function of Python", 3), {PYTHON: 3}),
    ],
)
def test_an_event_counts_to_its_innermost_known_scope(tree, expected):
    found = profile.parts_of([step(tree)])

    rest = {PYTHON: 1 + 2, OPTIMIZER: 4}
    for part in profile.PARTS:
        assert found[part] == expected.get(part, 0) + rest.get(part, 0), part


def test_all_products_of_the_optimizer_are_its_own():
    muon = event("Optimizer.step#Muon.step", 3, event("aten::mm", 5), event("RMSNorm", 7))

    assert profile.parts_of([event("charlm::step", 2, muon)]) == {PYTHON: 2 + 3 + 7, OPTIMIZER: 5}


def test_the_way_back_counts_where_the_way_there_did():
    there = event("charlm::attention", 0, event("aten::div", 3, number=7))
    other = event("aten::div", 5, number=8)
    back = (
        event(
            "autograd::engine::evaluate_function: DivBackward0",
            0,
            event("aten::div", own),
            number=number,
        )
        for number, own in ((7, 10), (8, 20))
    )

    found = profile.parts_of([step(there, other, *back)])

    assert (found[ATTENTION], found[NORMS]) == (3 + 10, 5 + 20)


@pytest.mark.parametrize("kind", ["gpt, style: modern", "gpt, style: gpt2", "bigram"])
def test_the_shares_of_a_step_add_up_to_1(tiny, kind, monkeypatch, capsys):
    monkeypatch.setattr(profile, "limits", dict)
    config = tiny.read_text().replace("gpt\n  style: modern", kind.replace(", ", "\n  "))
    if kind == "bigram":
        config = "data: {source: text.txt}\nmodel: {type: bigram}\n"
    tiny.write_text(config)

    profile.profile("tiny.yaml", ["train.batch_size=2"], "text.txt", steps=2, as_json=True)

    figures = json.loads(capsys.readouterr().out)
    shares = {
        key.partition("share of ")[2]: value for key, value in figures.items() if "share" in key
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares.values())
    assert set(shares) == set(profile.PARTS) - {profile.COMPILED}
    assert shares[OPTIMIZER] > 0
    assert (shares[PRODUCTS] > 0) == (shares[ATTENTION] > 0) == (kind != "bigram")


def test_time_that_python_spends_is_said(tiny):
    config = tiny.read_text()
    assert config
    loop = profile.loop_of(tiny.parent / "r", "tiny.yaml", "text.txt")
    loop.learner.step()
    get = loop.learner.batches.get
    loop.learner.batches.get = lambda *a: time.sleep(0.1) or get(*a)

    whole, found = profile._profiled(loop, 1)

    assert sum(found.values()) == pytest.approx(whole * 1e6)
    assert found[PYTHON] > 0.1e6


def test_system_time_is_taken_from_all_parts_alike():
    found = profile.shares({PRODUCTS: 3.0, PYTHON: 1.0}, 0.2)

    assert (found[PRODUCTS], found[PYTHON], found[FAULTS]) == pytest.approx((0.6, 0.2, 0.2))
