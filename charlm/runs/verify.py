"""The results of a run's checks."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
from charlm.runs.check import Check, files
from charlm.runs.checkpoints import ASIDE
from charlm.runs.checks import RunChecks
from charlm.runs.folder import RunFolder
from charlm.storage import OtherFormatError, verify_folder
from charlm.storage.atomic import is_leftover
from charlm.storage.machine import is_gone
from charlm.storage.manifest import NAME

_SET_ASIDE = "damaged, set aside in training: nothing reads it"
_LEFTOVER = Phrase(
    "not finished: being written, or left by a stop and cleared away by {}", Setting("resume", True)
)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    path: Path
    says: Words = ""  # its description, if nothing is wrong
    error: CharlmError | None = None
    used: bool = True  # whether it is needed

    def line(self, spelling: Spelling = str) -> str:
        """Return the result as one line."""
        if self.error:
            return self.error.lines(spelling)[0]
        return f"{self.path}: {spelled(self.says, spelling)}"

    @property
    def problem(self) -> bool:
        """Whether something is wrong with a file that is needed."""
        return self.used and self.error is not None

    @property
    def state(self) -> str:
        """Its status.

        `sound` or `damaged`; `refused`, if another version of charlm can read it; `unread`, if the
        disk or its permissions refuse; `unused`, if it is not needed.
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
    wrong = set()  # paths already reported, which later checks need not report again
    for check in RunChecks(run).all():
        if check.path in wrong:
            continue
        finding = _found(check)
        if finding.error:
            if check.fleeting and is_gone(check.path):
                continue
            wrong.add(check.path)
        if finding.error or finding.says:
            yield finding
    for place, folders, names in os.walk(path):
        for name in sorted(folders + names):
            if name.startswith(ASIDE) and Path(place).name == "checkpoints":
                yield Finding(Path(place, name), _SET_ASIDE, used=False)
            elif is_leftover(name):
                yield Finding(Path(place, name), _LEFTOVER, used=False)


def _found(check: Check) -> Finding:
    try:
        return Finding(check.path, check.run())
    except CharlmError as error:
        if check.spare:
            return Finding(check.path, error=error.replace(mend=check.spare), used=False)
        return Finding(check.path, error=error)
