"""What is looked at in a run, in which order, and with which error.

One list serves all: resuming requires some of it, reading a model some, and `verify` reports it all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from charlm.config import Config
from charlm.errors import CharlmError, CheckpointError, Words
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.folder import RunFolder
from charlm.runs.metrics import check_length, check_records
from charlm.runs.provenance import provenance_of
from charlm.runs.state import newest_sound, read_state, sound_checkpoint
from charlm.runs.weights import build_from
from charlm.storage.machine import is_gone, machine_errors
from charlm.text import Corpus, Tokenizer, open_corpus

Part = TypeVar("Part")


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Args:
        path: Where it is.
        look: Returns what it is, in words, if anything; raises what is wrong.
        to_resume: Whether resuming needs it to be sound.
        to_read: Whether reading the model does.
        fleeting: Whether training may delete it at any moment.
        spare: Why nothing needs it, if nothing does.
    """

    path: Path
    look: Callable[[], Words]
    to_resume: bool = True
    to_read: bool = False
    fleeting: bool = False
    spare: Words = ""

    def run(self) -> Words:
        """Look at it.

        Raises:
            CharlmError: What is wrong.
        """
        with machine_errors(self.path):
            return self.look()


class RunChecks:
    """The checks of one run; what they read is kept.

    Args:
        run: The run.
        chosen: The checkpoint that is to be read; None: the newest sound one.
        mixture: Whose expert it is.
        config: What it is to be trained with; None: what its config.yaml says.

    Attributes:
        sound: `sound_checkpoint`, which looks at each only once.
        newest: Returns the newest sound checkpoint, or raises what `newest_sound` does.
        notes: Which checkpoints it passed over.
    """

    def __init__(
        self,
        run: RunFolder,
        chosen: Checkpoint | None = None,
        *,
        mixture: RunFolder | None = None,
        config: Config | None = None,
    ) -> None:
        self.run = run
        self.chosen = chosen
        self.mixture = mixture
        self.given = config
        self.notes: list[str] = []
        self.sound = _once(sound_checkpoint)
        self.newest = _once(lambda: newest_sound(run, self.notes, self.sound))

    @cached_property
    def corpus(self) -> Corpus:
        """The text as ids, verified."""
        return open_corpus(self.run.tokens_path)

    def places(self) -> Iterator[Check]:
        """List what is of another kind than a run makes in its place."""
        for path, kind in self.run.strange():
            yield Check(path, partial(refuse_place, path, kind))

    def begun(self) -> Iterator[Check]:
        """List what is there before the first step."""
        run = self.run
        yield Check(run.config_path, lambda: f"model {run.config.model.type}", to_read=True)
        yield Check(
            run.tokenizer_path, lambda: f"an alphabet of {run.tokenizer.unit}", to_read=True
        )
        if not (self.mixture and run.tokens_path.is_symlink()):  # the text is the mixture's
            yield Check(run.tokens_path, lambda: files(self.corpus.facts))

    def trained(self) -> Iterator[Check]:
        """List what training leaves behind."""
        log, checkpoints = self.run.metrics_path, self.run.checkpoints
        yield Check(log, self._records, to_resume=False)
        yield Check(log, self._length)
        saved = attempt(checkpoints.saved) or []
        if self.chosen:
            saved = [(self.chosen.step, self.chosen.path)]
        for step, path in saved:
            look = partial(self._checkpoint, step, path)
            yield Check(path, look, to_resume=False, to_read=True, fleeting=True)
        # If the newest one is damaged, its own check has said so.
        at = saved[-1][1] if saved else checkpoints.folder
        yield Check(at, self._any_sound, fleeting=bool(saved))
        checkpoint = self.chosen or attempt(self.newest)
        config, tokenizer = attempt(lambda: self.config), attempt(lambda: self._tokenizer)
        if checkpoint and config and tokenizer:
            yield from self._together(checkpoint, config, tokenizer)

    def _together(
        self, checkpoint: Checkpoint, config: Config, tokenizer: Tokenizer
    ) -> Iterator[Check]:
        """List what a checkpoint, sound alone, needs of what stands beside it."""

        def usable() -> Words:
            provenance_of(checkpoint, self.mixture).check(config, tokenizer.to_json())
            return ""

        def unchanged() -> Words:
            provenance_of(checkpoint, self.mixture).differences(config, config)
            return ""

        def fits() -> Words:
            build_from(checkpoint, config, tokenizer)
            return ""

        yield Check(checkpoint.path, usable, to_read=True, fleeting=True)
        yield Check(checkpoint.path, unchanged, fleeting=True)
        # Resuming and reading build the model anyway.
        yield Check(checkpoint.path, fits, to_resume=False, fleeting=True)

    @property
    def config(self) -> Config:
        """What it is trained with."""
        return self.given or self.run.config

    @property
    def _tokenizer(self) -> Tokenizer:
        return (self.mixture or self.run).tokenizer

    def _checkpoint(self, step: int, path: Path) -> Words:
        return files(self.sound(step, path).facts)

    def _any_sound(self) -> Words:
        self.newest()
        return ""

    def _kept_records(self) -> int:
        """Return how many bytes of the log the newest checkpoint counts on."""
        newest = attempt(self.newest)
        state = attempt(lambda: read_state(newest.path, newest.step)) if newest else None
        return state.metrics_bytes if state else 0

    def _length(self) -> Words:
        check_length(self.run.metrics_path, self._kept_records())
        return ""

    def _records(self) -> Words:
        path = self.run.metrics_path
        return "" if is_gone(path) else check_records(path, self._kept_records())


def require_to_resume(checks: Iterable[Check]) -> None:
    """Refuse a run that cannot be resumed.

    Raises:
        CharlmError: The first thing that is wrong.
    """
    for check in checks:
        if check.to_resume:
            check.run()


def require_to_read(run: RunFolder, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that cannot be read into a model.

    Raises:
        CharlmError: The first thing that is wrong.
    """
    checks = RunChecks(run, checkpoint)
    for check in (*checks.begun(), *checks.trained()):
        if check.to_read:
            check.run()


def attempt(read: Callable[[], Part]) -> Part | None:
    """Return a part, or None if it cannot be read: it has a check of its own that says why."""
    try:
        return read()
    except CharlmError:
        return None


def refuse_place(path: Path, kind: str) -> NoReturn:
    """Refuse what is not of the kind that a run makes there."""
    raise CheckpointError(path, f"is {kind}", "put a regular file or folder there")


def _once(read: Callable[..., Part]) -> Callable[..., Part]:
    """Return `read` so that it reads only once, its error included: a disk may fail just once."""
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


def files(facts: Mapping[str, Any]) -> str:
    """Say how much a folder with this manifest holds."""
    sizes = [file["size"] for file in facts["files"].values()]
    return f"{len(sizes)} file{'s' * (len(sizes) != 1)}, {sum(sizes):,} bytes"
