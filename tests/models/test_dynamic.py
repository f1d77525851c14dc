import numpy as np
import pytest
import torch
from torch.nn import functional as F

from charlm.config import AdaptConfig
from charlm.errors import NonFiniteError
from charlm.models import build_model
from charlm.models.ngram_embedding import ngram_rows
from charlm.text import IdArray
from tests.models.conftest import BLOCK, CONFIGS, VOCAB

LEARNING = AdaptConfig(weights=True, every=5, learning_rate=0.01)


@pytest.fixture
def text(generator):
    return torch.randint(VOCAB, (31,), generator=generator).numpy()


@pytest.mark.parametrize("every", [5, 2 * BLOCK + 3])
def test_reading_at_once_and_one_by_one_learn_the_same(trained_config, text, every):
    model = build_model(trained_config, VOCAB).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = LEARNING.model_copy(update={"every": every})
    whole, single = model.adaptive(options), model.adaptive(options)

    at_once = whole.go_on(text)
    one_by_one = torch.cat([single.go_on(text[i : i + 1]) for i in range(len(text))])

    torch.testing.assert_close(one_by_one, at_once, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_learns_from_a_character_after_it_was_scored(trained_config, text):
    model = build_model(trained_config, VOCAB).eval()
    other = text.copy()
    other[20] = (other[20] + 1) % VOCAB  # a target of characters 15 to 19, which are learned next

    one, changed = (model.adaptive(LEARNING).go_on(ids) for ids in (text, other))

    assert torch.equal(one[:20], changed[:20])


def test_each_update_is_one_step_down_the_gradient_of_the_last_characters(text):
    model = build_model(CONFIGS["bigram"], VOCAB).eval()
    table = model.table.weight.detach().clone().requires_grad_()
    squares, expected = torch.zeros_like(table), []
    ids = torch.from_numpy(text)
    for t in range(len(text)):
        if t and t % 5 == 0:
            loss = F.cross_entropy(table[ids[t - 5 : t]], ids[t - 4 : t + 1])
            (gradient,) = torch.autograd.grad(loss, table)
            squares = 0.999 * squares + 0.001 * gradient**2
            scale = (squares / (1 - 0.999 ** (t // 5))).sqrt() + 1e-8
            table = (table - 0.01 * gradient / scale).detach().requires_grad_()
        expected.append(table[ids[t]].detach().log_softmax(-1))

    torch.testing.assert_close(model.adaptive(LEARNING).go_on(text), torch.stack(expected))


def test_windows_of_the_training_part_are_learned_from_too(text):
    model = build_model(CONFIGS["bigram"], VOCAB).eval()
    trained_on = IdArray(np.full(20, 3))  # a 3 follows each 3
    options = LEARNING.model_copy(update={"replay": 2})
    text = text[text != 3]

    plain, mixed = model.adaptive(options), model.adaptive(options, trained_on)
    for reader in (plain, mixed):
        reader.go_on(text)

    after_3 = [reader.model.table.weight.detach()[3].softmax(0)[3] for reader in (plain, mixed)]
    assert after_3[0] == pytest.approx(1 / VOCAB)
    assert after_3[1] > 1.05 / VOCAB


def test_of_a_table_of_ngrams_only_the_rows_that_were_read_change(text):
    model = build_model(CONFIGS["modern, n-grams"], VOCAB).eval()
    reader = model.adaptive(LEARNING)

    reader.go_on(text)

    read = torch.from_numpy(text)[None]
    learned = torch.cat([ngram_rows(part, 4, VOCAB)[0] for part in read[:, :-1].split(5, dim=1)])
    changed = (reader.model.ngram_embedding.table.weight != 0).any(dim=1).nonzero().flatten()
    assert set(changed.tolist()) <= set(learned.flatten().tolist())
    assert len(changed) > 20


def test_a_learning_rate_that_breaks_the_model_is_named(text):
    model = build_model(CONFIGS["gpt2"], VOCAB).eval()
    reader = model.adaptive(LEARNING.model_copy(update={"learning_rate": 1e38}))

    with pytest.raises(NonFiniteError, match=r"adapt.learning_rate.*lower it"):
        reader.go_on(text)


def test_without_weights_nothing_is_learned(text):
    model = build_model(CONFIGS["gpt2"], VOCAB).eval()

    reader = model.adaptive(AdaptConfig())

    assert reader.learned == ()
    torch.testing.assert_close(
        reader.go_on(text), model.read(torch.from_numpy(text)[None])[0].log_softmax(-1)
    )
