"""The values of a configuration by their whole keys."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any


def leaves(
    values: Mapping[str, Any], without: Collection[str] = (), before: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield what nested mappings hold by its whole key: `experts.gpt.train.max_steps`.

    Args:
        values: Of a configuration.
        without: Keys that are left out wherever they stand, with all below them.
        before: What the keys begin with.
    """
    for key, value in values.items():
        if key in without:
            continue
        if isinstance(value, Mapping):
            yield from leaves(value, without, f"{before}{key}.")
        else:
            yield before + key, value
