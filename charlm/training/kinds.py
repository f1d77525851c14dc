"""Which way of training a model needs."""

from charlm.config import Config
from charlm.training.fit import Fitter
from charlm.training.loop import Trainer
from charlm.training.mix import Mixer


def trainer_for(config: Config) -> type[Trainer]:
    """Return the trainer of the configured kind of model."""
    return {"ngram": Fitter, "mixture": Mixer}.get(config.model.type, Trainer)
