from typing import Literal

import pytest

from charlm.config import BigramConfig, ModelConfig
from charlm.config.base import TYPES
from charlm.models import BigramModel, LanguageModel, build_model
from charlm.models.registry import KINDS, Kind, kind_for, kind_of, register
from tests.models.conftest import CONFIGS, VOCAB


@pytest.mark.parametrize("name", KINDS)
def test_every_name_in_the_table_is_that_of_an_object(name):
    kind = KINDS[name]

    assert issubclass(kind.find("model"), LanguageModel)
    assert callable(kind.find("learner"))
    for field in ("reader", "by_hand"):
        assert (kind.find(field) is None) == (getattr(kind, field) is None)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_and_its_model_have_one_kind(name):
    config = CONFIGS[name]
    model = build_model(config, VOCAB)

    assert type(model) is kind_for(config).find("model")
    assert kind_of(model) is kind_for(config)


def test_every_type_has_a_model():
    assert {kind.split()[0] for kind in KINDS} == TYPES.keys()


def test_a_kind_is_registered_once():
    with pytest.raises(ValueError, match="'bigram' is registered already"):
        register("bigram", Kind(BigramModel))


def test_a_type_belongs_to_one_class():
    with pytest.raises(TypeError, match="Own: BigramConfig has type 'bigram' already; give it"):

        class Own(BigramConfig):
            pass

    assert TYPES["bigram"] is BigramConfig


def test_a_class_can_be_defined_again():
    try:
        for _ in range(2):

            class Again(ModelConfig):
                type: Literal["again"]

        assert TYPES["again"] is Again
    finally:
        del TYPES["again"]


def test_a_model_that_is_not_registered_has_its_class_and_the_defaults():
    class Novelty(BigramModel):
        pass

    assert kind_of(Novelty(VOCAB, 8)) == Kind(Novelty)


def test_a_configuration_without_a_model_is_named():
    class Lonely(BigramConfig):
        type: Literal["lonely"]
        """Which model this is."""

    try:
        with pytest.raises(LookupError, match=r"no kind 'lonely': .*register joins it"):
            build_model(ModelConfig.model_validate(Lonely(type="lonely")), VOCAB)
    finally:
        del TYPES["lonely"]
