"""Is everything in a run folder what was written? The checks that going on does, by hand."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from charlm.config import MixtureConfig
from charlm.errors import CharlmError, CheckpointError
from charlm.storage import RunFolder, verify_folder
from charlm.storage.atomic import is_leftover
from charlm.storage.belongs import BELONGS, Belongs, begun_with, belongs_to
from charlm.storage.machine import is_gone
from charlm.storage.manifest import NAME
from charlm.storage.run_folder import ASIDE, check_log, read_checkpoint
from charlm.text import load_tokenizer
from charlm.training.checkpoint import read_state
from charlm.training.mix import FITTED, read_fitted_of

MAX_LINE = 1 << 26  # bytes of a record: a sample may be long


@dataclass(frozen=True)
class Checked:
    """One part of a run.

    Args:
        path: Where it is.
        says: What it is, where nothing is wrong.
        problem: What is wrong with it, and what to do; None: nothing.
        used: Whether anything rests on it.
    """

    path: Path
    says: str
    problem: str | None = None
    used: bool = True

    @property
    def state(self) -> str:
        """`sound`, `damaged`, or `unused`."""
        return "damaged" if self.problem else "sound" if self.used else "unused"


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
        yield _folder(path, "restore it")
        return
    yield from _run(run, joined=False)


def _run(run: RunFolder, *, joined: bool) -> Iterator[Checked]:
    """Check a run.

    Args:
        run: Its folder.
        joined: Whether it is that of an expert whose mixture needs it no more.
    """
    said = []
    for part in _begun(run):
        said.append(part.problem)
        yield part
    try:
        saved = run.saved()
        if not saved and not joined and (lost := run.saved_by_log()) is not None:
            raise CheckpointError(
                f"{run.path / 'checkpoints'}: step {lost} was saved; restore it or start a new run"
            )
    except CharlmError as error:
        saved = []
        yield Checked(run.path / "checkpoints", "", error.problems[0])
    yield from _of_mixture(run, joined=bool(saved))
    newest = None
    for step, folder in saved:
        checked = _one(folder, lambda at=(step, folder): _checkpoint(*at))  # type: ignore[misc]
        if not is_gone(folder):  # else a run that goes on has pruned it
            yield checked
            newest = newest if checked.problem else (step, folder)
    if newest:
        rests = _one(run.path, lambda: _what_it_rests_on(run, *newest))
        if rests.problem and rests.problem not in said and not is_gone(newest[1]):
            yield rests
    yield from _unused(run.path)
    for expert in sorted(run.path.glob("experts/*/")):
        if RunFolder(expert).exists():
            yield from _run(RunFolder(expert), joined=bool(saved))


def _begun(run: RunFolder) -> Iterator[Checked]:
    """Check what a run has before its first checkpoint."""
    yield _one(run.config, lambda: f"a {run.read_config().model.type}")
    yield _one(run.tokenizer, lambda: f"an alphabet of {load_tokenizer(run.tokenizer).unit}")
    # The text of a mixture's expert is that of the mixture.
    if not (run.path.parent.name == "experts" and run.tokens.is_symlink()):
        yield _folder(run.tokens, "restore it or start a new run")
    if not is_gone(run.metrics):
        yield _one(run.metrics, lambda: _records(run.metrics))


def _of_mixture(run: RunFolder, *, joined: bool) -> Iterator[Checked]:
    """Check what a mixture has before it is joined; afterwards nothing reads it."""
    for path, look in ((run.path / FITTED, _fitted), (run.path / BELONGS, _belongs)):
        if is_gone(path):
            continue
        if joined:
            yield Checked(path, "the mixture is joined: nothing reads it", used=False)
        else:
            yield _one(path, lambda look=look: look(run))  # type: ignore[misc]


def _unused(run: Path) -> Iterator[Checked]:
    """List what nothing reads, but for that of experts."""
    for aside in sorted(run.glob(f"checkpoints/{ASIDE}*")):
        yield Checked(aside, "damaged, set aside by --resume: nothing reads it", used=False)
    for place, folders, files in os.walk(run):
        folders[:] = [name for name in folders if name != "experts"]
        for name in sorted(filter(is_leftover, folders + files)):
            says = "not finished: being written, or left by a stop and cleared away by --resume"
            yield Checked(Path(place, name), says, used=False)


def _folder(folder: Path, mend: str) -> Checked:
    def look() -> str:
        facts = verify_folder(folder, mend)
        files = facts["files"].values()
        return f"{len(files)} file{'s' * (len(files) != 1)}, {sum(file['size'] for file in files):,} bytes"

    return _one(folder, look)


def _checkpoint(step: int, folder: Path) -> str:
    """Check a checkpoint alone.

    Raises:
        CheckpointError: It is damaged.
        MachineError: The disk or its permissions refuse.
    """
    checked = _folder(folder, "restore it")
    if checked.problem:
        raise CheckpointError(checked.problem)
    read_checkpoint(step, folder, "restore it")
    read_state(folder, step)
    return checked.says


def _what_it_rests_on(run: RunFolder, step: int, folder: Path) -> str:
    """Check that what a checkpoint rests on beside it is what it was; another would not help.

    Raises:
        CheckpointError: The configuration, the alphabet or the log is another.
        MachineError: The disk or its permissions refuse.
    """
    check_log(run.metrics, read_state(folder, step).metrics_bytes)
    _unchanged(run, belongs_to(read_checkpoint(step, folder)))
    return ""


def _unchanged(run: RunFolder, then: Belongs) -> None:
    config = run.read_config()
    then.check(config, load_tokenizer(run.tokenizer).to_json())
    then.differences(config, config)


def _fitted(run: RunFolder) -> str:
    """Check what a mixture found before its experts read on.

    Raises:
        CheckpointError: It is damaged, or of other experts.
    """
    config = run.read_config()
    if isinstance(config.model, MixtureConfig):
        read_fitted_of(run, config)
    return "weights of a mixture"


def _belongs(run: RunFolder) -> str:
    """Check that a mixture still is what its experts were begun for.

    Raises:
        CheckpointError: The configuration or the alphabet is another.
        MachineError: The disk or its permissions refuse.
    """
    _unchanged(run, begun_with(run))
    return "what its experts were begun for"


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
