"""What a run leaves on disk, and how to find it again.

    runs/<name>/
      config.yaml               every key, resolved; its presence makes the folder a run
      tokenizer.json            the alphabet
      tokens/                   the text as ids, split, with its manifest
      metrics.jsonl             one record a line
      samples/step-N.txt        what the model wrote while it trained
      checkpoints/step-N/       model.safetensors, optimizer.safetensors, state.json, what they belong
                                to (belongs.json), MANIFEST.json

There is no pointer to the best or the last checkpoint that could be wrong: both are found by
reading manifests.
"""

import contextlib
import json
import math
import os
import reprlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from charlm.config import Config, read_config
from charlm.config.yaml_file import MAX_BYTES
from charlm.errors import CheckpointError, MachineError, UsageError
from charlm.storage.atomic import flush_folder, remove_folder, write_file
from charlm.storage.json_file import parse_object
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.manifest import OtherFormatError, read_manifest, verify_folder

BUFFERED = 1 << 13  # bytes of records that are written at once
MAX_WAITING = 1 << 20  # bytes of records in memory before they are flushed
KEEP = 2  # newest checkpoints that stay beside the best: one may prove damaged
ASIDE = "damaged-"  # before the name of a checkpoint that resuming went back from
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
class RunFolder:
    """The places inside one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def tokenizer(self) -> Path:
        """The alphabet."""
        return self.path / "tokenizer.json"

    @property
    def tokens(self) -> Path:
        """The text as ids."""
        return self.path / "tokens"

    @property
    def metrics(self) -> Path:
        """One JSON record a line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """What the model wrote while it trained."""
        return self.path / "samples"

    def exists(self) -> bool:
        """Tell whether a run was begun here."""
        return self.config.is_file()

    def read_config(self, overrides: Sequence[str] = ()) -> Config:
        """Read the resolved configuration, with KEY=VALUE overrides.

        Raises:
            CheckpointError: It cannot be read.
            UsageError: It, or an override, is wrong.
        """
        mend = "restore it or name another run"
        if not (self.exists() or is_gone(self.config)):
            raise CheckpointError(f"{self.config}: no regular file; {mend}")
        try:
            with self.config.open("rb") as file:
                data = file.read(MAX_BYTES + 1)  # one over the limit is enough to refuse
        except OSError as error:
            raise CheckpointError(f"{self.config}: {error.strerror}; {mend}") from None
        try:
            config = read_config(data, str(self.config))
        except UsageError as error:  # no mistake in a command
            problem = error.lines()[0]
            raise CheckpointError(f"{problem.rpartition('; ')[0] or problem}; {mend}") from None
        return read_config(data, str(self.config), overrides) if overrides else config

    def checkpoint_path(self, step: int) -> Path:
        """Return where the checkpoint of `step` is or will be."""
        return self.path / "checkpoints" / f"step-{step}"

    def saved(self) -> list[tuple[int, Path]]:
        """List the folders of checkpoints with their steps, oldest first, sound or not.

        Raises:
            MachineError: The disk or its permissions refuse: what is there is not known.
        """
        folder = self.path / "checkpoints"
        with machine_errors(folder):
            try:
                names = [] if is_gone(folder) else os.listdir(folder)
            except NotADirectoryError:
                raise CheckpointError(f"{folder}: no folder; restore it") from None
        numbers = (name.removeprefix("step-") for name in names if name.startswith("step-"))
        found = [(int(n), folder / f"step-{n}") for n in numbers if _is_number(n) and len(n) < 20]
        return sorted(found)

    def checkpoints(self) -> list[Checkpoint]:
        """List the finished checkpoints, oldest first; unreadable ones are passed over.

        Raises:
            MachineError: They cannot be listed.
        """
        found = []
        for step, path in self.saved():
            with contextlib.suppress(CheckpointError, MachineError):
                found.append(read_checkpoint(step, path))
        return found

    def saved_by_log(self) -> int | None:
        """Return the last step that was saved, by the log; None if it knows of none.

        The record of a save is written before the save: where it comes last there may be none.
        """
        step = saving = None
        for record in _sound_records(self.metrics):
            step, saving = saving if saving is not None else step, None
            if record.get("kind") == "save":
                saving = record.get("step")
        return step

    def strange(self) -> Iterator[tuple[Path, str]]:
        """Yield what is not of the kind that a run makes in its place, and what it is instead.

        What would be written through a link is not this run's, and a pipe is waited for. The text of
        an expert may be a link: it is that of its mixture.
        """
        files = ("config.yaml", "tokenizer.json", "metrics.jsonl", "mixture.json", "belongs.json")
        for name in (*files, "checkpoints", "samples", "experts"):
            path = self.path / name
            if path.is_symlink():
                yield path, "a link"
            elif name in files and not is_gone(path) and not path.is_file():
                yield path, "no regular file"
            elif name not in files and not is_gone(path) and not path.is_dir():
                yield path, "no folder"

    def last(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None."""
        return next(reversed(self.checkpoints()), None)

    def best(self) -> Checkpoint | None:
        """Return the evaluated checkpoint with the least loss; the earliest of equals; or None."""
        return _best(self.checkpoints())

    def choose(self, which: str) -> Checkpoint:
        """Return the checkpoint named `best`, `last`, or by its step.

        Without an evaluated checkpoint, `best` means the last. One that cannot be read may be the
        best or the last: another does not take its place unasked.

        Raises:
            CheckpointError: There is no such checkpoint, and the message lists those there are; or
                one that may be the one that is named cannot be read.
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
            raise UsageError(f"--checkpoint {which!r}: use best, last or a step")
        found = []
        for step, path in saved:
            try:
                found.append(read_checkpoint(step, path))
            except CheckpointError:
                if not is_gone(path):  # else it was pruned just now
                    raise
        chosen = found[-1] if found else None
        if which == "best":
            chosen = _best(found) or chosen
        if chosen is None:
            steps = ", ".join(str(c.step) for c in self.checkpoints()) or "none yet"
            raise CheckpointError(f"{self.path}: no checkpoint {which!r}; saved steps: {steps}")
        return chosen

    def read(self, which: str, use: Callable[[Checkpoint], Used], tries: int = TRIES) -> Used:
        """Return what `use` makes of the chosen checkpoint, its files verified.

        Readers need no lock: where training prunes it meanwhile, the one that is chosen then is used.

        Raises:
            CheckpointError: There is no such checkpoint, or it is damaged.
            MachineError: The disk or its permissions refuse.
            UsageError: `which` names none.
        """
        checkpoint = self.choose(which)
        try:
            verify_folder(checkpoint.path)
            return use(checkpoint)
        except (CheckpointError, MachineError, OSError):
            if tries == 1 or not is_gone(checkpoint.path):
                raise
            return self.read(which, use, tries - 1)

    def prune(self) -> None:
        """Delete all checkpoints but the best and the newest two."""
        checkpoints = self.checkpoints()
        best = self.best()
        for checkpoint in checkpoints[:-KEEP]:
            if best is None or checkpoint.step != best.step:
                remove_folder(checkpoint.path)
        if checkpoints:
            self._set_aside_before(checkpoints[-1].step)

    def remove_after(self, step: int) -> None:
        """Delete the checkpoints after `step`: they would be taken for newer than what comes now."""
        for saved, path in self.saved():
            if saved > step:
                remove_folder(path)

    def set_aside_after(self, step: int) -> None:
        """Give the checkpoints after `step`, which are damaged, names that nothing reads.

        Raises:
            MachineError: The disk or its permissions refuse.
        """
        for saved, path in self.saved():
            if saved > step:
                _set_aside(path)

    def _set_aside_before(self, step: int) -> None:
        """Do so with those before `step` whose manifest is no more: nothing else would clear them.

        What cannot be moved stays; that is no reason to stop a training run.
        """
        for saved, path in self.saved():
            if saved < step:
                try:
                    read_checkpoint(saved, path)
                except (OtherFormatError, MachineError):
                    pass
                except CheckpointError:
                    with contextlib.suppress(MachineError):
                        _set_aside(path)

    def write_sample(self, step: int, text: str) -> None:
        """Keep what the model wrote at `step`.

        Raises:
            MachineError: The disk or its permissions refuse.
        """
        with machine_errors(self.samples):
            self.samples.mkdir(exist_ok=True)  # not its parents: see `new_folder`
            flush_folder(self.path)
        write_file(self.samples / f"step-{step}.txt", text.encode("utf-8", "replace"))


def read_checkpoint(step: int, path: Path, mend: str = "name another") -> Checkpoint:
    """Read what the manifest of a checkpoint records; its files are not checked.

    Args:
        step: Of it.
        path: Its folder.
        mend: What to do where it cannot be read, for the message.

    Raises:
        CheckpointError: It has no manifest that this version reads, that of another step, or a
            symbolic link leads to it.
        MachineError: The disk or its permissions refuse.
    """
    if path.is_symlink():  # what is there is not what was saved here, and may change unseen
        raise CheckpointError(f"{path}: unsafe path, a symbolic link; {mend}")
    facts = read_manifest(path, mend)
    if facts.get("step", step) != step:
        found = reprlib.repr(facts["step"])
        raise CheckpointError(f"{path}: is a checkpoint of step {found}; rename it, or {mend}")
    return Checkpoint(path, step, facts)


def _set_aside(path: Path) -> None:
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


class MetricsLog:
    """Append records to metrics.jsonl; a resumed run first cuts off what it will do again.

    Records wait in memory until they are known to be on the disk, so a disk that is full for a while
    costs none of them.

    Args:
        path: The file.
        keep: Bytes of it that the checkpoint resumed from vouches for.

    Raises:
        CheckpointError: The file is shorter than that, or no record ends there.
        MachineError: The disk or its permissions refuse.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        with machine_errors(path):
            check_log(path, keep)
            self.file = path.open("ab", buffering=0)
            self.file.truncate(keep)
            flush_folder(path.parent)  # it may be new there
        self.durable = keep  # bytes that are on the disk for certain
        self.waiting = bytearray()  # what comes after them
        self.written = 0  # bytes of it that were handed to the system

    @property
    def length(self) -> int:
        """Bytes of all records."""
        return self.durable + len(self.waiting)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line; what the disk refuses now is written by a later call."""
        self.waiting += json.dumps(record).encode() + b"\n"
        if len(self.waiting) - self.written >= BUFFERED:
            with contextlib.suppress(OSError):
                self._write()
        if len(self.waiting) > MAX_WAITING:
            with contextlib.suppress(MachineError):
                self.flush()

    def flush(self) -> int:
        """Put all records on the disk; return the length of the file in bytes.

        Raises:
            MachineError: The disk or its permissions refuse; the next call tries again.
        """
        with machine_errors(self.path):
            self._write()
            try:
                os.fsync(self.file.fileno())
            except OSError:
                self.written = (
                    0  # what was not flushed may be lost, a second fsync would not say so
                )
                raise
        self.durable += len(self.waiting)
        self.waiting.clear()
        self.written = 0
        return self.durable

    def cut(self, length: int) -> None:
        """Forget the records after `length` bytes.

        Raises:
            MachineError: The disk or its permissions refuse.
        """
        del self.waiting[max(0, length - self.durable) :]
        self.durable = min(self.durable, length)
        self.written = min(self.written, len(self.waiting))
        with machine_errors(self.path):
            self.file.truncate(self.durable + self.written)

    def close(self) -> None:
        """Write what is left, if the disk takes it: no checkpoint vouches for it; close the file."""
        if not self.file.closed:
            with contextlib.suppress(OSError), self.file:
                self._write()

    def _write(self) -> None:
        """Hand what waits to the system."""
        self.file.truncate(self.durable + self.written)  # a write may have stopped midway
        while self.written < len(self.waiting):
            self.written += self.file.write(self.waiting[self.written :])


def check_log(path: Path, keep: int) -> None:
    """Refuse a metrics.jsonl that lacks what a checkpoint vouches for.

    Args:
        path: The file.
        keep: Bytes that are vouched for, whole records.

    Raises:
        CheckpointError: It is shorter, or no record ends there.
        MachineError: The disk or its permissions refuse.
    """
    end = b""
    with machine_errors(path):
        if keep and not is_gone(path) and stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                file.seek(keep - 1)
                end = file.read(1)
    if keep and end != b"\n":
        what = "not as its checkpoint says" if end else "shorter than its checkpoint says"
        raise CheckpointError(f"{path}: {what}; restore it or start a new run")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics.jsonl; a last line that was cut short is passed over.

    Raises:
        CheckpointError: It cannot be read, or a line holds no record.
    """
    number = 0
    try:
        if not (is_gone(path) or path.is_file()):
            raise CheckpointError(f"{path}: no regular file; put the log of the run there")
        with path.open("rb") as file:
            for line in file:
                number += 1
                if line.endswith(b"\n"):
                    yield parse_object(line)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}:{number}: not a record ({error}); restore it") from None


def _sound_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics.jsonl that can be read, if any."""
    with contextlib.suppress(OSError):
        if not path.is_file():
            return
        with path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    yield parse_object(line)


def find_run(path: Path | None, runs: Path = Path("runs")) -> RunFolder:
    """Return the run at `path`, or without one the newest under `runs`.

    Raises:
        CheckpointError: There is no run there.
    """
    if path is not None:
        run = RunFolder(path)
        if run.exists():
            return run
        near = ", ".join(str(r.path) for r in _runs_under(path.parent)[:5] if r.path != path)
        hint = f"runs there: {near}" if near else "train one first"
        state = "not found" if is_gone(path) else "is not a run (no config.yaml)"
        raise CheckpointError(f"{path}: {state}; {hint}")
    found = _runs_under(runs)
    if not found:
        raise CheckpointError(
            f"{runs}/: no run there; train one first (charlm train --config quickstart) or name "
            "one with --run"
        )
    return found[0]


def next_free_name(name: str, runs: Path = Path("runs")) -> Path:
    """Return `runs/name`, or the first of `runs/name-2`, `runs/name-3`, ... that is not taken."""
    path, number = runs / name, 2
    while not is_gone(path):
        path, number = runs / f"{name}-{number}", number + 1
    return path


def _runs_under(folder: Path) -> list[RunFolder]:
    """List the runs in a folder, the one that was written to last first."""

    def age(run: RunFolder) -> float:
        newest = run.metrics if run.metrics.exists() else run.config
        try:
            return newest.stat().st_mtime
        except OSError:
            return 0.0

    runs = [RunFolder(path.parent) for path in folder.glob("*/config.yaml")]
    return sorted(runs, key=age, reverse=True)
