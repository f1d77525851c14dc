"""The checkpoints of a run: list them, choose one, clear old ones away.

There is no pointer to the best or the last checkpoint that could be wrong: both are found by
reading manifests.
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
from charlm.storage.atomic import flush_folder, remove_folder
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.manifest import OtherFormatError, read_manifest

KEEP = 2  # newest checkpoints that stay beside the best: one may prove damaged
ASIDE = "damaged-"  # before the name of a damaged checkpoint that nothing reads any more
TRIES = 20  # to read a checkpoint that a run which saves all the time has not pruned yet

Used = TypeVar("Used")


@dataclass(frozen=True)
class Checkpoint:
    """One saved step: its folder and what its manifest records."""

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
            CheckpointError: There is something else in the place of their folder.
            MachineError: The disk or its permissions refuse: what is there is not known.
        """
        with machine_errors(self.folder):
            try:
                names = [] if is_gone(self.folder) else os.listdir(self.folder)
            except NotADirectoryError:
                raise CheckpointError(self.folder, "no folder", "restore it") from None
        numbers = (name.removeprefix("step-") for name in names if name.startswith("step-"))
        return sorted((int(n), self.path(int(n))) for n in numbers if _is_number(n) and len(n) < 20)

    def all(self) -> list[Checkpoint]:
        """List the finished checkpoints, oldest first; unreadable ones are passed over.

        MachineError if they cannot be listed.
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
        """Return the evaluated checkpoint with the least loss; the earliest of equals; or None."""
        return _best(self.all())

    def choose(self, which: str) -> Checkpoint:
        """Return the checkpoint named `best`, `last`, or by its step.

        Without an evaluated checkpoint, `best` means the last. One that cannot be read may be the
        best or the last, so no other one takes its place silently.

        Raises:
            CheckpointError: There is none, and the message lists the others; or one that may be the
                one that is meant cannot be read.
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
                if not is_gone(path):  # else it was pruned just now
                    raise
        if not found:
            steps = ", ".join(str(c.step) for c in self.all()) or "none yet"
            what = f"no checkpoint {which!r}"
            raise CheckpointError(self.folder.parent, what, f"saved steps: {steps}")
        return (_best(found) if which == "best" else None) or found[-1]

    def use(self, which: str, use: Callable[[Checkpoint], Used], tries: int = TRIES) -> Used:
        """Return what `use` makes of the chosen checkpoint; its files are not checked here.

        Readers need no lock: where training prunes the checkpoint meanwhile, they choose again.
        Raises what `choose` and `use` do.
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

        Damaged ones before the newest are set aside: nothing else would clear them.
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
        """Clear those after the one that training goes on from, with `set_aside` or `remove_folder`.

        They would be taken for newer than what comes now.
        """
        for step, path in self.saved():
            if checkpoint is None or step > checkpoint.step:
                clear(path)


def read_checkpoint(step: int, path: Path, mend: str = "name another") -> Checkpoint:
    """Read what the manifest of a checkpoint records; its files are not checked.

    Raises:
        CheckpointError: It has no manifest that this version reads, that of another step, or a
            symbolic link leads to it; the message ends with `mend`.
        MachineError: The disk or its permissions refuse.
    """
    if path.is_symlink():  # what is there is not what was saved here, and may change unseen
        raise CheckpointError(path, "unsafe path, a symbolic link", mend)
    facts = read_manifest(path, mend)
    if facts.get("step", step) != step:
        found = reprlib.repr(facts["step"])
        raise CheckpointError(path, f"is a checkpoint of step {found}", f"rename it, or {mend}")
    return Checkpoint(path, step, facts)


def set_aside(path: Path) -> None:
    """Give a damaged checkpoint a name that nothing reads, or raise MachineError."""
    aside = path.with_name(ASIDE + path.name)
    with machine_errors(path):
        if not is_gone(aside):
            remove_folder(aside)
        path.rename(aside)
        flush_folder(path.parent)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _best(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    scored = [c for c in checkpoints if c.loss is not None]
    return min(scored, key=lambda c: (c.loss, c.step), default=None)
