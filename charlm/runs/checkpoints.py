"""The checkpoints of a run: list them, choose one, delete old ones.

The best and the last checkpoint are found by reading manifests; no pointer to them can be wrong.
"""

import contextlib
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from charlm.errors import CheckpointError, MachineError, Setting, UsageError
from charlm.storage.atomic import flush_folder, move_folder, remove_folder
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.manifest import OtherFormatError, read_manifest
from charlm.storage.regular import check_folder

KEEP = 2  # newest checkpoints to keep besides the best: one may be damaged
ASIDE = "damaged-"  # prefix of a damaged checkpoint that is no longer read
TRIES = 20  # attempts to read a checkpoint while training keeps saving and pruning

Used = TypeVar("Used")


@dataclass(frozen=True)
class Checkpoint:
    """One saved step: its folder and the facts in its manifest."""

    path: Path
    step: int
    facts: Mapping[str, Any]

    @property
    def loss(self) -> float | None:
        """Validation loss in nats when it was saved; None if it has none or it is not finite."""
        value = self.facts.get("val_loss_nats")
        return value if isinstance(value, float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Checkpoints:
    """The folder `checkpoints` of a run."""

    folder: Path

    def path(self, step: int) -> Path:
        """Return where the checkpoint of `step` is or will be."""
        return self.folder / f"step-{step}"

    def saved(self) -> list[tuple[int, Path]]:
        """List the folders of checkpoints with their steps, oldest first, sound or not.

        Raises:
            CheckpointError: The folder of checkpoints is not a folder, or a link to one.
            MachineError: The disk or its permissions refuse.
        """
        with machine_errors(self.folder):
            check_folder(self.folder)
            names = [] if is_gone(self.folder) else os.listdir(self.folder)
        numbers = (name.removeprefix("step-") for name in names if name.startswith("step-"))
        return sorted((int(n), self.path(int(n))) for n in numbers if _is_number(n) and len(n) < 20)

    def all(self) -> list[Checkpoint]:
        """List the finished checkpoints, oldest first, skipping unreadable ones.

        Raise MachineError if they cannot be listed.
        """
        found = []
        for step, path in self.saved():
            with contextlib.suppress(CheckpointError, MachineError):
                found.append(read_checkpoint(step, path))
        return found

    def last(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None."""
        return next(reversed(self.all()), None)

    def best(self) -> Checkpoint | None:
        """Return the evaluated checkpoint with the lowest loss, the earliest if equal, or None."""
        return _best(self.all())

    def choose(self, which: str, *, untrained: bool = False) -> Checkpoint:
        """Return the checkpoint named `best`, `last`, or by its step.

        Without an evaluated checkpoint, `best` means the last. So it does where only step 0 was
        evaluated, which nothing was learned at, unless `untrained` weights will do. An unreadable checkpoint may be the
        best or the last, so it is an error instead of a silent second choice.

        Raises:
            CheckpointError: There is none (the message lists the others), or one that may be meant
                cannot be read.
            MachineError: The disk or its permissions refuse.
            UsageError: `which` is none of the three.
        """
        saved = self.saved()
        if which == "last":
            saved = saved[-1:]
        elif _is_number(which):
            digits = which.lstrip("0") or "0"  # compared as text: it may have thousands of digits
            saved = [(step, path) for step, path in saved if str(step) == digits]
        elif which != "best":
            raise UsageError(Setting("checkpoint", which), "expected best, last or a step")
        found = []
        for step, path in saved:
            try:
                found.append(read_checkpoint(step, path))
            except CheckpointError:
                if not is_gone(path):  # if it is, it was just pruned
                    raise
        if not found:
            steps = ", ".join(str(c.step) for c in self.all()) or "none yet"
            what = f"no checkpoint {which!r}"
            raise CheckpointError(self.folder.parent, what, f"saved steps: {steps}")
        best = _best(found) if which == "best" else None
        learned = [one for one in found if one.step and one.loss is not None]
        return found[-1] if best is None or not (best.step or learned or untrained) else best

    def use(self, which: str, use: Callable[[Checkpoint], Used], tries: int = TRIES) -> Used:
        """Return `use(checkpoint)` for the chosen checkpoint; its files are not checked here.

        Readers need no lock: if training prunes the checkpoint meanwhile, they choose again.
        Raises the errors of `choose` and `use`.
        """
        checkpoint = self.choose(which)
        try:
            return use(checkpoint)
        except (CheckpointError, MachineError, OSError):
            if tries == 1 or not is_gone(checkpoint.path):
                raise
            return self.use(which, use, tries - 1)

    def prune(self) -> None:
        """Delete all checkpoints but the best and the newest two.

        Damaged ones older than the newest are set aside.
        """
        sound: list[Checkpoint] = []
        damaged = []
        for step, path in self.saved():
            try:
                sound.append(read_checkpoint(step, path))
            except (OtherFormatError, MachineError):
                continue
            except CheckpointError:
                damaged.append((step, path))
        best = _best(sound)
        for checkpoint in sound[:-KEEP]:
            if checkpoint is not best:
                remove_folder(checkpoint.path)
        for step, path in damaged:
            if sound and step < sound[-1].step:
                with contextlib.suppress(MachineError):  # no reason to stop training
                    set_aside(path)

    def clear_after(self, checkpoint: Checkpoint | None, clear: Callable[[Path], None]) -> None:
        """Clear those after the one that training continues from: its steps will be repeated.

        `clear` is `set_aside` or `remove_folder`.
        """
        for step, path in self.saved():
            if checkpoint is None or step > checkpoint.step:
                clear(path)


def read_checkpoint(step: int, path: Path, mend: str = "name another") -> Checkpoint:
    """Read the manifest of a checkpoint; its files are not checked.

    Raises:
        CheckpointError: Its manifest is missing, unreadable or of another step, or the folder is a
            symbolic link; the message ends with `mend`.
        MachineError: The disk or its permissions refuse.
    """
    if path.is_symlink():  # its target was not saved here and may change unnoticed
        raise CheckpointError(path, "unsafe path, a symbolic link", mend)
    facts = read_manifest(path, mend)
    if facts.get("step", step) != step:
        found = reprlib.repr(facts["step"])
        raise CheckpointError(path, f"is a checkpoint of step {found}", f"rename it, or {mend}")
    return Checkpoint(path, step, facts)


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint so that it is no longer read, or raise MachineError."""
    aside = path.with_name(ASIDE + path.name)
    with machine_errors(path):
        if not is_gone(aside):
            remove_folder(aside)
        move_folder(path, aside)
        flush_folder(path.parent)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _best(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    scored = [c for c in checkpoints if c.loss is not None]
    return min(scored, key=lambda c: (c.loss, c.step), default=None)
