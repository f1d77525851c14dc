"""Runs made in a few lines, as in the tests of training."""

from tests.training.conftest import make_trainer

__all__ = ["make_trainer"]
