"""The checks of a run, in order, with their errors.

There is one list: resuming requires some of its checks to pass, and `verify` reports all of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from charlm.config import Config
from charlm.errors import CharlmError, CheckpointError, Phrase, Setting, Words, number_of
from charlm.runs.check import Check, belongs_check, checkpoint_check, checks_of_names, files
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.folder import BASELINES, RunFolder
from charlm.runs.metrics import check_length, check_records
from charlm.runs.mixture import FITTED, Fitted, expert_from_run, expert_run, read_fitted_of
from charlm.runs.provenance import PROVENANCE, provenance_of, provenance_of_unjoined
from charlm.runs.state import check_checkpoint, newest_sound, read_state, sound_checkpoint
from charlm.storage.machine import is_gone
from charlm.storage.regular import check_file, check_folder, is_folder
from charlm.text import Corpus, open_corpus

FILES = ("config.yaml", "tokenizer.json", "metrics.jsonl", BASELINES, FITTED, PROVENANCE)
FOLDERS = ("checkpoints", "samples", "experts")

_JOINED = "the mixture is joined and no longer needs it"
_WRITTEN_AGAIN = Phrase("{} writes it again", Setting("resume", True))

Part = TypeVar("Part")


class RunChecks:
    """The checks of one run; files are read once.

    Args:
        run: The run.
        mixture: The mixture whose expert it is, if any.
        config: The configuration to train with; None: its config.yaml.
    """

    def __init__(
        self, run: RunFolder, *, mixture: RunFolder | None = None, config: Config | None = None
    ) -> None:
        self.run = run
        self.mixture = mixture
        self.given = config
        self.notes: list[str] = []  # the checkpoints that `newest` skipped
        self.sound = _once(sound_checkpoint)
        self.newest = _once(lambda: newest_sound(run, self.notes, self.sound))

    @property
    def config(self) -> Config:
        """The configuration that it is trained with."""
        return self.given or self.run.config

    @cached_property
    def corpus(self) -> Corpus:
        """The text as ids, verified."""
        return open_corpus(self.run.text_path)

    def all(self) -> Iterator[Check]:
        """List the checks of the run and of its experts' runs, in order."""
        yield from self.places()
        yield from self.begun()
        yield from self.trained()
        config = attempt(lambda: self.config)
        if config and config.model.members():
            joined = bool(attempt(self.run.checkpoints.saved))
            for check in _unjoined(self.run, config, with_runs=not joined):
                yield replace(check, spare=_JOINED) if joined else check

    def places(self) -> Iterator[Check]:
        """List the checks that paths are regular files or folders, also in the experts' runs."""
        for name in FILES:
            yield _place(self.run.path / name, check_file)
        for name in FOLDERS:
            yield _place(self.run.path / name, check_folder)
        yield Check(self.run.tokens_path, self._own_text)
        config = attempt(lambda: self.config)
        if config and config.model.members() and is_folder(self.run.path / "experts"):
            for name, one in config.training_runs().items():
                expert = expert_run(self.run, name)
                yield _place(expert.path, check_folder)
                if is_folder(expert.path):
                    yield from RunChecks(expert, config=one).places()

    def begun(self) -> Iterator[Check]:
        """List the checks of files that exist before the first step."""
        run = self.run
        yield from checks_of_names(run)
        if not (self.mixture and run.tokens_path.is_symlink()):  # the text is the mixture's
            yield Check(run.tokens_path, lambda: files(self.corpus.facts))
            if attempt(lambda: self.corpus) and attempt(lambda: self.config):
                yield Check(run.tokens_path, self._long_enough)

    def trained(self) -> Iterator[Check]:
        """List the checks of files that training writes."""
        log, checkpoints = self.run.metrics_path, self.run.checkpoints
        yield Check(log, self._records, to_resume=False)
        yield Check(log, lambda: check_length(log, self._kept_records()))
        saved = attempt(checkpoints.saved) or []
        for step, path in saved:
            yield checkpoint_check(step, path, self.sound)
        # If the newest one is damaged, its own check has reported it.
        at = saved[-1][1] if saved else checkpoints.folder
        yield Check(at, self._any_sound, fleeting=bool(saved))
        checkpoint, config = attempt(self.newest), attempt(lambda: self.config)
        tokenizer = attempt(lambda: (self.mixture or self.run).tokenizer)
        if checkpoint and config and tokenizer:
            yield belongs_check(checkpoint, config, tokenizer, self.mixture)
            kept = partial(self._kept, checkpoint, config)
            yield Check(checkpoint.path, kept, fleeting=True)
            fits = partial(check_checkpoint, checkpoint, config, tokenizer)  # as the loop reads it
            yield Check(checkpoint.path, fits, to_resume=False, fleeting=True)

    def _long_enough(self) -> None:
        length, needed = len(self.corpus.splits["train"]), self.config.model.least_text()
        if length < max(needed.values(), default=0):
            chars = number_of(length, "character")
            what = f"{chars} to train on, and the model needs {max(needed.values())}"
            raise CheckpointError(self.run.tokens_path, what, "restore it")

    def _own_text(self) -> None:
        _ = self.run.text_path

    def _any_sound(self) -> None:
        self.newest()

    def _kept(self, checkpoint: Checkpoint, config: Config) -> None:
        provenance_of(checkpoint, self.mixture).differences(config, config)

    def _kept_records(self) -> int:
        """Return the length of the log, in bytes, that the newest checkpoint recorded."""
        newest = attempt(self.newest)
        state = attempt(lambda: read_state(newest.path, newest.step)) if newest else None
        return state.metrics_bytes if state else 0

    def _records(self) -> Words:
        path = self.run.metrics_path
        kept = self._kept_records()
        said = "" if is_gone(path) else check_records(path, kept)
        check_length(path, kept)  # before it is called sound
        return said


