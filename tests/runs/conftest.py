"""Every kind of model, as in the tests of models."""

from tests.models.conftest import each_config, trained_config

__all__ = ["each_config", "trained_config"]
