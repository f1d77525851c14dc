"""A mixture that reads learns from each character after it was predicted, as autograd would."""

import numpy as np
import pytest
import torch

from charlm.config import AdaptConfig
from charlm.models import MixtureModel, NGramModel, adaptive_mixture
from charlm.models.adaptive import Unchanging
from charlm.models.adaptive_mixture import (
    CORRECTION_RATE,
    GATE_RATE,
    MIX,
    OFFSET_RATE,
    ORDERS,
    AdaptiveMixture,
)
from charlm.models.bigram import BigramModel
from charlm.models.gate import features_of
from charlm.models.growing import GrowingNGram
from charlm.text.tokens import IdArray
from tests.models.conftest import CONFIGS, VOCAB
from tests.models.test_contract import knowing

LENGTH = 60


@pytest.fixture(params=["gated", "log-linear", "linear"])
def model(request, generator):
    """Two bigram models that know something else each, joined; a gate has learned something."""
    experts = {name: BigramModel(VOCAB, 8, generator=generator) for name in ("a", "b")}
    for expert in experts.values():
        expert.load_state_dict(
            {
                k: 2 * torch.randn(v.shape, generator=generator)
                for k, v in expert.state_dict().items()
            }
        )
    found = MixtureModel(VOCAB, 8, experts, request.param)
    found.weights.copy_(torch.tensor([0.7, 0.3]))
    found.temperature.fill_(0.9)
    if found.gate is not None:
        numbers = torch.randn(len(found.gate.numbers()), generator=generator)
        found.gate.take((0.3 * numbers).tolist())
    return found.eval()


@pytest.fixture
def text(generator):
    """A text of three characters, of which contexts repeat."""
    return torch.randint(3, (LENGTH,), generator=generator).numpy()


def expected(model, text):
    """The log-probabilities by autograd in float64, one character after another."""
    experts = [expert(torch.from_numpy(text)[None])[0] for expert in model.experts.values()]
    log_p = torch.stack(experts).log_softmax(-1).double()
    inner, outer = torch.zeros(1, 9), torch.zeros(2, 2)
    if model.gate is not None:
        inner, outer = model.gate.inner, model.gate.outer
    inner, outer = (part.double().clone().requires_grad_() for part in (inner, outer))
    offsets, corrections, found = {}, {}, []
    for t in range(len(text)):
        contexts = [tuple(text[max(0, t - k) : t + 1]) for k in range(ORDERS)]
        contexts = [(k, *context) for k, context in enumerate(contexts)]
        for table, size in ((offsets, len(inner)), (corrections, VOCAB)):
            for context in contexts:
                table.setdefault(context, torch.zeros(size, dtype=torch.float64)).requires_grad_()
        moved, corrected = [offsets[c] for c in contexts], [corrections[c] for c in contexts]
        hidden = inner[:, :-1] @ features_of(log_p[:, t]) + inner[:, -1] + sum(moved)
        powers = model.weights.double() / model.temperature.double()
        powers = powers + outer[:, :-1] @ hidden.relu() + outer[:, -1]
        joined = (powers @ log_p[:, t] + sum(corrected)).log_softmax(-1)
        found.append(joined.detach())
        if t + 1 < len(text):
            parts = [inner, outer, *moved, *corrected]
            rates = [GATE_RATE] * 2 + [OFFSET_RATE] * ORDERS + [CORRECTION_RATE] * ORDERS
            slopes = torch.autograd.grad(-joined[text[t + 1]], parts)
            with torch.no_grad():
                for part, rate, slope in zip(parts, rates, slopes, strict=True):
                    part -= rate * slope
    return torch.stack(found).float()


def reader_of(model, **options):
    return model.adaptive(AdaptConfig(**options))


@pytest.mark.parametrize("model", ["gated", "log-linear"], indirect=True)
def test_it_learns_as_autograd_would_character_by_character(model, text):
    found = reader_of(model).go_on(text)

    torch.testing.assert_close(found, expected(model, text), atol=1e-6, rtol=1e-6)
    frozen = reader_of(model, mixing=False).go_on(text)
    assert (found - frozen).abs().max() > 0.05


@pytest.mark.parametrize("model", ["linear"], indirect=True)
def test_a_linear_mixture_stays_as_it_was_fitted(model, text):
    assert reader_of(model).learned == ()
    assert torch.equal(reader_of(model).go_on(text), reader_of(model, mixing=False).go_on(text))


def test_without_learning_it_says_what_the_mixture_does(model, text):
    reader = reader_of(model, mixing=False)

    with torch.no_grad():
        whole = model.read(torch.from_numpy(text)[None])[0].log_softmax(-1)
    torch.testing.assert_close(reader.go_on(text), whole, atol=1e-6, rtol=1e-5)
    assert reader.learned == ()


def test_how_a_text_is_cut_changes_no_bit(model, text):
    before = {name: part.clone() for name, part in model.state_dict().items()}
    whole, pieces = reader_of(model), reader_of(model)

    at_once = whole.go_on(text)

    cut = [pieces.go_on(part) for part in np.split(text, [1, 2, 9, 30])]
    assert torch.equal(at_once, torch.cat(cut))
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())


@pytest.mark.parametrize("model", ["gated"], indirect=True)
def test_a_later_character_moves_no_earlier_score(model, text):
    other = text.copy()
    other[40] = 2 - other[40] // 2

    one, two = (reader_of(model).go_on(ids) for ids in (text, other))

    assert torch.equal(one[:40], two[:40])
    assert not torch.equal(one[40:], two[40:])


def test_contexts_have_rows_of_their_own_where_there_are_enough():
    """Of three characters, all 3 + 9 + 27 contexts, so that the slow reference needs no hashes."""
    rows = {
        ((a * MIX + b) * MIX + c) & 0xFFFF for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3)
    }

    assert len(rows) == 27
    assert (
        adaptive_mixture.begin(MixtureModel(VOCAB, 8, {"a": BigramModel(VOCAB, 8)})).rows.size == 3
    )


def test_the_experts_learn_too_but_not_the_counts_of_other_runs():
    model = knowing(CONFIGS["mixture"])
    known = torch.arange(VOCAB).repeat(4).numpy()
    model.taken = frozenset()
    reader = model.adaptive(AdaptConfig(), IdArray(known))
    assert isinstance(reader, AdaptiveMixture)
    assert isinstance(reader.experts[0], GrowingNGram)
    assert reader.learned == ("counts", "mixing weights")
    model.taken = frozenset({"ngram"})

    reader = model.adaptive(AdaptConfig(), IdArray(known))

    assert isinstance(reader.experts[0], Unchanging)
    assert isinstance(model.experts["ngram"], NGramModel)
    assert reader.learned == ("mixing weights",)
