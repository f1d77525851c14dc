"""Is everything in a run folder what was written? The checks that loading does, by hand."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from charlm.config import MixtureConfig
from charlm.errors import CharlmError, CheckpointError
from charlm.storage import RunFolder, verify_folder
from charlm.storage.atomic import is_leftover
from charlm.storage.belongs import check_belongs
from charlm.storage.machine import is_gone
from charlm.storage.manifest import NAME
from charlm.storage.run_folder import ASIDE, read_checkpoint
from charlm.text import load_tokenizer
from charlm.training.checkpoint import read_state
from charlm.training.mix import FITTED, read_fitted_of

MAX_LINE = 1 << 26  # bytes of a record: a sample may be long


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
    yield _one(run.tokenizer, lambda: f"an alphabet of {load_tokenizer(run.tokenizer).unit}")
    # The text of a mixture's expert is that of the mixture.
    if not (path.parent.name == "experts" and run.tokens.is_symlink()):
        yield _folder(run.tokens)
    if not is_gone(run.metrics):
        yield _one(run.metrics, lambda: _records(run.metrics))
    if not is_gone(path / FITTED):
        yield _one(path / FITTED, lambda: _fitted(run))
    try:
        saved = run.saved()
        if not saved and (lost := run.saved_by_log()) is not None:
            raise CheckpointError(f"{path / 'checkpoints'}: step {lost} was saved; restore it")
    except CharlmError as error:
        saved = []
        yield Checked(path / "checkpoints", "", error.problems[0])
    for step, folder in saved:
        checked = _one(folder, lambda at=(step, folder): _checkpoint(run, *at))  # type: ignore[misc]
        if not is_gone(folder):  # else a run that goes on has pruned it
            yield checked
    for aside in sorted(path.glob(f"checkpoints/{ASIDE}*")):
        yield Checked(aside, "damaged, set aside by --resume: nothing reads it")
    for place, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name != "experts"]  # see below
        for name in sorted(filter(is_leftover, folders + files)):
            says = "not finished: being written, or left by a stop and cleared away by --resume"
            yield Checked(Path(place, name), says)
    for expert in sorted(path.glob("experts/*/")):
        if RunFolder(expert).exists():
            yield from verify(expert)


def _folder(folder: Path) -> Checked:
    def look() -> str:
        facts = verify_folder(folder)
        files = facts["files"].values()
        return f"{len(files)} file{'s' * (len(files) != 1)}, {sum(file['size'] for file in files):,} bytes"

    return _one(folder, look)


def _checkpoint(run: RunFolder, step: int, folder: Path) -> str:
    """Check a checkpoint, and that what it rests on beside it is what it was.

    Raises:
        CheckpointError: It is damaged, or the configuration, the alphabet or the log is another.
        MachineError: The disk or its permissions refuse.
    """
    says = _folder(folder)
    if says.problem:
        raise CheckpointError(says.problem)
    checkpoint = read_checkpoint(step, folder, mend="restore it")
    vouched = read_state(folder, step).metrics_bytes
    log = run.metrics.stat().st_size if run.metrics.is_file() else 0
    if vouched > log:
        raise CheckpointError(
            f"{folder}: metrics.jsonl has {log:,} bytes, it vouches for {vouched:,}; restore it"
        )
    check_belongs(checkpoint, run.read_config(), load_tokenizer(run.tokenizer).to_json())
    return says.says


def _fitted(run: RunFolder) -> str:
    """Check what a mixture found before its experts read on.

    Raises:
        CheckpointError: It is damaged, or of other experts.
    """
    config = run.read_config()
    if isinstance(config.model, MixtureConfig):
        read_fitted_of(run, config)
    return "weights of a mixture"


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
