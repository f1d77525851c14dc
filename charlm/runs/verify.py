"""Every check of a run and of its experts' runs, and what they find."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from charlm.config import Config
from charlm.errors import (
    CharlmError,
    CheckpointError,
    MachineError,
    Phrase,
    Setting,
    Spelling,
    Words,
    spelled,
)
from charlm.runs.checkpoints import ASIDE
from charlm.runs.checks import Check, RunChecks, attempt, files, refuse_place
from charlm.runs.folder import RunFolder
from charlm.runs.mixture import FITTED, Fitted, expert_from_run, expert_run, read_fitted_of
from charlm.runs.provenance import PROVENANCE, provenance_of_unjoined
from charlm.storage import OtherFormatError, verify_folder
from charlm.storage.atomic import is_leftover
from charlm.storage.machine import is_gone
from charlm.storage.manifest import NAME

_JOINED = "the mixture is joined and no longer needs it"
_WRITTEN_AGAIN = Phrase("{} writes it again", Setting("resume", True))
_SET_ASIDE = "damaged, set aside in training: nothing reads it"
_LEFTOVER = Phrase(
    "not finished: being written, or left by a stop and cleared away by {}", Setting("resume", True)
)


@dataclass(frozen=True)
class Finding:
    """What was found in one place.

    Args:
        path: The place.
        says: What it is, where nothing is wrong.
        error: What is wrong with it, and what to do; None: nothing.
        used: Whether resuming needs it.
    """

    path: Path
    says: Words = ""
    error: CharlmError | None = None
    used: bool = True

    def line(self, spelling: Spelling = str) -> str:
        """Return it as one line."""
        if self.error:
            return self.error.lines(spelling)[0]
        return f"{self.path}: {spelled(self.says, spelling)}"

    @property
    def problem(self) -> bool:
        """Whether something is wrong that matters."""
        return self.used and self.error is not None

    @property
    def state(self) -> str:
        """How it is.

        `sound` or `damaged`; `refused`, if another version of charlm can read it; `unread`, if the
        disk or its permissions do not give it; `unused`, if nothing needs it.
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


def verify(path: Path) -> Iterator[Finding]:
    """Check a run with the runs of its experts, or one folder with a manifest; read every file.

    Raises:
        CheckpointError: There is neither at `path`.
    """
    run = RunFolder(path)
    if not run.exists():
        if not (path / NAME).exists():
            what = "no run and no folder with a manifest" if path.exists() else "not found"
            raise CheckpointError(path, what, "name a run folder or a checkpoint")
        yield _found(Check(path, lambda: files(verify_folder(path, "restore it"))))
        return
    wrong = set()  # where something is wrong, no further check says so again
    for check in checks(RunChecks(run)):
        if check.path in wrong:
            continue
        finding = _found(check)
        if finding.error:
            if check.fleeting and is_gone(check.path):
                continue
            wrong.add(check.path)
        if finding.error or finding.says:
            yield finding
    yield from _unused(path)


def checks(own: RunChecks) -> Iterator[Check]:
    """List what is looked at in a run and in the runs of its experts, in this order."""
    yield from places(own)
    yield from own.begun()
    yield from own.trained()
    config = attempt(lambda: own.config)
    if config and config.model.members():
        joined = bool(attempt(own.run.checkpoints.saved))
        for check in _Unjoined(own.run, config, with_runs=not joined).checks():
            yield replace(check, to_resume=False, spare=_JOINED) if joined else check


def places(own: RunChecks) -> Iterator[Check]:
    """List what is not of the kind that a run makes there, in a run and those of its experts."""
    yield from own.places()
    config = attempt(lambda: own.config)
    if config and not (own.run.path / "experts").is_symlink():
        for name in config.training_runs() if config.model.members() else ():
            expert = expert_run(own.run, name)
            if expert.path.is_symlink():
                yield Check(expert.path, partial(refuse_place, expert.path, "a link"))
            elif not (is_gone(expert.path) or expert.path.is_dir()):
                yield Check(expert.path, partial(refuse_place, expert.path, "no folder"))
            else:
                yield from RunChecks(expert).places()


class _Unjoined:
    """What a mixture has until it is joined.

    Args:
        run: Of the mixture.
        config: Of the mixture.
        with_runs: Whether to look at other runs that experts come from, too.
    """

    def __init__(self, run: RunFolder, config: Config, *, with_runs: bool) -> None:
        self.run, self.config = run, config
        experts = config.model.members() if with_runs else {}
        self.others = {name: Path(spec.run) for name, spec in experts.items() if spec.run}
        self.parts = {}
        for name, one in config.training_runs().items():
            expert = expert_run(run, name)
            if expert.path.is_dir() and not expert.path.is_symlink():
                self.parts[name] = RunChecks(expert, mixture=run, config=one)

    def checks(self) -> Iterator[Check]:
        yield Check(self.run.path / FITTED, self._weights)
        yield Check(self.run.path / PROVENANCE, self._begun)
        for part in self.parts.values():
            for check in part.begun():
                yield replace(check, to_resume=False, spare=_WRITTEN_AGAIN)
            yield from part.trained()
        for name, path in self.others.items():
            yield Check(path, partial(self._other, name))

    def _fitted(self) -> Fitted | None:
        newest = {name: attempt(part.newest) for name, part in self.parts.items()}
        return read_fitted_of(self.run, self.config, newest)

    def _weights(self) -> Words:
        return "weights of a mixture" if self._fitted() else ""

    def _begun(self) -> Words:
        tokenizer = attempt(lambda: self.run.tokenizer)
        if tokenizer:
            kept = provenance_of_unjoined(self.run)
            kept.check(self.config, tokenizer.to_json())
            kept.differences(self.config, self.config)
        return "" if is_gone(self.run.path / PROVENANCE) else "what its experts were begun for"

    def _other(self, name: str) -> Words:
        tokenizer = attempt(lambda: self.run.tokenizer)
        try:
            fitted = self._fitted()
        except CharlmError:
            return ""  # its own check says so
        if not tokenizer:
            return ""
        step = expert_from_run(self.run, self.config, name, fitted, tokenizer).step
        return f"expert {name}, of step {step}"


def _found(check: Check) -> Finding:
    try:
        return Finding(check.path, check.run())
    except CharlmError as error:
        if check.spare:
            return Finding(check.path, error=error.replace(mend=check.spare), used=False)
        return Finding(check.path, error=error)


def _unused(run: Path) -> Iterator[Finding]:
    """List what nothing reads."""
    for place, folders, names in os.walk(run):
        for name in sorted(folders + names):
            if name.startswith(ASIDE) and Path(place).name == "checkpoints":
                yield Finding(Path(place, name), _SET_ASIDE, used=False)
            elif is_leftover(name):
                yield Finding(Path(place, name), _LEFTOVER, used=False)
