"""Recurrent kinds in every command, as a user meets them."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from charlm.models import build_model
from charlm.sampling import Context, Settings, generate
from tests.conftest import TEXT
from tests.models.conftest import CONFIGS, VOCAB

LSTM = "{type: lstm, block_size: 16, n_embd: 8, n_hidden: 12}"
ALONE = f"""\
data: {{source: text.txt}}
model: {LSTM}
train: {{max_steps: 30, batch_size: 4, learning_rate: 1e-2, warmup_steps: 2, eval_every: 15, carry_state: true}}
eval: {{baselines: false}}
"""
MIXED = f"""\
data: {{source: text.txt}}
model:
  type: mixture
  block_size: 16
  experts:
    counts: {{model: {{type: ngram, order: 3}}}}
    state: {{model: {LSTM}, train: {{max_steps: 12, batch_size: 4}}}}
eval: {{baselines: false}}
"""


@pytest.fixture
def train(charlm):
    """Train a configuration on a short text."""
    Path("text.txt").write_text(TEXT)

    def run(config, *more):
        Path("a.yaml").write_text(config)
        result = charlm("train", "-c", "a.yaml", "--out", "run", "-q", *more)
        assert result.code == 0, result.stderr

    return run


def scored(charlm, *options):
    result = charlm("eval", "--run", "run", "--json", *options)
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_run_with_a_carried_state_is_scored_sampled_verified_and_copied(charlm, train):
    train(ALONE)

    inside = scored(charlm, "--protocol", "windows")
    on = scored(charlm, "--protocol", "stream")

    assert on["chars"] == inside["chars"]
    assert 1 < on["loss_nats"] < inside["loss_nats"] + 0.1  # windows begin without a past
    text = charlm("sample", "--run", "run", "--prompt", "the ", "--max-new-chars", 40).stdout
    assert len(text.rstrip("\n")) >= 40
    assert charlm("verify", "run").code == 0
    assert charlm("export", "run", "out").code == 0
    assert charlm("runs", "copy", "run", "copy", "--without", "text").code == 0
    assert scored(charlm, "--protocol", "windows") == inside


def test_a_mixture_takes_one_as_an_expert(charlm, train):
    train(MIXED)

    score = scored(charlm)

    assert 0.1 < score["loss_nats"] < 3
    assert charlm("sample", "--run", "run", "--max-new-chars", 20).code == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.type=bigram"], "model 'bigram' has no state to carry"),
        (["train.gradients=by_hand"], "by hand, each window begins anew"),
        (["data.records=lines"], "every record begins anew"),
        (["run.compile=true"], "begins anew in each window"),
    ],
)
def test_what_a_carried_state_contradicts_is_refused_in_a_line(charlm, overrides, said):
    Path("text.txt").write_text(TEXT)
    simple = ALONE.replace(LSTM, "{type: bigram, block_size: 16}")
    Path("a.yaml").write_text(simple if overrides == ["model.type=bigram"] else ALONE)

    result = charlm("train", "-c", "a.yaml", "--out", "run", *overrides)

    assert result.code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("run").exists()


def test_a_wider_embedding_than_the_state_cannot_be_the_head(charlm):
    Path("a.yaml").write_text(ALONE.replace("n_hidden: 12", "n_hidden: 12, tied: true"))

    result = charlm("train", "-c", "a.yaml")

    assert result.code == 2
    assert "n_embd is 8 but n_hidden 12; make them equal" in result.stderr


@pytest.mark.parametrize("kind", ["lstm", "gru", "mingru"])
def test_a_long_sample_takes_no_more_memory_than_a_short_one(kind):
    """The state has one size: so a million characters are no more than a thousand at a time."""
    model = build_model(CONFIGS[kind], VOCAB, seed=1).eval()
    context = Context(model, np.zeros(1, np.int64))

    def peak(count):
        tracemalloc.start()
        for _ in generate(context, count, Settings(), [1]):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(50)
    assert peak(1500) < peak(150) + 20_000
