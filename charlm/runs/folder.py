"""What a run leaves on disk, and how to find it again.

runs/<name>/
config.yaml               every key, resolved; its presence makes the folder a run
tokenizer.json            the alphabet
tokens/                   the text as ids, split, with its manifest
metrics.jsonl             one record a line
samples/step-N.txt        what the model wrote while it trained
checkpoints/step-N/       model.safetensors, optimizer.safetensors, state.json, what they were
trained with (belongs.json), MANIFEST.json
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from charlm.config import Config, read_config
from charlm.config.yaml_file import MAX_BYTES
from charlm.errors import CheckpointError, Phrase, Setting, UsageError
from charlm.runs.checkpoints import Checkpoints
from charlm.storage.atomic import flush_folder, write_file
from charlm.storage.machine import is_gone, machine_errors
from charlm.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class RunFolder:
    """The places inside one run, and its configuration and alphabet, which are read once."""

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def tokenizer_path(self) -> Path:
        """The alphabet."""
        return self.path / "tokenizer.json"

    @property
    def tokens_path(self) -> Path:
        """The text as ids."""
        return self.path / "tokens"

    @property
    def metrics_path(self) -> Path:
        """One JSON record a line."""
        return self.path / "metrics.jsonl"

    @property
    def samples_path(self) -> Path:
        """What the model wrote while it trained."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Checkpoints:
        """What was saved."""
        return Checkpoints(self.path / "checkpoints")

    def exists(self) -> bool:
        """Tell whether a run was begun here."""
        return self.config_path.is_file()

    @cached_property
    def config(self) -> Config:
        """The resolved configuration, as it is when first asked for.

        Raises:
            CheckpointError: It cannot be read, or is wrong.
        """
        path, mend = self.config_path, "restore it or name another run"
        if not (self.exists() or is_gone(path)):
            raise CheckpointError(path, "no regular file", mend)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)  # one over the limit is enough to refuse
            return read_config(data, str(path))
        except OSError as error:
            raise CheckpointError(path, error.strerror or str(error), mend) from None
        except UsageError as error:  # no mistake in a command
            raise CheckpointError(error.where, error.what, mend) from None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The alphabet, as it is when first asked for.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        return load_tokenizer(self.tokenizer_path)

    def strange(self) -> Iterator[tuple[Path, str]]:
        """Yield what is not of the kind that a run makes in its place, and what it is instead.

        A run does not own what a link leads to, and reading a pipe waits for ever. The text of an
        expert may be a link: it is that of its mixture.
        """
        files = ("config.yaml", "tokenizer.json", "metrics.jsonl", "mixture.json", "belongs.json")
        for name in (*files, "checkpoints", "samples", "experts"):
            path = self.path / name
            if path.is_symlink():
                yield path, "a link"
            elif name in files and not is_gone(path) and not path.is_file():
                yield path, "no regular file"
            elif name not in files and not is_gone(path) and not path.is_dir():
                yield path, "no folder"

    def write_sample(self, step: int, text: str) -> None:
        """Keep what the model wrote at `step`.

        Raises:
            MachineError: The disk or its permissions refuse.
        """
        with machine_errors(self.samples_path):
            self.samples_path.mkdir(exist_ok=True)  # not its parents: see `new_folder`
            flush_folder(self.path)
        write_file(self.samples_path / f"step-{step}.txt", text.encode("utf-8", "replace"))


def find_run(path: Path | None, runs: Path = Path("runs")) -> RunFolder:
    """Return the run at `path`, or without one the newest under `runs`.

    Raises:
        CheckpointError: There is no run there.
    """
    if path is not None:
        run = RunFolder(path)
        if run.exists():
            return run
        near = ", ".join(str(r.path) for r in _runs_under(path.parent)[:5] if r.path != path)
        hint = f"runs there: {near}" if near else "train one first"
        what = "not found" if is_gone(path) else "is not a run (no config.yaml)"
        raise CheckpointError(path, what, hint)
    found = _runs_under(runs)
    if not found:
        raise CheckpointError(
            f"{runs}/",
            "no run there",
            Phrase(
                "train one first, for example with {}, or name one with {}",
                Setting("config", "quickstart"),
                Setting("run"),
            ),
        )
    return found[0]


def next_free_name(name: str, runs: Path = Path("runs")) -> Path:
    """Return `runs/name`, or the first of `runs/name-2`, `runs/name-3`, ... that is not taken."""
    path, number = runs / name, 2
    while not is_gone(path):
        path, number = runs / f"{name}-{number}", number + 1
    return path


def _runs_under(folder: Path) -> list[RunFolder]:
    """List the runs in a folder, the one that was written to last first."""

    def age(run: RunFolder) -> float:
        newest = run.metrics_path if run.metrics_path.exists() else run.config_path
        try:
            return newest.stat().st_mtime
        except OSError:
            return 0.0

    runs = [RunFolder(path.parent) for path in folder.glob("*/config.yaml")]
    return sorted(runs, key=age, reverse=True)
