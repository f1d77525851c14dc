"""A kind of model that charlm does not know, defined and registered here: every command takes it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from charlm.config import ModelConfig, Part
from charlm.config.base import TYPES
from charlm.config.values import Size
from charlm.models import LanguageModel
from charlm.models.registry import KINDS, Kind, register
from tests.conftest import TEXT

ROOT = Path(__file__).parent.parent
TOY = """\
data: {source: text.txt}
model: {type: last-few, block_size: 8, look_back: 3, n_embd: 6}
train: {max_steps: 40, batch_size: 4, learning_rate: 1e-2, warmup_steps: 2,
  eval_every: 20, save_every: 5}
run: {device: cpu}
"""


# Trains the toy, and kills itself once the first steps are saved.
KILLED = """
import os, signal
from charlm.cli.main import run
from charlm.cli.training_bar import TrainingBar
from tests.test_toy_kind import define

def show(self, record):
    if record.kind == "save" and record.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

define()
TrainingBar.show = show
run(["train", "-c", "toy.yaml", "--out", "killed"])
"""


def define() -> None:
    """Define and register an MLP over the last few characters: all that a new kind needs."""

    class LastFewConfig(ModelConfig):
        """One hidden layer over the embeddings of the last few characters."""

        type: Literal["last-few"]
        """Which model this is."""
        look_back: Size = 3
        """Characters that it looks back on."""
        n_embd: Size = 8
        """Channels of an embedding (C)."""

        def parts(self, vocab_size):
            width = self.look_back * self.n_embd
            return [
                Part("token_embedding", (vocab_size, self.n_embd), multiplies=False),
                Part("hidden", (width, width), hidden=True),
                Part("head", (vocab_size, width)),
            ]

    class LastFew(LanguageModel):
        any_length = True

        def __init__(self, vocab_size, block_size, look_back, n_embd, *, generator=None):
            super().__init__(vocab_size, block_size)
            self.memory = look_back
            width = look_back * n_embd
            self.token_embedding = nn.Embedding(vocab_size, n_embd)
            self.hidden = nn.Parameter(torch.empty(width, width))  # not in an nn.Linear
            self.head = nn.Linear(width, vocab_size, bias=False)
            for weight in (self.token_embedding.weight, self.hidden):
                nn.init.normal_(weight, std=0.3, generator=generator)
            nn.init.zeros_(self.head.weight)

        def forward(self, idx):
            x = F.pad(self.token_embedding(idx), (0, 0, self.memory - 1, 0))
            x = x.unfold(1, self.memory, 1).flatten(2)  # (B, T, look_back * C)
            return self.head(F.relu(x @ self.hidden))

    register("last-few", Kind(LastFew))


@pytest.fixture(scope="module", autouse=True)
def _registered():
    define()
    yield
    del TYPES["last-few"], KINDS["last-few"]


@pytest.fixture
def toy(charlm):
    """Run a command beside the toy's configuration and a text; it must succeed."""
    Path("text.txt").write_text(TEXT)
    Path("toy.yaml").write_text(TOY)

    def command(*arguments):
        result = charlm(*arguments)
        assert result.code == 0, result.stderr
        return result

    return command


@pytest.fixture
def run(toy):
    toy("train", "-c", "toy.yaml", "--out", "run", "-q")
    return Path("run")


def weights(run, step=40):
    return (run / f"checkpoints/step-{step}/model.safetensors").read_bytes()


def test_it_learns(toy, run):
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [record["loss_nats"] for record in losses if record["kind"] == "eval"]

    assert evaluated[-1] < evaluated[0] - 0.1


def test_killed_and_resumed_it_ends_with_the_same_bits(toy, run):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path("killed/checkpoints/step-5/MANIFEST.json").exists()
    assert not Path("killed/checkpoints/step-10").exists()

    toy("train", "--resume", "--out", "killed", "-q")

    assert weights(Path("killed")) == weights(run)


@pytest.mark.parametrize("protocol", ["windows", "sliding", "stream"])
def test_it_is_scored_by_every_protocol(toy, run, protocol):
    score = json.loads(toy("eval", "--run", run, "--protocol", protocol, "--json").stdout)

    assert score["protocol"] == protocol
    assert 1 < score["loss_nats"] < 3.4


def test_it_samples(toy, run):
    text = toy("sample", "--run", run, "--prompt", "the ", "--max-new-chars", 20).stdout

    assert text.startswith("the ")
    assert len(text.rstrip("\n")) >= 20


def test_it_is_explained(toy):
    said = toy("explain", "-c", "toy.yaml").stdout

    assert said.startswith("last-few: V = 31 symbols, T = 8\n")
    assert f"{31 * 6 + 18 * 18 + 31 * 18:,}" in said
    assert "logits (B, T, V)                (4, 8, 31)" in said


def test_it_is_verified(toy, run):
    assert "sound" in toy("verify", run).stdout


def test_it_is_compared(toy, run):
    said = toy("compare", run, "--split", "val").stdout

    assert "last-few" in said
    assert "1,068" in said


def test_it_is_an_expert_of_a_mixture(toy):
    experts = "{counts: {model: {type: ngram, order: 3}}, toy: {model: {type: last-few}, train: {max_steps: 20, warmup_steps: 2}}}"
    Path("mixture.yaml").write_text(
        TOY.replace(
            "{type: last-few, block_size: 8, look_back: 3, n_embd: 6}",
            f"{{type: mixture, experts: {experts}}}",
        )
    )

    toy("train", "-c", "mixture.yaml", "--out", "joined", "-q")

    assert "mixture" in toy("verify", "joined").stdout


def test_muon_finds_its_hidden_matrix(toy):
    toy("train", "-c", "toy.yaml", "train.optimizer=muon", "train.max_steps=5", "--out", "m", "-q")

    state = next(Path("m/checkpoints/step-5").glob("optim*.safetensors")).read_bytes()
    assert b"muon/hidden/momentum_buffer" in state
    assert b"muon/head.weight" not in state


def test_it_has_no_gradients_by_hand(charlm, toy):
    trained = charlm("train", "-c", "toy.yaml", "train.gradients=by_hand", "--out", "hand")
    checked = charlm("gradcheck", "-c", "toy.yaml")

    assert (trained.code, checked.code) == (2, 2)
    assert trained.error == (
        "train.gradients: model 'last-few' has no gradients by hand; leave it autograd"
    )
    assert checked.error == (
        "toy.yaml: model 'last-few' has no gradients by hand; name another model, such as gpt"
    )
    assert not Path("hand").exists()


def test_its_keys_are_checked_and_named(charlm, toy):
    unknown = charlm("explain", "-c", "toy.yaml", "model.look_bak=2")
    schema = json.loads(toy("config", "schema").stdout)

    assert unknown.error == ("model.look_bak=2: unknown key; did you mean 'look_back'?")
    assert "last-few" in schema["properties"]["model"]["discriminator"]["mapping"]
