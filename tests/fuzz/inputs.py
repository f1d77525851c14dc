"""Inputs for the targets: any bytes, valid ones with something amiss, and JSON of every kind."""

import functools
import json
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS


def fuzzed(examples: int) -> settings:
    """Return settings under which a test is the same each time, on any machine."""
    return settings(max_examples=examples, derandomize=True, database=None)


@st.composite
def amiss(draw: Any, name: str) -> bytes:
    """Draw a seed of a target with some stretches cut out, said twice or written over."""
    target = TARGETS[name]
    data = draw(st.sampled_from(seeds(name)))
    words = [word.encode() for word in target.words]
    written = st.binary(max_size=8)
    if words:
        written |= st.sampled_from(words)
    for _ in range(draw(st.integers(0, 3))):
        first = draw(st.integers(0, len(data)))
        last = min(len(data), first + draw(st.sampled_from([0, 1, 2, 8, 64, len(data)])))
        twice = data[first:last] if draw(st.booleans()) else b""
        data = data[: last if twice else first] + twice + draw(written) + data[last:]
    return data


@functools.cache
def seeds(name: str) -> list[bytes]:
    """Return the seeds of a target, made once: some write files to make them."""
    return TARGETS[name].seeds()


_NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -1, 10**400, 1e308, 0, 1.0])
_LEAVES = st.none() | st.booleans() | _NUMBERS | st.text(max_size=8)
JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@st.composite
def changed(draw: Any, good: Callable[[], dict[str, Any]]) -> bytes:
    """Draw the JSON of an object with some values in it replaced by any other, or left out."""
    content = json.loads(json.dumps(good()))
    for _ in range(draw(st.integers(1, 3))):
        inner = content
        key = draw(st.sampled_from(sorted(inner)))
        while isinstance(inner[key], dict) and inner[key] and draw(st.booleans()):
            inner = inner[key]
            key = draw(st.sampled_from(sorted(inner)))
        if draw(st.integers(0, 4)):
            inner[key] = draw(JSON)
        else:
            del inner[key]
        if not inner:
            break
    return json.dumps(content).encode()
