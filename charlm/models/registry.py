"""The kinds of models in one table: each kind's model, learner, reader and other forms.

A kind is a config class, which states its torch-free facts, and the entry here under that class's
`kind`. Entries are names of objects, looked up on use, so that they can name packages that come
later in the reading order. To add a kind without changing charlm: define the model and its config
class, then `register(...)`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from charlm.config import ModelConfig
from charlm.models.base import LanguageModel

Named = str | Any  # `package.module:Name`, or the object itself


@dataclass(frozen=True)
class Kind:
    """The parts of one kind of model; each field is an object or its `package.module:Name`.

    Args:
        model: A subclass of `LanguageModel`.
        learner: Returns the `charlm.training.Learner` that trains it; called with a `Job`.
        reader: Reads one text on a CPU faster than the model's own `step`; called with the model
            and the precision of its weights. None: use `step`.
        by_hand: Returns the steps of its forward pass for `charlm.backprop`; called with the model.
            None: nobody has derived its gradients.
        fused: Returns logits as the model does, faster in training on a CPU; called with the model.
            None: the model does. If it has a method `fits`, see `fused_for`.
    """

    model: Named
    learner: Named = "charlm.training.gradients:gradient_learner"
    reader: Named | None = None
    by_hand: Named | None = None
    fused: Named | None = None

    def find(self, field: str) -> Any:
        """Return the object in a field; None if there is none."""
        named = getattr(self, field)
        if isinstance(named, str):
            module, _, name = named.partition(":")
            return getattr(import_module(module), name)
        return named

    def fused_for(self, options: Any) -> Any:
        """Return its fused form; None if there is none, or none with these options.

        `options` is a model or its configuration; the form's own `fits` looks at its attributes.
        """
        found = self.find("fused")
        fits = getattr(found, "fits", None)
        return found if fits is None or fits(options) else None


def _of_charlm(model: str, **others: str) -> Kind:
    return Kind(f"charlm.models.{model}", **{key: f"charlm.{name}" for key, name in others.items()})


def _recurrent(model: str, name: str) -> Kind:
    return _of_charlm(
        model,
        by_hand=f"backprop.recurrent:{name}_steps",
        fused="fused.recurrent:FusedRecurrent",
        reader="sampling.recurrent_reader:RecurrentReader",
    )


KINDS: dict[str, Kind] = {
    "bigram": _of_charlm("bigram:BigramModel", by_hand="backprop.by_hand:bigram_steps"),
    "mlp": _of_charlm("mlp:MLPModel", by_hand="backprop.recurrent:mlp_steps"),
    "rnn": _recurrent("recurrent:RNN", "rnn"),
    "gru": _recurrent("recurrent:GRU", "gru"),
    "lstm": _recurrent("recurrent:LSTM", "lstm"),
    "mingru": _of_charlm(
        "mingru:MinGRU",
        by_hand="backprop.recurrent:mingru_steps",
        fused="fused.scan:FusedMinGRU",
        reader="sampling.mingru_reader:MinGRUReader",
    ),
    "averaging": _of_charlm("averaging:AveragingModel", by_hand="backprop.by_hand:averaging_steps"),
    "bow": _of_charlm("bow:BowModel", by_hand="backprop.recurrent:bow_steps"),
    "attention": _of_charlm("attention:AttentionModel", by_hand="backprop.by_hand:attention_steps"),
    "multihead": _of_charlm("attention:MultiHeadModel", by_hand="backprop.by_hand:multihead_steps"),
    "gpt (gpt2)": _of_charlm(
        "gpt2:GPT2",
        by_hand="backprop.by_hand:gpt2_steps",
        reader="sampling.gpt_reader:GPT2Reader",
        fused="fused.gpt:FusedGPT2",
    ),
    "gpt (modern)": _of_charlm(
        "modern:ModernGPT",
        by_hand="backprop.by_hand:modern_steps",
        reader="sampling.gpt_reader:ModernReader",
        fused="fused.gpt:FusedModernGPT",
    ),
    "ngram": _of_charlm(
        "ngram:NGramModel",
        learner="training.counting:CountingLearner",
        reader="sampling.ngram_reader:NGramReader",
    ),
    "context-mixing": _of_charlm(
        "context_mixing:ContextMixingModel", learner="training.counting:CountingLearner"
    ),
    "mixture": _of_charlm(
        "mixture:MixtureModel",
        learner="training.joining:JoiningLearner",
        reader="sampling.reader:MixtureReader",
    ),
    "mixture (bitwise)": _of_charlm(
        "bitwise:BitwiseMixture", learner="training.bitwise:BitwiseLearner"
    ),
}


def register(name: str, kind: Kind) -> None:
    """Add a kind of model under the `kind` of its config class; ValueError if there is one."""
    if name in KINDS:
        raise ValueError(f"kind {name!r} is registered already")
    KINDS[name] = kind


def kind_for(config: ModelConfig) -> Kind:
    """Return the kind of a configuration; LookupError if only its config class exists."""
    try:
        return KINDS[config.kind]
    except KeyError:
        what = f"no kind {config.kind!r}: charlm.models.registry.register joins it with its model"
        raise LookupError(what) from None


def kind_of(model: LanguageModel) -> Kind:
    """Return the kind of a model; one with only its class, if it is not registered."""
    for kind in KINDS.values():
        if kind.find("model") is type(model):
            return kind
    return Kind(type(model))


def build_model(config: ModelConfig, vocab_size: int, seed: int = 0) -> LanguageModel:
    """Build the model that `config` describes, its weights drawn from `seed`."""
    return construct(config, vocab_size, torch.Generator().manual_seed(seed))


def construct(
    config: ModelConfig, vocab_size: int, generator: torch.Generator | None
) -> LanguageModel:
    """Build the model that `config` describes, its weights drawn from `generator`."""
    model: type[LanguageModel] = kind_for(config).find("model")
    return model.from_config(config, vocab_size, generator)
