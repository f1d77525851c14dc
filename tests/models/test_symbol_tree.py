import numpy as np
import pytest

from charlm.models.symbol_tree import walks_of


def chain(depth):
    """The children of a tree that has one character at each step, and two at the last."""
    nodes = np.arange(depth)
    child = np.stack([-1 - nodes, nodes + 1], axis=1)
    child[-1, 1] = -1 - depth
    return child


def test_the_walks_of_a_small_alphabet_may_have_any_length():
    assert walks_of(chain(255)).length.tolist() == [*range(1, 256), 255]


def test_walks_that_would_fill_memory_are_refused(monkeypatch):
    monkeypatch.setattr("charlm.models.symbol_tree.MOST", 1 << 10)

    with pytest.raises(ValueError, match="the tree of characters is too deep"):
        walks_of(chain(600))
