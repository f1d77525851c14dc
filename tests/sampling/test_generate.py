import math

import numpy as np
import pytest
import torch

from charlm.config import GPTConfig
from charlm.errors import NonFiniteError
from charlm.models import build_model
from charlm.sampling import Context, Settings, generate
from charlm.sampling.generate import LATELY, Recent, uniform_numbers

V, BLOCK = 9, 6


@pytest.fixture
def model():
    config = GPTConfig(type="gpt", style="gpt2", block_size=BLOCK, n_layer=1, n_head=2, n_embd=8)
    model = build_model(config, V, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 20  # far from uniform
    return model


def run(model, prompt, count, settings=Settings(), seeds=(0,)):  # noqa: B008
    read = Context(model.eval(), np.array(prompt), several=len(seeds) > 1)
    drawn = list(generate(read, count, settings, seeds))
    ids = np.stack([d.idx for d in drawn], 1)
    return torch.from_numpy(ids), torch.from_numpy(np.stack([d.logprob for d in drawn], 1))


def test_temperature_zero_follows_the_argmax_past_the_block(model):
    text = [1, 2]
    for _ in range(5 * BLOCK):
        text.append(int(model.read(torch.tensor([text]))[0, -1].argmax()))

    found, _ = run(model, [1, 2], 5 * BLOCK, Settings(temperature=0.0))

    assert found[0].tolist() == text[2:]
    assert len(set(text)) > 2


def test_a_prompt_longer_than_the_block_counts_by_its_end(model):
    long = [8, 7, 6, 5, 4, 3, 2, 1, 0, 1]

    whole, _ = run(model, long, 20, seeds=[5])
    end, _ = run(model, long[-BLOCK:], 20, seeds=[5])

    assert torch.equal(whole, end)


def test_a_row_depends_on_its_own_seed_only(model):
    together, _ = run(model, [1], 30, seeds=[10, 11, 12])

    for i, seed in enumerate([10, 11, 12]):
        alone, _ = run(model, [1], 30, seeds=[seed])
        assert torch.equal(together[i : i + 1], alone)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("several", [False, True])
def test_a_prompt_is_read_once_however_often_it_is_continued(model, monkeypatch, several):
    lengths = []
    step = type(model).step
    monkeypatch.setattr(type(model), "step", lambda *a: lengths.append(a[1].shape[1]) or step(*a))
    context = Context(model.eval(), np.array([1, 2, 3]), several=several)

    def text(seed):
        drawn = generate(context, 4 * BLOCK, Settings(), [seed] * (1 + several))
        return [int(d.idx[-1]) for d in drawn]

    texts = [text(seed) for seed in (7, 8, 7)]

    assert texts[0] == texts[2] != texts[1]
    assert lengths.count(3) == 1
    assert set(lengths) <= {1, 3}


def test_the_log_probability_is_the_models_own_before_temperature(model):
    idx, logprob = run(model, [1, 2], 3, Settings(temperature=0.3, top_k=4))

    text = torch.cat([torch.tensor([[1, 2]]), idx], dim=1)
    expected = model(text[:, :-1]).log_softmax(-1)[0, 1:].gather(-1, idx[0, :, None])[:, 0]
    torch.testing.assert_close(logprob[0].float(), expected, atol=1e-5, rtol=1e-5)


def test_it_does_not_touch_the_global_generator(model):
    torch.manual_seed(1)
    before = torch.get_rng_state()

    run(model, [1], 5)

    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_asked_for_is_nothing_drawn(model):
    assert list(generate(Context(model, np.array([1])), 0, Settings(), [0])) == []


def test_a_diverged_model_is_refused_in_one_line(model):
    with torch.no_grad():
        model.final_norm.weight[0] = math.nan

    with pytest.raises(NonFiniteError, match="training diverged"):
        run(model, [1], 1)


def test_a_penalty_looks_back_on_the_prompt_and_on_what_was_drawn(model):
    """Without a way to repeat, every character comes once before any comes again."""
    settings = Settings(repetition_penalty=1e6)
    with torch.no_grad():
        model.final_norm.weight.zero_()  # all are as likely

    found, _ = run(model, [4], V - 1, settings, seeds=[3])

    assert sorted([4, *found[0].tolist()]) == list(range(V))
    lately = Recent(np.array([[1, 2], [3, 3]]), 5)
    assert np.flatnonzero(lately.mask()[0]).tolist() == [1, 2]
    for _ in range(LATELY - 1):
        lately.add(np.array([0, 4]))
    assert np.flatnonzero(lately.mask()[0]).tolist() == [0, 2]
    assert np.flatnonzero(lately.mask()[1]).tolist() == [3, 4]


def test_numbers_of_a_seed_do_not_depend_on_how_many_are_made_at_once():
    whole = uniform_numbers(7, 0, 600)
    assert np.array_equal(whole[250:], uniform_numbers(7, 250, 350))
    assert whole.min() >= 0
    assert whole.max() < 1
    assert abs(whole.mean() - 0.5) < 0.05


def test_a_record_has_at_least_one_character(model):
    boundary, many = V - 1, range(200)
    free, end = Settings(temperature=1e3), Settings(temperature=1e3, boundary=boundary)

    anything, _ = run(model, [boundary], 1, free, seeds=many)
    found, logprob = run(model, [boundary], 1, end, seeds=many)
    later, _ = run(model, [boundary, 2], 1, end, seeds=many)

    assert (anything == boundary).any()
    assert not (found == boundary).any()
    assert (later == run(model, [boundary, 2], 1, free, seeds=many)[0]).all()
    # Log-probabilities stay those of the model.
    expected = model.read(torch.tensor([[boundary]]))[0, -1].log_softmax(-1)[found[:, 0]]
    torch.testing.assert_close(logprob[:, 0].float(), expected, atol=1e-4, rtol=1e-4)
