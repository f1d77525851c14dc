"""The values of a configuration by their whole keys."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what nested mappings hold by its whole key: `experts.gpt.train.max_steps`.

    Args:
        values: Of a configuration.
        before: What the keys begin with.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield before + key, value
