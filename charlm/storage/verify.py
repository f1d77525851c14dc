"""Is everything in a run folder what was written? The check that loading does, by hand."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from charlm.errors import CharlmError, CheckpointError
from charlm.storage.atomic import is_leftover
from charlm.storage.manifest import NAME, verify_folder
from charlm.storage.run_folder import RunFolder

MAX_LINE = 1 << 20  # bytes of a record


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
    if not run.tokens.is_symlink():  # an expert's are those of its mixture
        yield _folder(run.tokens)
    if run.metrics.exists():
        yield _one(run.metrics, lambda: _records(run.metrics))
    for folder in sorted((path / "checkpoints").glob("step-*"), key=_number):
        yield _folder(folder)
    for leftover in sorted(p for p in path.rglob(".tmp-*") if is_leftover(p.name)):
        yield Checked(leftover, "what a stopped process left: --resume clears it away")
    for expert in sorted(path.glob("experts/*")):
        yield from verify(expert)


def _number(folder: Path) -> tuple[int, str]:
    number = folder.name.removeprefix("step-")
    return (int(number) if number.isdecimal() and len(number) < 20 else -1, folder.name)


def _folder(folder: Path) -> Checked:
    def look() -> str:
        facts = verify_folder(folder)
        files = facts["files"].values()
        return f"{len(files)} files, {sum(file['size'] for file in files):,} bytes"

    return _one(folder, look)


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
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                lines += 1
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
