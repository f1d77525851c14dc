"""The runs of a folder at a glance, and their removal. Needs no torch, and reads no weights."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from charlm.errors import CharlmError, CheckpointError, MachineError, UsageError
from charlm.runs.folder import BASELINES, REPORT, REQUEST, RunFolder, runs_under
from charlm.storage.atomic import is_leftover, remove_folder
from charlm.storage.json_file import parse_object
from charlm.storage.lock import HOLDER, LOCK, folder_lock, is_locked
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.regular import open_regular

TAIL = 1 << 16  # bytes at the end of a log: its last record says whether the run has ended
# What charlm writes into a run; nothing else is ever removed.
OURS = {"config.yaml", "tokenizer.json", "tokens", "metrics.jsonl", "samples", "checkpoints"}
OURS |= {
    BASELINES,
    REPORT,
    REQUEST,
    "tensorboard",
    "experts",
    "mixture.json",
    "belongs.json",
    "scratch",
    LOCK,
    HOLDER,
}


@dataclass(frozen=True)
class Summary:
    """A run in a few words; what cannot be read is None."""

    path: Path
    state: str  # running, finished, stopped or unreadable
    model: str | None
    text: str | None
    step: int | None  # of the newest checkpoint
    best_loss_nats: float | None  # of the best checkpoint
    bytes: int  # of all its files
    written: float  # when a record was written last, in seconds since 1970


def summary(run: RunFolder) -> Summary:
    """Return the summary of a run; nothing in it is waited for, and no link is followed."""
    try:
        model, text = run.config.model.type, run.config.data.source
        state = "running" if is_locked(run.path) else _state(run.metrics_path)
    except CharlmError:
        model, text, state = None, None, "unreadable"
    step: int | None = None
    best: float | None = None
    with suppress(CharlmError):
        if last := run.checkpoints.last():
            step, best = last.step, (run.checkpoints.best() or last).loss
    size = sum(_size(path) for path in _files(run.path))
    return Summary(run.path, state, model, text, step, best, size, run.written())


def _state(log: Path) -> str:
    """Return whether the last record of a log is that of the run's end."""
    with suppress(OSError, ValueError, KeyError, CharlmError):
        with open_regular(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            last = file.read(TAIL).splitlines()[-1:]
        if last and parse_object(last[0])["kind"] == "end":
            return "finished"
    return "stopped"


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):  # links to folders are not entered
        yield from (Path(place, name) for name in names)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def check_removable(runs: list[RunFolder]) -> None:
    """Refuse to remove what is in use, what may not be a run, and what others need.

    Raises:
        UsageError: One is a link, holds this process's folder, or is a part of a mixture.
        CheckpointError: One is no run, or holds files that charlm did not write, or a run that stays reads it.
        MachineError: One is being written, or the disk or its permissions refuse.
    """
    removed = {run.path.resolve() for run in runs}
    for run in runs:
        path = run.path
        if path.is_symlink():
            raise UsageError(path, "is a symbolic link", "name the run that it points to")
        if Path.cwd().is_relative_to(path.resolve()):
            raise UsageError(path, "is the current folder", "change to another")
        if path.resolve().parent.name == "experts":
            mixture = path.resolve().parent.parent
            if RunFolder(mixture).exists():
                raise UsageError(path, f"is an expert of {mixture}", "remove that run as a whole")
        if is_gone(run.checkpoints.folder):  # any folder may have a config.yaml
            raise CheckpointError(path, "is not a run (no checkpoints)", "remove it by hand")
        with machine_errors(path):
            names = sorted(name for name in os.listdir(path) if name not in OURS)
        if strange := [name for name in names if not is_leftover(name)]:
            more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
            what = f"holds what charlm did not write: {', '.join(strange[:3])}{more}"
            raise CheckpointError(path, what, "move it away first")
        if is_locked(path):
            raise MachineError(path, "is being trained", "stop that first")
        for other, name in _readers(path):
            if other.path.resolve() not in removed:
                what = f"is read by {other.path}, as its expert {name}"
                raise CheckpointError(path, what, "remove that run too, or keep both")


def _readers(path: Path) -> Iterator[tuple[RunFolder, str]]:
    """Yield the runs beside a run that have it as an expert, with the expert's name."""
    for other in runs_under(path.parent):
        with suppress(CharlmError, OSError):
            for name, expert in other.config.model.members().items():
                if expert.run and Path(expert.run).resolve() == path.resolve():
                    yield other, name


def remove_run(run: RunFolder) -> None:
    """Remove a run with all its files, checked before; links in it are removed, not followed.

    Raise MachineError if it is being written meanwhile, or the disk or its permissions refuse.
    """
    with folder_lock(run.path):
        remove_folder(run.path)
    if not is_gone(run.path):
        raise MachineError(run.path, "cannot be removed", "check its permissions and its disk")
    trash = run.path.parent.glob(".tmp-trash-*")
    if left := [path for path in trash if path.name.endswith(f"-{run.path.name}")]:
        raise MachineError(left[0], "cannot be removed as a whole", "check its permissions")
