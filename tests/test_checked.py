"""The checks of types and shapes of `tests.checked`."""

from dataclasses import dataclass

import jaxtyping
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float

from tests.checked import _skipping

checked = jaxtyping.jaxtyped(typechecker=beartype)  # as `tests.conftest` has changed it


@checked
def product(a: Float[np.ndarray, "N K"], b: Float[np.ndarray, "K M"]) -> Float[np.ndarray, "N M"]:
    return a @ b if a.shape[0] < 9 else a


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((2, 3)), np.ones((4, 5))),
        (np.ones((2, 3)), np.ones((3, 5), int)),
        (np.ones((2, 3)), np.ones(3)),
        (np.ones((2, 3)), [[1.0]]),
        (np.ones((9, 3)), np.ones((3, 5))),  # what it returns
    ],
)
def test_a_call_that_is_wrong_is_refused_after_one_that_was_right(a, b):
    product(np.ones((2, 3)), np.ones((3, 5)))

    for _ in range(2):
        with pytest.raises(jaxtyping.TypeCheckError):
            product(a, b)


def test_a_call_is_checked_once_for_each_kind_of_arguments():
    calls = []
    called = _skipping(lambda *_: calls.append("plain"), lambda *_: calls.append("checked"))

    for numbers in ((1, 2), (3, 4), (1.0, 2), ((1,), 2), ((1.0,), 2), ((3.0,), 4)):
        called(*numbers)
    for size in (2, 2, 3):
        called(np.ones(size), None)

    first = ["checked", "plain", "checked", "checked", "checked", "plain"]
    assert calls == [*first, "checked", "plain", "checked"]


def test_a_dataclass_is_checked_where_it_is_made():
    @checked
    @dataclass
    class Point:
        x: int

    assert [Point(1).x, Point(2).x] == [1, 2]
    with pytest.raises(jaxtyping.TypeCheckError):
        Point("a")
