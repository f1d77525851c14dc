"""Types and shapes are checked at run time while testing: once for each kind of call of a function.

jaxtyping takes ten times as long for a call as many a short function: most of the time of many a test.
So a call is not checked again, nor is what it returns, if one with arguments of the same types, dtypes
and shapes has passed before.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import torch

_Function = Callable[..., Any]
_LOOK = 8  # elements of a tuple or list that are looked at


def check_once() -> None:
    """Let the decorator that `--jaxtyping-packages` puts before each function check as said above."""
    jaxtyping.jaxtyped = _once(jaxtyping.jaxtyped)


def _once(jaxtyped: _Function) -> _Function:
    def decorator(**options: Any) -> _Function:
        return lambda found: _decorated(found, jaxtyped(**options))

    return decorator


def _decorated(found: Any, checked: _Function) -> Any:
    if inspect.isfunction(found):
        return _skipping(found, checked(found))
    made = found.__init__  # a class: the decorator checks how a dataclass is made
    checked(found)
    if found.__init__ is not made:
        found.__init__ = _skipping(made, found.__init__)
    return found


def _skipping(plain: _Function, checked: _Function) -> _Function:
    """Return a function that is `checked` for each kind of call until one passes, then `plain`."""
    passed = set()

    @functools.wraps(checked)
    def called(*args: Any, **kwargs: Any) -> Any:
        kind = (*map(_kind, args), *kwargs, *map(_kind, kwargs.values()))
        if kind in passed:
            return plain(*args, **kwargs)
        out = checked(*args, **kwargs)
        passed.add(kind)
        return out

    return called


def _kind(value: Any) -> Any:
    """Return what the check of a value depends on."""
    kind = type(value)
    if issubclass(kind, (torch.Tensor, np.ndarray)):
        return kind, value.dtype, value.shape
    if issubclass(kind, (tuple, list)):
        return kind, *map(_kind, value[:_LOOK])
    return kind
