"""Is everything in a run folder what was written? The check that loading does, by hand."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from charlm.errors import CharlmError, CheckpointError
from charlm.storage.atomic import is_leftover
from charlm.storage.belongs import check_belongs
from charlm.storage.json_file import read_object
from charlm.storage.manifest import NAME, read_manifest, verify_folder
from charlm.storage.run_folder import Checkpoint, RunFolder

MAX_LINE = 1 << 26  # bytes of a record: a sample may be long
MAX_ALPHABET = 16 << 20  # bytes


@dataclass(frozen=True)
class Checked:
    """One part of a run.

    Args:
        path: Where it is.
        says: What it is, where it is sound.
        problem: What is wrong with it, and what to do; None: nothing.
    """

    path: Path
    says: str
    problem: str | None = None


def verify(path: Path) -> Iterator[Checked]:
    """Check a run, its experts' runs with it, or one folder with a manifest; read every file.

    Raises:
        CheckpointError: There is neither at `path`.
    """
    run = RunFolder(path)
    if not run.exists():
        if not (path / NAME).exists():
            kind = "no run and no folder with a manifest" if path.exists() else "not found"
            raise CheckpointError(f"{path}: {kind}; name a run folder or a checkpoint")
        yield _folder(path)
        return
    yield _one(run.config, lambda: f"a {run.read_config().model.type}")
    yield _one(run.tokenizer, lambda: _alphabet(run))
    if path.parent.name != "experts":  # whose text is that of its mixture
        yield _folder(run.tokens)
    if os.path.lexists(run.metrics):
        yield _one(run.metrics, lambda: _records(run.metrics))
    for folder in sorted((path / "checkpoints").glob("step-*"), key=_number):
        checked = _one(folder, lambda folder=folder: _checkpoint(run, folder))  # type: ignore[misc]
        if os.path.lexists(folder):  # else a run that goes on has pruned it
            yield checked
    for place, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name != "experts"]  # see below
        for name in sorted(filter(is_leftover, folders + files)):
            says = "not finished: being written, or left by a stop and cleared away by --resume"
            yield Checked(Path(place, name), says)
    for expert in sorted(path.glob("experts/*/")):
        if RunFolder(expert).exists():
            yield from verify(expert)


def _number(folder: Path) -> tuple[int, str]:
    number = folder.name.removeprefix("step-")
    return (int(number) if number.isdecimal() and len(number) < 20 else -1, folder.name)


def _folder(folder: Path) -> Checked:
    def look() -> str:
        facts = verify_folder(folder)
        files = facts["files"].values()
        return f"{len(files)} file{'s' * (len(files) != 1)}, {sum(file['size'] for file in files):,} bytes"

    return _one(folder, look)


def _checkpoint(run: RunFolder, folder: Path) -> str:
    """Check a checkpoint, and that what it rests on beside it is what it was.

    Raises:
        CheckpointError: It is damaged, or the configuration or the log is another.
    """
    says = _folder(folder)
    if says.problem:
        raise CheckpointError(says.problem)
    try:
        state = read_object(folder / "state.json")
        number, length = _number(folder)[0], state["metrics_bytes"]
        if state["step"] != number:
            raise ValueError(f"step {state['step']} in the folder of step {number}")
        log = run.metrics.stat().st_size if run.metrics.is_file() else 0
        if length > log:
            raise ValueError(f"metrics.jsonl has {log:,} bytes, it vouches for {length:,}")
        if not run.tokenizer.is_file():  # a pipe would be waited for
            raise ValueError("there is no tokenizer.json to hold it against")
        alphabet = run.tokenizer.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: {error}; restore it") from None
    check_belongs(Checkpoint(folder, number, read_manifest(folder)), run.read_config(), alphabet)
    return says.says


def _alphabet(run: RunFolder) -> str:
    """Say what an alphabet is of; each checkpoint is held against it.

    Raises:
        CheckpointError: It is missing, or none.
    """
    try:
        return f"an alphabet of {read_object(run.tokenizer, MAX_ALPHABET)['unit']}"
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{run.tokenizer}: {error}; restore it") from None


def _one(path: Path, look: Callable[[], str]) -> Checked:
    try:
        return Checked(path, look())
    except CharlmError as error:
        return Checked(path, "", error.problems[0])


def _records(path: Path) -> str:
    """Read a log; each step may be there once.

    Raises:
        CheckpointError: It is damaged.
    """
    lines = steps = last = 0
    try:
        if not path.is_file():
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                lines += 1
                if len(line) == MAX_LINE:
                    raise ValueError(f"a record of more than {MAX_LINE:,} bytes")
                if not line.endswith(b"\n"):
                    return f"{steps:,} steps; its last record is cut short: --resume does it again"
                record = json.loads(line)
                if record["kind"] in ("train", "skip"):
                    if record["step"] != last + 1:
                        raise ValueError(f"step {record['step']} follows step {last}")
                    steps, last = steps + 1, record["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: line {lines}: {error}; --resume does again what comes after its checkpoint"
        ) from None
    return f"{steps:,} steps, each once"
