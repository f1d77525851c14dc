"""Which way of training a model needs."""

from charlm.config import Config
from charlm.models.registry import kind_for
from charlm.training.loop import Trainer


def trainer_for(config: Config) -> type[Trainer]:
    """Return the trainer of the configured kind of model."""
    return kind_for(config.model).find("learner")  # type: ignore[no-any-return]