def _unjoined(run: RunFolder, config: Config, *, with_runs: bool) -> Iterator[Check]:
    """List the checks of an unjoined mixture's files and, if asked, of runs it takes experts from."""
    parts = {
        name: RunChecks(expert_run(run, name), mixture=run, config=one)
        for name, one in config.training_runs().items()
        if is_folder(expert_run(run, name).path)
    }

    def fitted() -> Fitted | None:
        newest = {name: attempt(part.newest) for name, part in parts.items()}
        return read_fitted_of(run, config, newest)

    def begun() -> Words:
        if tokenizer := attempt(lambda: run.tokenizer):
            kept = provenance_of_unjoined(run)
            kept.check(config, tokenizer.to_json())
            kept.differences(config, config)
        return "" if is_gone(run.path / PROVENANCE) else "what its experts were begun for"

    def taken(name: str) -> Words:
        try:
            found, tokenizer = fitted(), run.tokenizer
        except CharlmError:
            return ""  # their own checks say so
        step = expert_from_run(run, config, name, found, tokenizer).step
        return f"expert {name}, of step {step}"

    yield Check(run.path / FITTED, lambda: "weights of a mixture" if fitted() else "")
    yield Check(run.path / PROVENANCE, begun)
    for part in parts.values():
        for check in part.begun():
            yield replace(check, spare=_WRITTEN_AGAIN)
        yield from part.trained()
    for name, spec in config.model.members().items() if with_runs else ():
        if spec.run:
            yield Check(Path(spec.run), partial(taken, name))


def require(checks: Iterable[Check]) -> None:
    """Raise the first error, a CharlmError, that keeps a run from being resumed."""
    for check in checks:
        if check.to_resume and not check.spare:
            check.run()


def attempt(read: Callable[[], Part]) -> Part | None:
    """Return a part, or None if it cannot be read: its own check reports why."""
    try:
        return read()
    except CharlmError:
        return None


def _place(path: Path, check: Callable[[Path], None]) -> Check:
    """Check that `path`, if it exists, is the kind of file or folder that a run makes there."""
    return Check(path, lambda: check(path))


def _once(read: Callable[..., Part]) -> Callable[..., Part]:
    """Return `read` with its result or error kept, so that it reads only once."""
    known: dict[tuple[Any, ...], Part | CharlmError] = {}

    def remembered(*arguments: Any) -> Part:
        if arguments not in known:
            try:
                known[arguments] = read(*arguments)
            except CharlmError as error:
                known[arguments] = error
        result = known[arguments]
        if isinstance(result, CharlmError):
            raise result
        return result

    return remembered
