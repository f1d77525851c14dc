"""Texts that share steps are those that are drawn alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from charlm.models.bigram import BigramModel
from charlm.models.gpt2 import GPT2
from charlm.models.modern import ModernGPT
from charlm.sampling.choose import Settings
from charlm.sampling.generate import Context, generate
from charlm.sampling.rows import FEW, SlidingRows, rows_of
from charlm.sampling.together import Together

V, T = 11, 8
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16}


def model_of(kind):
    generator = torch.Generator().manual_seed(1)
    made = {
        "bigram": lambda: BigramModel(V, T, generator=generator),
        "gpt2": lambda: GPT2(V, T, **SIZES, generator=generator),
        "modern": lambda: ModernGPT(V, T, **SIZES, generator=generator),
        "no shift": lambda: ModernGPT(V, T, **SIZES, token_shift=False, generator=generator),
        "n-grams": lambda: ModernGPT(V, T, **SIZES, n_gram=3, generator=generator),
    }[kind]().eval()
    with torch.no_grad():  # zeros would hide what is wrong
        for weights in made.parameters():
            weights.normal_(0, 0.4, generator=generator)
    return made


@pytest.mark.parametrize("kind", ["bigram", "gpt2", "modern", "no shift", "n-grams"])
def test_a_text_does_not_notice_others_that_come_and_go(kind):
    model, numbers = model_of(kind), np.random.default_rng(0)
    settings = [
        Settings(),
        Settings(temperature=0.7, top_k=5),
        Settings(repetition_penalty=1.3),
        Settings(temperature=0.0),
    ]
    wanted, begun, found = {}, {}, {}
    together = Together(model)
    for step in range(80):
        if step % 3 == 0 and step < 45:
            prompt = numbers.integers(V, size=numbers.integers(1, 2 * T))
            chosen, count = settings[step % 4], int(numbers.integers(1, 4 * T))
            alone = generate(Context(model, prompt), count, chosen, [step])
            text = together.add(Context(model, prompt), chosen, step)
            wanted[text] = [(int(one.idx[0]), float(one.logprob[0])) for one in alone]
            begun[text], found[text] = count, []
        for one in together.step():
            found[one.text].append((one.idx, one.logprob))
        together.remove([text for text in begun if len(found[text]) == begun[text]])

    assert len(wanted) == 15
    assert len(together) == 0
    for text, expected in wanted.items():
        assert [idx for idx, _ in found[text]] == [idx for idx, _ in expected]
        assert [p for _, p in found[text]] == pytest.approx([p for _, p in expected], abs=1e-4)


def test_modern_models_share_their_steps():
    rows, model = rows_of(model_of("modern")), model_of("modern")
    for _ in range(FEW + 1):
        assert rows.many is None
        rows.join(Context(model, np.array([1])))
    assert isinstance(rows.many, SlidingRows)


def test_rows_that_left_cost_nothing():
    model = model_of("modern")
    together = Together(model)
    texts = [together.add(Context(model, np.array([1, 2])), Settings(), seed) for seed in range(5)]
    together.step()
    together.remove(texts[3:])
    together.step()

    assert together._rows.many.state.layers[0].held.shape[1] == 3
    together.remove(texts[1:])
    assert together._rows.many is None
    assert len(together.step()) == 1
    together.remove(texts)
    assert together.step() == []


def test_settings_that_differ_are_kept_apart():
    model = model_of("modern")
    together, allowed = Together(model), np.arange(V) == 3
    one = Settings(allowed=allowed)
    texts = [
        together.add(Context(model, np.array([1])), settings, 0)
        for settings in (one, replace(one, allowed=~allowed))
    ]

    drawn = {one.text: one.idx for one in together.step()}

    assert drawn[texts[0]] == 3
    assert drawn[texts[1]] != 3
