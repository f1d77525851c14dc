"""Weights taken over to another alphabet: what is known stays, what is new begins fresh."""

import pytest
import torch

from charlm.models import MixtureModel, build_model
from charlm.models.ngram_embedding import PRIME
from charlm.models.registry import kind_of
from tests.models.conftest import BLOCK, CONFIGS, COUNTED, VOCAB
from tests.models.test_contract import knowing

# New id 3 is a new character; the others are 0, 1, 2, 3, ... of before.
WIDER = torch.tensor([0, 1, 2, -1, *range(3, VOCAB)])
NARROWER = torch.tensor([0, 2, 3, -1])
ALONE = {name: config for name, config in CONFIGS.items() if name != "mixture"}


def taken(config, known, other):
    model = build_model(config, len(known), seed=5).eval()
    model.take_over(other, known)
    return model


@pytest.fixture(params=ALONE, ids=str)
def config(request):
    return ALONE[request.param]


def test_logits_over_known_characters_are_as_they_were(config, generator):
    other = knowing(config)
    text = torch.randint(VOCAB, (3, BLOCK), generator=generator)
    here = (WIDER >= 0).nonzero().flatten()

    model = taken(config, WIDER, other)
    found = model(here[text])[..., here]

    if config.type in COUNTED:  # what is left over is for one more character
        torch.testing.assert_close(found.exp(), other(text).exp(), atol=0.03, rtol=0)
    else:
        torch.testing.assert_close(found, other(text), atol=1e-6, rtol=1e-5)


def test_new_characters_begin_as_the_seed_draws_them_and_dropped_ones_are_gone(config):
    other, drawn = knowing(config), build_model(config, len(NARROWER), seed=5)

    model = taken(config, NARROWER, other)

    for name, dims in model.per_character.items():
        theirs, first, found = (m.state_dict()[name] for m in (other, drawn, model))
        assert torch.equal(found.select(dims[0], 3), first.select(dims[0], 3))
        kept = found.narrow(dims[0], 0, 3)
        for dim in dims[1:]:
            kept, theirs = kept.narrow(dim, 0, 3), theirs.index_select(dim, NARROWER[:3])
        assert torch.equal(kept, theirs.index_select(dims[0], NARROWER[:3]))
    assert model(torch.tensor([[0, 3, 1]])).isfinite().all()
    model.check_state(model.state_dict())


def test_every_tensor_with_a_row_for_each_character_is_declared(config):
    few, many = (build_model(config, size).state_dict() for size in (3, 4))

    changing = {
        name: tuple(d for d in range(t.ndim) if t.shape[d] != few[name].shape[d])
        for name, t in many.items()
        if t.shape != few[name].shape
    }

    if config.type not in COUNTED:  # which are renumbered
        assert changing == build_model(config, 3).per_character


def test_there_and_back_again_is_where_it_began(config, generator):
    other = knowing(config)
    text = torch.randint(VOCAB, (2, BLOCK), generator=generator)
    back = (WIDER >= 0).nonzero().flatten()

    again = taken(config, back, taken(config, WIDER, other))

    torch.testing.assert_close(again(text), other(text))


@pytest.mark.parametrize("name", [n for n, c in ALONE.items() if getattr(c, "n_gram", 1) > 1])
class TestNumbering:
    """The table of n-grams is looked up by numbers of characters, which a model may bring along."""

    def test_it_is_saved_and_loaded(self, name, generator):
        model = taken(ALONE[name], WIDER, knowing(ALONE[name]))
        text = torch.randint(len(WIDER), (2, BLOCK), generator=generator)
        loaded = build_model(ALONE[name], len(WIDER)).eval()

        loaded.load_state_dict(model.state_dict())

        assert torch.equal(loaded(text), model(text))
        assert loaded.state_dict().keys() == model.state_dict().keys()
        loaded.load_state_dict(build_model(ALONE[name], len(WIDER)).state_dict())
        assert "ngram_embedding.numbering" not in loaded.state_dict()

    def test_the_fast_reader_reads_by_it(self, name, generator):
        model = taken(ALONE[name], WIDER, knowing(ALONE[name]))
        text = torch.randint(len(WIDER), (1, BLOCK), generator=generator)
        reader = kind_of(model).find("reader")(model)

        with torch.no_grad():
            found = [
                torch.from_numpy(reader.read(i.numpy()[None])) for i in text.split(1, dim=1)[0]
            ]
            found += [
                torch.from_numpy(reader.read(text[:, t : t + 1].numpy())) for t in range(1, 5)
            ]

        torch.testing.assert_close(torch.cat(found), model(text)[0, :5], atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("change", ["short", "zero", "large", "float"])
    def test_a_damaged_one_is_refused(self, name, change):
        model = taken(ALONE[name], WIDER, knowing(ALONE[name]))
        state = dict(model.state_dict())
        numbering = state["ngram_embedding.numbering"].clone()
        changed = {
            "short": numbering[1:],
            "zero": numbering * 0,
            "large": numbering + PRIME,
            "float": numbering.float(),
        }
        state["ngram_embedding.numbering"] = changed[change]

        with pytest.raises(ValueError, match=r"ngram_embedding\.numbering"):
            build_model(ALONE[name], len(WIDER)).load_state_dict(state)

    def test_a_mixture_keeps_that_of_its_expert(self, name, generator):
        experts = {"a": taken(ALONE[name], WIDER, knowing(ALONE[name]))}
        mixture = MixtureModel(len(WIDER), BLOCK, experts).eval()
        text = torch.randint(len(WIDER), (1, BLOCK), generator=generator)
        fresh = {"a": build_model(ALONE[name], len(WIDER))}
        loaded = MixtureModel(len(WIDER), BLOCK, fresh).eval()

        loaded.load_state_dict(mixture.state_dict())

        assert torch.equal(loaded(text), mixture(text))
        strange = mixture.state_dict() | {"experts.b.head": torch.ones(1)}
        with pytest.raises(ValueError, match=r"experts\.b\.head belongs to another model"):
            loaded.load_state_dict(strange)


def test_a_numbering_without_a_table_is_refused():
    model = build_model(CONFIGS["modern"], VOCAB)
    state = model.state_dict() | {"ngram_embedding.numbering": torch.arange(VOCAB + 1) + 1}

    with pytest.raises(ValueError, match=r"ngram_embedding\.numbering belongs to another model"):
        model.load_state_dict(state)
