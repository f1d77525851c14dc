"""Runs made in a few lines, as in the tests of training."""

from tests.training.conftest import make_loop

__all__ = ["make_loop"]
