"""The base class of model configurations: facts about a model without building it.

A kind is a subclass of `ModelConfig` whose field `type` is a `Literal` with one name. Defining the
class registers it, and configurations may then use that type. `charlm.models.registry` connects it
with the model that it describes.

C is `n_embd`, V the vocabulary, T `block_size`, B the batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from charlm.config.sections import TrainConfig
from charlm.config.values import Section, Size
from charlm.errors import Problem

if TYPE_CHECKING:
    from charlm.config.mixture import ExpertConfig

TYPES: "dict[str, type[ModelConfig]]" = {}


@dataclass(frozen=True)
class Part:
    """A weight of a model, or equal-sized weights of several blocks."""

    name: str
    shape: tuple[int, ...]  # of one copy
    copies: int = 1
    multiplies: bool = True  # False for embeddings, which are only looked up
    hidden: bool = False  # a matrix between the embeddings and the head, which Muon can train
    looked_up: int = 0  # rows for each character, of a table that has gradients only for these

    @property
    def parameters(self) -> int:
        """Number of scalars in all copies."""
        return self.copies * prod(self.shape)


class ModelConfig(Section):
    """A model. A new kind must define `type`, its own keys and `parts`; the rest has defaults."""

    trained_by: ClassVar[Literal["gradients", "counting", "joining"]] = "gradients"
    can_be_expert: ClassVar[bool] = True  # of a mixture
    # Whether it has a recurrent state, which `train.carry_state` can carry from window to window.
    carries_state: ClassVar[bool] = False
    has_blocks: ClassVar[bool] = False  # which hold most weights, and are called one after another

    block_size: Size = 64
    """Characters in a training window: the longest context the model looks at."""
    type: str
    """Which model this is."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        for name in get_args(cls.model_fields["type"].annotation):
            known = TYPES.setdefault(name, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                what = f"{cls.__qualname__}: {known.__qualname__} has type {name!r} already"
                raise TypeError(f"{what}; give it a type of its own")
            TYPES[name] = cls  # also when a notebook defines it again

    @property
    def kind(self) -> str:
        """Its key in `charlm.models.registry` and its title: `bigram`, `gpt (modern)`."""
        return self.type

    @property
    def brief(self) -> str:
        """A few words for a column of a table: `gpt modern`."""
        return self.type

    def described(self, vocab_size: int) -> str:
        """Return a line that describes the model."""
        count = self.parameter_count(vocab_size)
        return f"{self.kind}: {count:,} parameters, block {self.block_size}"

    def facts(self, chars: int) -> tuple[str, list[tuple[str, str]]]:
        """Return a title and rows for `explain`; `chars` is the training part's length, 0 if unknown."""
        return "", []

    def sizes(self) -> dict[str, Any]:
        """Return the arguments of the model's constructor after `vocab_size`."""
        return {key: getattr(self, key) for key in type(self).model_fields if key != "type"}

    @property
    def has_dropout(self) -> bool:
        """Whether a training step draws random numbers."""
        return False

    @property
    def deep(self) -> bool:
        """Whether large matrix products take most of the time, so that bfloat16 may help."""
        return False

    @property
    def can_be_planned(self) -> bool:
        """Whether `train.plan` knows sizes for it."""
        return False

    def conflicts_with(self, train: TrainConfig) -> Iterator[Problem]:
        """Yield settings that this model cannot be trained with; `where` is a configuration key."""
        if train.optimizer == "muon" and not any(part.hidden for part in self.parts(1)):
            what = f"muon needs a hidden 2-D matrix and model {self.type!r} has none"
            yield Problem("train.optimizer", what, "use adamw")
        what = f"model {self.type!r} is counted and has no"
        if self.trained_by == "counting" and train.init_from:
            yield Problem("train.init_from", f"{what} initial weights", "leave it out")
        if train.carry_state and not self.carries_state:
            stated = " or ".join(name for name, kind in TYPES.items() if kind.carries_state)
            what = f"model {self.type!r} has no state to carry"
            yield Problem("train.carry_state", what, f"set it to false, or use {stated}")
        if train.carry_state and train.gradients == "by_hand":
            what = "true is for autograd: by hand, each window begins anew"
            yield Problem("train.carry_state", what, "change one of them")
        if self.trained_by == "counting" and train.gradients == "by_hand":
            yield Problem("train.gradients", f"{what} gradients", "leave it autograd")

    def smallest(self) -> "ModelConfig":
        """Return a model with the same operations, as small as it can be: to try them out."""
        small = {"block_size": 2, "n_layer": 1, "n_head": 1, "n_embd": 2, "n_hidden": 2}
        update = {**small, "dropout": 0.5}
        fields = type(self).model_fields
        return self.model_copy(update={key: update[key] for key in update if key in fields})

    def least_text(self) -> dict[str, int]:
        """Return the fewest training characters that the model needs, by the key that demands them."""
        return {"block_size": self.block_size + 1}

    def undecided(self) -> list[str]:
        """Return the keys whose values are chosen when a run begins."""
        return []

    def members(self) -> "Mapping[str, ExpertConfig]":
        """Return the experts of a mixture by name; every other model has none."""
        return {}

    def with_members(self, experts: "Mapping[str, ExpertConfig]") -> "ModelConfig":
        """Return a mixture with other experts; every other model as it is."""
        return self

    def held_back(self, chars: int) -> int:
        """Return how many characters at the end of the training part fit a mixture's weights."""
        return 0

    def to_train(self, train: TrainConfig) -> "dict[str, tuple[ModelConfig, TrainConfig]]":
        """Return the models trained by gradients, by expert name: "" if there are no experts."""
        return {"": (self, train)} if self.trained_by == "gradients" else {}

    def parts(self, vocab_size: int) -> list[Part]:
        """List the weights in reading order, tied ones once; empty for a counted model."""
        raise NotImplementedError(f"{type(self).__name__}.parts")

    def parameter_count(self, vocab_size: int) -> int:
        """Return the number of trainable scalars."""
        return sum(part.parameters for part in self.parts(vocab_size))

    def flops_per_char(self, vocab_size: int) -> int:
        """Estimate the floating-point operations to train on one character, forward and backward.

        6 for each weight that multiplies, 2 forward and 4 backward: PaLM (Chowdhery et al. 2022),
        appendix B. Look-ups and element-wise work count as zero.
        """
        return 6 * sum(part.parameters for part in self.parts(vocab_size) if part.multiplies)

    def activation_floats(self, vocab_size: int, by_hand: bool = False) -> int:
        """Estimate how many floats a character leaves in memory for the backward pass.

        This default counts the inputs and outputs of each matrix, and 3 V for the logits, their
        log-softmax and its gradient. `by_hand`: the gradients are those of `charlm.backprop`.
        """
        matrices = (part for part in self.parts(vocab_size) if part.multiplies)
        return sum(part.copies * sum(part.shape) for part in matrices) + 3 * vocab_size

    def buffer_bytes(self) -> int:
        """Return the memory of buffers, which are not weights, in bytes."""
        return 0

    def table_bytes(self, vocab_size: int, chars: int) -> int:
        """Return the most bytes that counts of this many characters can take in a checkpoint."""
        return 0

    def likely_table_bytes(self, vocab_size: int, chars: int) -> int:
        """Estimate how many bytes the counts of this many characters take in a checkpoint."""
        return self.table_bytes(vocab_size, chars)

    def shapes(self, batch_size: int, vocab_size: int) -> list[tuple[str, tuple[int, ...]]]:
        """List the shapes of a batch on its way to the loss, with their names."""
        b, t, v = batch_size, self.block_size, vocab_size
        return [
            ("idx (B, T)", (b, t)),
            *self.inner_shapes(b),
            ("logits (B, T, V)", (b, t, v)),
            ("for the loss (B*T, V)", (b * t, v)),
        ]

    def inner_shapes(self, batch_size: int) -> list[tuple[str, tuple[int, ...]]]:
        """List the shapes between ids and logits."""
        return []


@dataclass(frozen=True)
class OfRegisteredType:
    """An annotation: the value is read as the registered class that its `type` names.

    Errors that pydantic finds inside it keep their places, and the JSON schema lists every type
    that is registered when it is printed. `expert`: only kinds that can be part of a mixture.
    """

    expert: bool = False

    def read(self, value: Any) -> ModelConfig:
        """Return the model that a mapping describes; a model is returned as it is."""
        types = types_of_models(self.expert)
        given = {} if value is None else value
        if isinstance(value, ModelConfig):
            given = {"type": value.type}
        if not isinstance(given, Mapping):
            raise PydanticKnownError("model_attributes_type")
        if "type" not in given:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "type"})
        name = given["type"]
        if isinstance(name, str) and name in types:
            return types[name].model_validate(value)
        tag = str(name).encode("utf-8", "backslashreplace").decode()  # it may hold broken bytes
        tags = {"discriminator": "type", "tag": tag, "expected_tags": ", ".join(types)}
        raise PydanticKnownError("union_tag_invalid", tags)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        types = types_of_models(self.expert)
        choices = {name: model.__pydantic_core_schema__ for name, model in types.items()}
        return handler(core_schema.tagged_union_schema(choices, discriminator="type"))


def types_of_models(expert: bool = False) -> dict[str, type[ModelConfig]]:
    """Return the registered classes by type; with `expert`, those that can be part of a mixture."""
    return {name: model for name, model in TYPES.items() if model.can_be_expert or not expert}


AnyModel = Annotated[ModelConfig, OfRegisteredType()]
AnyExpert = Annotated[ModelConfig, OfRegisteredType(expert=True)]
