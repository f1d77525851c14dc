"""Is everything in a run folder what was written? The checks that going on does, by hand."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from charlm.config import Config
from charlm.errors import CharlmError, CheckpointError, MachineError
from charlm.runs import RunFolder
from charlm.runs.belongs import BELONGS, Belongs, begun_with, belongs_to
from charlm.runs.folder import ASIDE, Checkpoint, check_log, read_checkpoint
from charlm.runs.mixture import (
    FITTED,
    OWN_PLACE,
    Fitted,
    expert_from_run,
    expert_run,
    read_fitted_of,
    strange_places,
)
from charlm.runs.state import read_state
from charlm.runs.weights import build_from
from charlm.storage import OtherFormatError, verify_folder
from charlm.storage.atomic import is_leftover
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.manifest import NAME
from charlm.text import Tokenizer, load_tokenizer

MAX_LINE = 1 << 26  # bytes of a record: a sample may be long
Part = TypeVar("Part")
_RESTORE = "restore it or start a new run"


@dataclass(frozen=True)
class Checked:
    """One part of a run.

    Args:
        path: Where it is.
        says: What it is, where nothing is wrong.
        error: What is wrong with it, and what to do; None: nothing.
        used: Whether going on needs it.
    """

    path: Path
    says: str
    error: CharlmError | None = None
    used: bool = True

    @property
    def problem(self) -> str | None:
        """What is wrong, in one line."""
        return self.error.lines()[0] if self.error and self.used else None

    @property
    def state(self) -> str:
        """How it is.

        `sound` or `damaged`; `refused`, if another version of charlm can read it; `unread`, if the
        disk or its permissions do not give it; `unused`, if nothing rests on it.
        """
        if not self.used:
            return "unused"
        match self.error:
            case None:
                return "sound"
            case OtherFormatError():
                return "refused"
            case MachineError():
                return "unread"
        return "damaged"

    def unless(self, why: str) -> "Checked":
        """Return it as what going on does not need, where something is wrong with it."""
        if not self.error or not self.used:
            return self
        what = self.error.lines()[0].removeprefix(str(self.path)).lstrip("/: ")
        return Checked(self.path, f"{what.rpartition('; ')[0] or what}; {why}", used=False)


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
    config = _read(run.read_config)
    strange = dict(strange_places(config, run)) if config else {}
    for place, kind in strange.items():
        yield Checked(place, "", CheckpointError(f"{place}: is {kind}; {OWN_PLACE}"))
    for part in _run(run, config):
        if part.path not in strange:
            yield part


def _run(run: RunFolder, config: Config | None) -> Iterator[Checked]:
    """Check a run, and those of its experts.

    Args:
        run: Its folder.
        config: What is gone on with; None: it cannot be read.
    """
    tokenizer = _read(lambda: load_tokenizer(run.tokenizer))
    yield from _names(run)
    checkpoints, newest = _saved(run)
    joined = bool(checkpoints)
    yield from _log(run, newest)
    yield from checkpoints
    if config and tokenizer and newest:
        yield from _rests(newest, config, tokenizer)
    if config and config.model.members():
        yield from _of_mixture(run, config, tokenizer, joined=joined)
    yield from _unused(run.path)


def _names(run: RunFolder) -> Iterator[Checked]:
    """Check what a run is made of before it begins."""
    yield _one(run.config, lambda: f"a {run.read_config().model.type}")
    yield _one(run.tokenizer, lambda: f"an alphabet of {load_tokenizer(run.tokenizer).unit}")
    # The text of a mixture's expert is that of the mixture.
    if not (run.path.parent.name == "experts" and run.tokens.is_symlink()):
        yield _folder(run.tokens, _RESTORE)


def _log(run: RunFolder, newest: Checkpoint | None) -> Iterator[Checked]:
    """Check the records of a run, against its newest checkpoint too."""
    vouched = 0
    if newest:
        with contextlib.suppress(CheckpointError):  # pruned meanwhile
            vouched = read_state(newest.path, newest.step).metrics_bytes

    def look() -> str:
        says = "" if is_gone(run.metrics) else _records(run.metrics, vouched)
        check_log(run.metrics, vouched)
        return says

    if vouched or not is_gone(run.metrics):
        yield _one(run.metrics, look)


def _saved(run: RunFolder) -> tuple[list[Checked], Checkpoint | None]:
    """Check the checkpoints, each alone; return the newest that is sound, too."""
    found, newest = [], None
    try:
        saved = run.saved()
        if not saved and (lost := run.saved_by_log()) is not None:
            raise CheckpointError(f"{run.path / 'checkpoints'}: step {lost} was saved; {_RESTORE}")
    except CharlmError as error:
        return [Checked(run.path / "checkpoints", "", error)], None
    for step, folder in saved:
        checked = _one(folder, lambda at=(step, folder): _checkpoint(*at))  # type: ignore[misc]
        if not is_gone(folder):  # else a run that goes on has pruned it
            found.append(checked)
            if not checked.error:
                with contextlib.suppress(CheckpointError):  # pruned meanwhile
                    newest = read_checkpoint(step, folder)
    return found, newest


def _rests(
    newest: Checkpoint,
    config: Config,
    tokenizer: Tokenizer,
    mixture: RunFolder | None = None,
) -> Iterator[Checked]:
    """Check that the newest checkpoint makes a model with what it rests on beside it.

    Args:
        newest: Which is sound alone.
        config: What it is gone on with.
        tokenizer: With which alphabet.
        mixture: Whose expert it is, if it is one.
    """

    def look() -> str:
        _unchanged(belongs_to(newest, mixture), config, tokenizer)
        build_from(newest, config, tokenizer)
        return ""

    checked = _one(newest.path, look)
    if checked.error and not is_gone(newest.path):
        yield checked


def _unchanged(then: Belongs, config: Config, tokenizer: Tokenizer) -> None:
    then.check(config, tokenizer.to_json())
    then.differences(config, config)


def _of_mixture(
    run: RunFolder, config: Config, tokenizer: Tokenizer | None, *, joined: bool
) -> Iterator[Checked]:
    """Check what a mixture has before it is joined; afterwards going on needs none of it.

    Args:
        run: Of the mixture.
        config: Of the mixture.
        tokenizer: Its alphabet; None: it cannot be read.
        joined: Whether it is.
    """
    parts, checkpoints = [], {}
    for name, one in config.training_runs().items():
        expert = expert_run(run, name)
        if not expert.path.is_dir() or expert.path.is_symlink():
            continue
        names = list(_names(expert))
        if not joined:  # going on writes them anew
            names = [part.unless("--resume writes it again") for part in names]
        parts += names
        saved, checkpoints[name] = _saved(expert)
        newest = checkpoints[name]
        parts += [*_log(expert, newest), *saved]
        if newest and tokenizer:
            parts += _rests(newest, one, tokenizer, mixture=run)

    found: list[Fitted | None] = []

    def fitted() -> str:
        found.append(read_fitted_of(run, config, checkpoints))
        return "weights of a mixture"

    def begun() -> str:
        if tokenizer:
            _unchanged(begun_with(run), config, tokenizer)
        return "what its experts were begun for"

    own = [_one(run.path / FITTED, fitted), _one(run.path / BELONGS, begun)]
    parts = [part for part in own if part.error or not is_gone(part.path)] + parts
    if not joined and tokenizer and found:
        parts += _other_runs(run, config, tokenizer, found[0])
    for part in parts:
        yield part.unless("the mixture is joined and needs it no more") if joined else part


def _other_runs(
    run: RunFolder, config: Config, tokenizer: Tokenizer, fitted: Fitted | None
) -> Iterator[Checked]:
    """Check the runs that a mixture is still to take experts from."""
    for name, spec in config.model.members().items():
        if spec.run:

            def look(name: str = name) -> str:
                step = expert_from_run(run, config, name, fitted, tokenizer).step
                return f"expert {name}, of step {step}"

            yield _one(Path(spec.run), look)


def _unused(run: Path) -> Iterator[Checked]:
    """List what nothing reads."""
    for place, folders, files in os.walk(run):
        for name in sorted(folders + files):
            if name.startswith(ASIDE) and Path(place).name == "checkpoints":
                says = "damaged, set aside in training: nothing reads it"
                yield Checked(Path(place, name), says, used=False)
            elif is_leftover(name):
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
    if checked.error:
        raise checked.error
    read_checkpoint(step, folder, "restore it")
    read_state(folder, step)
    return checked.says


def _one(path: Path, look: Callable[[], str]) -> Checked:
    try:
        with machine_errors(path):
            return Checked(path, look())
    except CharlmError as error:
        return Checked(path, "", error)


def _read(read: Callable[[], Part]) -> Part | None:
    try:
        return read()
    except CharlmError:
        return None  # it is told as a part of its own


def _records(path: Path, vouched: int = 0) -> str:
    """Read a log; each step may be there once.

    Args:
        path: The metrics.jsonl.
        vouched: Bytes of it that a checkpoint vouches for; what comes after is done again.

    Raises:
        CheckpointError: It is damaged.
    """
    lines = steps = last = read = 0
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
                read += len(line)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        mend = "restore it" if read < vouched else "--resume does this part again"
        raise CheckpointError(f"{path}: line {lines}: {error}; {mend}") from None
    return f"{steps:,} steps, each once"
