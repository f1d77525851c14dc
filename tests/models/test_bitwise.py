"""Experts offer what they predict to a mixer of contexts, which joins them bit by bit."""

import numpy as np
import pytest
import torch

from charlm.config import AdaptConfig, ExpertConfig, MixtureConfig, NGramConfig
from charlm.models import build_model
from charlm.models.bit_reading import score_and_learn
from charlm.models.bitwise import BitwiseMixture, Joiner, offers_of
from charlm.models.registry import kind_of
from charlm.text.tokens import IdArray
from tests.models.conftest import BLOCK, CONFIGS, VOCAB

CLASSES = np.zeros((2, VOCAB), np.int32)
CONFIG = MixtureConfig(
    type="mixture",
    block_size=BLOCK,
    combine="bitwise",
    contexts=("1", "1 2", "1 2 3"),
    memory=1,
    experts={name: ExpertConfig(model=CONFIGS[name]) for name in ("modern", "averaging")},
)


def text_of(generator, length):
    """A text in which each character is likely to be the last but one, plus 1."""
    ids = torch.randint(VOCAB, (length,), generator=generator).tolist()
    chance = torch.rand(length, generator=generator).tolist()
    for i in range(2, length):
        if chance[i] < 0.8:
            ids[i] = (ids[i - 2] + 1) % VOCAB
    return np.array(ids, np.int64)


def fitted(model, text):
    """The model, after its mixer has read a text with what the experts offer."""
    with torch.no_grad():
        offers = offers_of(e.read(torch.from_numpy(text)[None]) for e in model.experts.values())[0]
    mixer, p = model.joiner.begin(text, CLASSES), np.empty(len(text))
    score_and_learn(mixer, text, offers, p)
    model.joiner.keep(mixer, text)
    return p


@pytest.fixture(scope="module")
def model():
    draw = torch.Generator().manual_seed(1)
    found = build_model(CONFIG, VOCAB, seed=1).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    fitted(found, text_of(draw, 1500))
    return found


@pytest.fixture
def text(generator):
    return text_of(generator, 40)


def test_it_is_a_mixture_of_its_own_kind(model):
    assert isinstance(model, BitwiseMixture)
    assert kind_of(model).find("model") is BitwiseMixture


def test_pieces_windows_and_single_targets_agree(model, text):
    rows = torch.from_numpy(text).view(5, BLOCK)
    with torch.no_grad():
        whole = model(rows)
        state, pieces = model.start(5), []
        for part in torch.split(rows, [1, 4, BLOCK - 5], dim=1):
            logits, state = model.go_on(part, state)
            pieces.append(logits)
        targets = rows.roll(-1, dims=1)
        looked_up = model.log_probability(rows, targets)

    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(5, BLOCK))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(looked_up, whole.gather(-1, targets[..., None])[..., 0])


def test_texts_that_continue_one_text_are_apart(model, text):
    ends = torch.from_numpy(text[10:16]).view(2, 3)
    with torch.no_grad():
        _, state = model.go_on(torch.from_numpy(text[:10])[None], model.start(1))
        found, _ = model.go_on(ends, model.repeat(state, 2))
        for row, end in enumerate(ends):
            alone = torch.cat([torch.from_numpy(text[:10]), end])[None]
            expected = model.go_on(alone, model.start(1))[0][0, 10:]
            torch.testing.assert_close(found[row], expected, atol=1e-3, rtol=1e-3)


def test_what_is_saved_predicts_the_same_bits(model, text):
    other = build_model(CONFIG, VOCAB, seed=9).eval()
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    other.load_state_dict(saved)

    rows = torch.from_numpy(text).view(5, BLOCK)
    with torch.no_grad():
        assert torch.equal(other(rows), model(rows))


def test_its_version_is_that_of_its_experts_and_of_the_joiner(model, monkeypatch):
    assert model.version == "2 of 2, 1 with 1"
    assert model.reads_version("2 of 2, 1 with 1")
    assert model.reads_version("2 of 2, 1")  # saved before the joiner had a version
    monkeypatch.setattr(Joiner, "version", "2")
    later = build_model(CONFIG, VOCAB)
    assert not later.reads_version("2 of 2, 1 with 1")
    assert not later.reads_version("2 of 2, 1")


def test_weights_of_another_size_are_refused(model):
    saved = dict(model.state_dict())
    saved["joiner.final"] = saved["joiner.final"][1:].clone()

    with pytest.raises(ValueError, match=r"^joiner.final is \("):
        build_model(CONFIG, VOCAB).load_state_dict(saved)


def test_an_expert_that_knows_is_believed(generator):
    """Characters that follow no rule, which an expert knows all the same."""
    text = torch.randint(VOCAB, (1200,), generator=generator).numpy()
    model = build_model(CONFIG, VOCAB).eval()
    offers = np.full((len(text), 2, VOCAB), np.log(1 / VOCAB), np.float32)
    offers[:-1, 1] = np.log(0.1 / (VOCAB - 1))
    offers[np.arange(len(text) - 1), 1, text[1:]] = np.log(0.9)
    found = {}
    for name, own in (("offered", offers), ("nothing", np.full_like(offers, np.nan))):
        found[name] = np.empty(len(text))
        score_and_learn(model.joiner.begin(text, CLASSES), text, own, found[name])

    late = {name: -np.log(p[600:]).mean() for name, p in found.items()}
    assert late["nothing"] > np.log(VOCAB) - 0.1
    assert late["offered"] < -np.log(0.9) + 0.15


def test_it_learns_while_it_reads_the_same_in_any_pieces(model, text):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = AdaptConfig()
    reader, pieces = model.adaptive(options), model.adaptive(options)

    first, at_once = reader.first(), reader.go_on(text)

    assert first.exp().sum().item() == pytest.approx(1, abs=1e-5)
    cut = torch.cat([pieces.go_on(part) for part in np.split(text, [1, 2, 9, 30])])
    torch.testing.assert_close(cut, at_once, atol=2e-3, rtol=1e-3)
    assert reader.learned == ("counts", "mixing weights")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    still = model.adaptive(AdaptConfig(mixing=False))
    assert still.learned == ()
    assert (still.go_on(text) - at_once).abs().max() > 0.01


def test_a_later_character_moves_no_earlier_score(model, text):
    other = text.copy()
    other[20] = (other[20] + 1) % VOCAB

    one, two = (model.adaptive(AdaptConfig()).go_on(ids) for ids in (text, other))

    torch.testing.assert_close(one[:20], two[:20], atol=1e-6, rtol=0)
    assert (one[20:] - two[20:]).abs().max() > 0.01


def test_a_fork_learns_no_more(model, text):
    reader = model.adaptive(AdaptConfig())
    reader.go_on(text[:20])

    one, two = reader.fork(), reader.fork()

    assert one.learned == ()
    assert torch.equal(one.go_on(text[20:]), two.go_on(text[20:]))


def test_its_counts_grow_with_those_of_its_experts(generator):
    counts = ExpertConfig(model=NGramConfig(type="ngram", block_size=BLOCK, order=3))
    model = build_model(CONFIG.model_copy(update={"experts": {"counts": counts}}), VOCAB).eval()
    reader = model.adaptive(AdaptConfig(), IdArray(text_of(generator, 50)))

    assert reader.learned == ("counts", "mixing weights")
