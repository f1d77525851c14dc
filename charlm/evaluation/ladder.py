"""The table of baselines: its rows, the place of a loss among them, and its file in a run."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from charlm.evaluation.score import Score
from charlm.storage import write_file
from charlm.storage.json_file import read_object

# Of a corpus: what its baselines depend on.
FACTS = ("source_sha256", "unit", "size", "vocab_size", "splits")
VERSION = 1  # of the file and of how baselines are computed
DIGITS = 4  # of a printed loss


@dataclass(frozen=True)
class Rung:
    """One baseline: its score on the held-out part, and its wall time in seconds.

    Work shared by several baselines counts for the first of them. `adaptive` says that it is scored
    under this protocol: it also learns from the text it is scored on, as compressors do, and has all
    text before as context.
    """

    name: str
    score: Score
    seconds: float
    adaptive: bool = False


@dataclass(frozen=True)
class Ladder:
    """The baselines of one text, as listed in `baselines`."""

    rungs: tuple[Rung, ...]
    symbols: int  # V
    block_size: int | None  # of the windows that n-grams are scored in; None: `stream`
    train: int  # characters of the training part
    counted: int  # how many of them n-grams were counted in: the last
    scored: int  # characters of the held-out part that n-grams are scored on
    compressed: int  # characters of the training part compressed; 0: no compressors
    order: int | None  # of the chosen n-gram; None if the training part is too short to choose

    @property
    def protocol(self) -> str:
        """The protocol that n-grams are scored by."""
        return "windows" if self.block_size else "stream"

    def loss_nats(self, name: str) -> float:
        """Return the loss of the rung called `name`."""
        return next(rung.score.loss_nats for rung in self.rungs if rung.name == name)

    def scored_alike(self, adaptive: bool) -> list[Rung]:
        """Return the baselines of one protocol, the worst first; `uniform` is the same under all."""
        alike = [r for r in self.rungs if r.adaptive == adaptive or r.name == "uniform"]
        return sorted(alike, key=lambda rung: -round(rung.score.loss_nats, DIGITS))

    def place(self, loss_nats: float, adaptive: bool = False) -> tuple[Rung | None, Rung | None]:
        """Return the best baseline that a loss beats and the worst that it does not, or None.

        Only baselines of the loss's own protocol are considered: `adaptive`, or not.
        """
        descending = self.scored_alike(adaptive)
        passed = sum(is_above(rung.score.loss_nats, loss_nats) for rung in descending)
        around = [None, *descending, None]
        return around[passed], around[passed + 1]

    def worse_than_uniform(self) -> list[str]:
        """Return the names of the baselines that guessing beats."""
        uniform = self.loss_nats("uniform")
        return [rung.name for rung in self.rungs if is_above(rung.score.loss_nats, uniform)]


def is_above(loss_nats: float, other_nats: float) -> bool:
    """Tell whether a loss is above another, as printed; two that differ only by rounding are not."""
    differ = round(loss_nats, DIGITS) > round(other_nats, DIGITS)
    return differ and loss_nats - other_nats > 1e-6


def keep(ladder: Ladder, path: Path, made_of: Mapping[str, Any]) -> None:
    """Write a ladder to a run's file, with what it was computed from; MachineError if that fails."""
    content = {"version": VERSION, "made_of": made_of, "ladder": asdict(ladder)}
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def kept(path: Path, made_of: Mapping[str, Any]) -> Ladder | None:
    """Read a ladder that `keep` wrote; None if there is none that was computed from this.

    A damaged file counts as none: it only saves time. Raises the CheckpointError of `open_regular`.
    """
    try:
        content = read_object(path)
        then = content.get("made_of")
        if content.get("version") != VERSION or not isinstance(then, dict):
            return None
        if any(then.get(key) != value for key, value in made_of.items()):
            return None
        ladder = TypeAdapter(Ladder).validate_json(json.dumps(content.get("ladder")), strict=True)
        return ladder if _is_plausible(ladder) else None
    except (OSError, ValueError, RecursionError):
        return None


def _is_plausible(ladder: Ladder) -> bool:
    """Tell whether all numbers of a ladder can be printed, and its names are such names."""
    names = [rung.name for rung in ladder.rungs]
    scores = [rung.score for rung in ladder.rungs]
    numbers = (ladder.symbols, ladder.block_size or 1, *(score.bytes or 0 for score in scores))
    return (
        "uniform" in names
        and all(re.fullmatch(r"[A-Za-z0-9 ,-]{1,40}", name) for name in names)
        and all(0 < number < 2**63 for number in (*numbers, *(score.chars for score in scores)))
        and all(0 <= score.loss_nats < math.inf for score in scores)
        and all(0 <= rung.seconds < math.inf for rung in ladder.rungs)
    )
