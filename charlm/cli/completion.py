"""What the shell offers after Tab: presets, keys, runs and texts. Imports no torch.

Where nothing here begins with the word, the shell offers files.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from charlm.errors import CharlmError


def configurations(incomplete: str) -> list[str]:
    """Offer presets, and YAML files of the current folder."""
    from charlm.config import preset_names

    return _beginning(incomplete, [*preset_names(), *map(str, sorted(Path().glob("*.y*ml")))])


def keys(incomplete: str) -> list[str]:
    """Offer keys of a configuration, and after the = the values of a key that has few."""
    from charlm.config.problems import all_keys

    key, equals, _ = incomplete.partition("=")
    known = all_keys()
    if equals:
        return _beginning(incomplete, [f"{key}={value}" for value in known.get(key, ())])
    return _beginning(incomplete, [f"{name}=" for name in known])


def runs(incomplete: str) -> list[str]:
    """Offer the runs, newest first, by their names alone until a folder is typed."""
    from charlm.runs.folder import RUNS, runs_under

    with contextlib.suppress(CharlmError, OSError):
        paths = [run.path for run in runs_under(RUNS)]
        names = map(str, paths) if "/" in incomplete else (path.name for path in paths)
        return _beginning(incomplete, names)
    return []


def texts(incomplete: str) -> list[str]:
    """Offer the named texts."""
    from charlm.text.datasets import DATASETS
    from charlm.text.sources import EMBEDDED

    return _beginning(incomplete, [*EMBEDDED, *DATASETS])


def checkpoints(incomplete: str) -> list[str]:
    """Offer the checkpoints that have names."""
    return _beginning(incomplete, ["best", "last"])


def devices(incomplete: str) -> list[str]:
    """Offer the kinds of device."""
    return _beginning(incomplete, ["auto", "cpu", "cuda", "mps"])


def _beginning(start: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(start)]
