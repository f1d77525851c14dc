"""The orders of n-gram models that leave them open: chosen when a run begins, kept when it resumes."""

from collections.abc import Callable

from charlm.config import Config, ModelConfig, NGramConfig
from charlm.runs import RunFolder
from charlm.text import Corpus
from charlm.training.counting import with_chosen_order


def choose_orders(
    config: Config,
    corpus: Corpus,
    vocab_size: int,
    run: RunFolder,
    should_stop: Callable[[], bool],
) -> tuple[Config, list[str]]:
    """Put a number for each `order: auto`; return a line for each choice.

    Raises the errors of `with_chosen_order`.
    """
    train, notes = corpus.splits["train"], []
    # Weights must be fitted on characters that had no part in any choice.
    known = train.part(0, len(train) - config.model.held_back(len(train)))
    where = "the training part"
    if len(known) < len(train):
        where += f" before the {len(train) - len(known):,} that weights are fitted on"

    def chosen(model: ModelConfig, name: str) -> ModelConfig:
        if not isinstance(model, NGramConfig) or model.order != "auto":
            return model
        found, chars = with_chosen_order(model, known, vocab_size, run, should_stop)
        notes.append(
            f"{name}.order is {found.order}, the best on the last {chars:,} characters of {where}"
        )
        return found

    return _with_models(config, chosen), notes


def keep_orders(config: Config, own: Config) -> Config:
    """Put the orders that a run has in its `own` configuration for each `order: auto`."""
    models = {"model": own.model}
    models |= {_name(name): one.model for name, one in own.model.members().items() if one.model}

    def kept(model: ModelConfig, name: str) -> ModelConfig:
        then = models.get(name)
        if not isinstance(model, NGramConfig) or not isinstance(then, NGramConfig):
            return model
        return model.model_copy(update={"order": then.order}) if model.order == "auto" else model

    return _with_models(config, kept)


def _with_models(config: Config, change: Callable[[ModelConfig, str], ModelConfig]) -> Config:
    """Return a configuration with its model, or those of its experts, changed; given their keys."""
    model = change(config.model, "model")
    experts = {
        name: one.model_copy(update={"model": change(one.model, _name(name))}) if one.model else one
        for name, one in model.members().items()
    }
    return config.model_copy(update={"model": model.with_members(experts)})


def _name(expert: str) -> str:
    return f"model.experts.{expert}.model"
