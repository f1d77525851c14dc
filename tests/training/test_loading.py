"""Which kernels a run loads, and whether it uses them."""

import pytest

from charlm.config import load_config
from charlm.training.loading import load_kernels


@pytest.mark.parametrize("style", ["modern", "gpt2"])
def test_a_run_is_fused_unless_it_is_told_not_to_be(make_loop, style):
    losses = {}
    for fused in "true", "false":
        changes = f"model.style={style}", f"run.fused={fused}", "train.max_steps=6"
        loop = make_loop(*changes, out=fused)
        found = [record.loss_nats for record in loop.records() if record.kind == "train"]
        losses[loop.learner.form] = found

    assert list(losses) == ["fused", "plain"]
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-5)


def test_kernels_are_loaded_once(tiny):
    config = load_config(tiny, [])
    list(load_kernels(config))
    assert list(load_kernels(config)) == []
    assert list(load_kernels(load_config("bigram", []))) == []
