"""Hugging Face's own libraries read what was exported. `scripts/exchange` installs them."""

import random

import pytest
import torch

import charlm as package
from tests.exchange.awkward import AWKWARD

transformers = pytest.importorskip("transformers", reason="scripts/exchange installs it")


@pytest.fixture
def exported(charlm, tiny):
    (tiny.parent / "text.txt").write_text(AWKWARD * 40, encoding="utf-8", newline="")
    keys = ["model.style=gpt2", "train.max_steps=2", "eval.baselines=false", "-q", "--out", "run"]
    assert charlm("train", "--config", tiny, *keys).code == 0
    assert charlm("export", "run", "theirs", "--to", "hf").code == 0
    return tiny.parent / "theirs"


def test_the_model_has_the_same_logits_and_writes_the_same(exported):
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    ours = package.load("run")
    ids = torch.randint(ours.module.vocab_size, (4, 8), generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours.module(ids), rtol=0, atol=1e-5)

    prompt = ours.tokenizer.decode(ids[0, :3].tolist())
    greedy = model.generate(ids[:1, :3], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert ours.tokenizer.decode(greedy[0, 3:].tolist()) == ours.generate(
        prompt, temperature=0, max_new_chars=5
    )


@pytest.mark.parametrize(
    "options",
    [
        ["model.style=gpt2", "model.bias=true", "model.gelu=tanh", "model.tied=false"],
        ["model.style=modern", "model.token_shift=false"],
    ],
)
def test_a_model_with_options_has_the_same_logits(charlm, tiny, options):
    keys = ["train.max_steps=9", "train.learning_rate=0.1", "eval.baselines=false", "-q"]
    assert charlm("train", "--config", tiny, *options, *keys, "--out", "run").code == 0
    assert charlm("export", "run", "theirs", "--to", "hf").code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny.parent / "theirs")
    ours = package.load("run")
    ids = torch.randint(31, (4, 8), generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        logits = model(ids).logits
        assert logits.std() > 0.1
        torch.testing.assert_close(logits, ours.module(ids), rtol=0, atol=1e-5)

    greedy = model.generate(ids[:1, :3], max_new_tokens=5, do_sample=False, pad_token_id=0)
    prompt = ours.tokenizer.decode(ids[0, :3].tolist())
    assert ours.tokenizer.decode(greedy[0, 3:].tolist()) == ours.generate(
        prompt, temperature=0, max_new_chars=5
    )


def test_each_awkward_character_has_its_id_both_ways(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ours = package.load("run").tokenizer
    letters = random.Random(0).choices(AWKWARD, k=500)

    assert len(set(AWKWARD)) >= 70
    for text in [*AWKWARD, "".join(letters)]:
        ids = tokenizer(text)["input_ids"]
        assert ids == ours.encode(text).tolist(), repr(text)
        assert tokenizer.decode(ids) == text, repr(text)


def test_bytes_have_their_ids_both_ways(charlm, tiny):
    keys = ["model.style=gpt2", "data.unit=bytes", "train.max_steps=2", "eval.baselines=false"]
    assert charlm("train", "--config", tiny, *keys, "-q", "--out", "run").code == 0
    assert charlm("export", "run", "theirs", "--to", "hf").code == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.parent / "theirs")

    for text in (AWKWARD, "the dog"):
        assert tokenizer(text)["input_ids"] == list(text.encode())
        assert tokenizer.decode(list(text.encode())) == text
