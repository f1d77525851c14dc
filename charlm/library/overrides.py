"""Settings as Python values, written as the KEY=VALUE that a configuration takes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from charlm.config import Config
from charlm.errors import UsageError

SHORT = {"minutes": "train.minutes", "seed": "run.seed", "device": "run.device"}


def as_changes(settings: Mapping[str, Any]) -> list[str]:
    """Return KEY=VALUE for settings such as `train={"max_steps": 100}` or `seed=1`.

    A dotted key, as in `**{"train.max_steps": 100}`, is a key of the configuration. Values are plain
    Python: numbers, texts, booleans, None, lists and dictionaries. Raises UsageError for a name that
    is neither a section nor one of `SHORT`, and for a value that a file could not hold.
    """
    return [f"{key}={_written(key, value)}" for key, value in _leaves(settings)]


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in SHORT:
            if value is not None:
                yield SHORT[name], value
        elif "." in name:
            yield name, value
        elif name not in Config.model_fields:
            known = ", ".join([*Config.model_fields, *SHORT])
            raise UsageError(name, "no section of a configuration", f"use one of {known}")
        elif isinstance(value, Mapping):
            for key, one in value.items():
                yield f"{name}.{key}", one
        else:
            mend = f"give a dictionary, such as {name}={{'KEY': VALUE}}"
            raise UsageError(name, f"a section of a configuration, got {value!r}", mend)


def _written(key: str, value: Any) -> str:
    """Return a text as it is, and any other value in JSON, which YAML includes."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        what = f"cannot be written to a file: {type(value).__name__}"
        raise UsageError(key, what, "give a number, a text, a list or a dictionary") from None
