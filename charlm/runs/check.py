"""One check of a run, and the checks shared by reading a checkpoint, resuming and `verify`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charlm.config import Config
from charlm.errors import Words, number_of
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.folder import RunFolder
from charlm.runs.provenance import provenance_of
from charlm.runs.state import sound_checkpoint
from charlm.storage.machine import machine_errors
from charlm.text import Tokenizer


@dataclass(frozen=True)
class Check:
    """One check."""

    path: Path
    look: Callable[[], Words | None]  # raises an error, or returns a description if there is one
    to_resume: bool = True  # whether resuming needs it to be sound
    fleeting: bool = False  # whether training may delete it at any moment
    spare: Words = ""  # why it is no longer needed; "" if it is

    def run(self) -> Words:
        """Run the check; raise a CharlmError if it fails."""
        with machine_errors(self.path):
            return self.look() or ""


def checks_to_read(run: RunFolder, checkpoint: Checkpoint) -> Iterator[Check]:
    """List the checks that must pass before a checkpoint is read into a model."""
    yield from checks_of_names(run)
    yield checkpoint_check(checkpoint.step, checkpoint.path)
    yield belongs_check(checkpoint, run.config, run.tokenizer)


def checks_of_names(run: RunFolder) -> Iterator[Check]:
    """List the checks of the configuration and the alphabet."""
    yield Check(run.config_path, lambda: f"model {run.config.model.type}")
    yield Check(run.tokenizer_path, lambda: _alphabet(run.tokenizer))


def checkpoint_check(
    step: int, path: Path, sound: Callable[[int, Path], Checkpoint] = sound_checkpoint
) -> Check:
    """Check that the files of a checkpoint are sound."""
    return Check(path, lambda: files(sound(step, path).facts), to_resume=False, fleeting=True)


def belongs_check(
    checkpoint: Checkpoint, config: Config, tokenizer: Tokenizer, mixture: RunFolder | None = None
) -> Check:
    """Check that a checkpoint was trained with this configuration and alphabet."""

    def look() -> None:
        provenance_of(checkpoint, mixture).check(config, tokenizer.to_json())

    return Check(checkpoint.path, look, fleeting=True)


def files(facts: Mapping[str, Any]) -> str:
    """Return the number and total size of the files in a manifest, in words."""
    sizes = [file["size"] for file in facts["files"].values()]
    return f"{number_of(len(sizes), 'file')}, {number_of(sum(sizes), 'byte')}"


def _alphabet(tokenizer: Tokenizer) -> str:
    symbols = "characters" if tokenizer.unit == "chars" else tokenizer.unit
    return f"alphabet of {tokenizer.vocab_size} {symbols}"
