"""The provenance of weights: the configuration and alphabet they were trained with.

Each checkpoint keeps it as `belongs.json`, and so does a mixture until it is joined.
"""

import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from charlm.config import Config
from charlm.config.schema import leaves
from charlm.errors import CheckpointError
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.folder import RunFolder
from charlm.storage.json_file import read_object, reason
from charlm.storage.machine import is_gone, machine_errors

PROVENANCE = "belongs.json"
MAX_BYTES = 1 << 22  # a configuration has at most 1 MiB; here each character may be escaped
# Keys of `train` that may not change, like all of `model` and `data`.
FIXED = ("train.batch_size", "train.optimizer", "train.init_from", "train.carry_state")
# Exceptions: these name a place, which may have moved.
PLACES = re.compile(r"data\.source|model\.experts\.[^.]+\.run")
# Keys of a gpt that older runs did not record, and what their models computed.
ADDED_LATER = {"token_shift": True, "bias": False, "gelu": "exact", "tied": True}  # nosec B105
# Keys of a model, and of an expert, that do not affect its results.
IDLE = ("train", "dropout", "run", "tune_fraction")

Kind = TypeVar("Kind")


def provenance_json(config: Config, alphabet: str) -> bytes:
    """Return the content of `belongs.json` for a run with this configuration and tokenizer.json."""
    content = {
        "alphabet_sha256": hashlib.sha256(alphabet.encode()).hexdigest(),
        "config": config.model_dump(mode="json"),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


@dataclass(frozen=True)
class Provenance:
    """The configuration and alphabet of some weights, to compare with those of their run now.

    `model` has the keys that determine the computation: some, such as the number of heads, do not
    show in the shapes of tensors. A field that was not recorded is None.
    """

    run: Path
    then: str  # the event that recorded it, for messages: `step-5 was saved`
    model: Mapping[str, Any]
    alphabet_sha256: str | None
    config: Mapping[str, Any] | None  # by full keys

    def check(self, config: Config, alphabet: str) -> None:
        """Raise a CheckpointError if the weights were trained with another model or alphabet."""
        for key, value in _computed_from(config.model.model_dump(mode="json")):
            if key in self.model and self.model[key] != value:
                raise self._changed(f"model.{key}", self.model[key], value)
        digest = hashlib.sha256(alphabet.encode()).hexdigest()
        if self.alphabet_sha256 not in (None, digest):
            path, what = self.run / "tokenizer.json", f"not the alphabet that {self.then} with"
            raise CheckpointError(path, what, "restore it")

    def differences(self, before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
        """Return the keys that both have and that differ, with their values then and now.

        `before` is used if no configuration was recorded. Raise CheckpointError if one of the keys
        may not change within a run.
        """
        then = leaves(before.model_dump(mode="json")) if self.config is None else self.config
        found: dict[str, tuple[Any, Any]] = {}
        for key, value in leaves(now.model_dump(mode="json")).items():
            if key in then and then[key] != value:
                found[key] = then[key], value
            elif value is None and any(known.startswith(f"{key}.") for known in then):
                found[key] = "more", value  # a whole section was there
        for key, (old, new) in found.items():
            if is_fixed(key, old, new):
                raise self._changed(key, old, new)
        return found

    def _changed(self, key: str, then: Any, now: Any) -> CheckpointError:
        what = f"{key} is {reprlib.repr(now)}, {self.then} with {reprlib.repr(then)}"
        return CheckpointError(self.run / "config.yaml", what, "restore it")


def is_fixed(key: str, then: Any, now: Any) -> bool:
    """Tell whether a key may not change within a run from one of these values to the other."""
    moved = PLACES.fullmatch(key) and then and now and "-" not in (then, now)
    return not moved and (key in FIXED or key.startswith(("model.", "data.")))


def provenance_of(checkpoint: Checkpoint, mixture: RunFolder | None = None) -> Provenance:
    """Read the provenance of a checkpoint whose files are verified; see `_read`.

    An expert is compared with the configuration of its `mixture`, with which it continues.
    """
    run, of = checkpoint.path.parent.parent, ""
    if mixture:
        run, of = mixture.path, f" of {run.name}"
    # Older checkpoints have it in their manifest; the oldest have none.
    older = _of(dict, checkpoint.facts, "belongs") or {}
    return _read(checkpoint.path, older, run, f"{checkpoint.path.name}{of} was saved")


def provenance_of_unjoined(mixture: RunFolder) -> Provenance:
    """Read the provenance of a mixture that is not joined yet; see `_read`."""
    return _read(mixture.path, {}, mixture.path, "it was begun")


def _read(folder: Path, older: Mapping[str, Any], run: Path, then: str) -> Provenance:
    """Read the belongs.json of a folder, or `older` if there is none.

    Raises:
        CheckpointError: It is damaged.
        MachineError: The disk or its permissions refuse.
    """
    path = folder / PROVENANCE
    try:
        with machine_errors(path):
            content = older if is_gone(path) else read_object(path, MAX_BYTES)
        config = _of(dict, content, "config")
        model = _of(dict, config or content, "model") or {}  # older ones keep nothing else
        model = _completed(model)
        if config and model:
            config = {**config, "model": model}
        sha256 = _of(str, content, "alphabet_sha256")
        keys = None if config is None else leaves(config)
        return Provenance(run, then, dict(_computed_from(model)), sha256, keys)
    except (ValueError, RecursionError) as error:
        what = f"cannot be read ({reason(error)})"
        raise CheckpointError(path, what, "restore it or start a new run") from None


def _completed(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded model with the keys that were added later."""
    found = {**(ADDED_LATER if model.get("type") == "gpt" else {}), **model}
    experts = _of(dict, found, "experts") or {}
    for name, expert in experts.items():
        inside = _of(dict, expert, "model") if isinstance(expert, Mapping) else None
        if inside:
            experts = {**experts, name: {**expert, "model": _completed(inside)}}
    return found | {"experts": experts} if experts else found


def _of(kind: type[Kind], content: Mapping[str, Any], key: str) -> Kind | None:
    """Return a value if it exists and has this type."""
    value = content.get(key)
    return value if isinstance(value, kind) else None


def _computed_from(model: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a model or expert that determine its computation, with their values."""
    for key, value in model.items():
        if key in IDLE:
            continue
        if key == "experts" and isinstance(value, Mapping):
            for name, expert in value.items():  # whatever its name
                if isinstance(expert, Mapping):
                    yield from _computed_from(expert, f"{before}{key}.{name}.")
        elif isinstance(value, Mapping):
            yield from _computed_from(value, f"{before}{key}.")
        else:
            yield before + key, value
