"""The places in a run folder, and how to find a run."""

import re
from functools import cached_property
from pathlib import Path

from charlm.config import Config, read_config
from charlm.config.yaml_file import MAX_BYTES
from charlm.errors import CheckpointError, Phrase, Setting, UsageError
from charlm.runs.checkpoints import Checkpoints
from charlm.storage.atomic import flush_folder, is_leftover, write_file
from charlm.storage.json_file import read_bytes, reason
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.regular import check_folder
from charlm.text.raw import as_bytes
from charlm.text.tokenizer import Tokenizer, load_tokenizer

RUNS = Path("runs")
BASELINES = "baselines.json"
REPORT = "report.html"
REQUEST = ".save-request"
# An expert has a link to the text of its mixture: no other link in a run folder is followed.
TEXT_OF_MIXTURE = Path("..", "..", "tokens")


class RunFolder:
    """The places inside one run, and its configuration and alphabet, which are read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"  # every key, resolved; it makes the folder a run
        self.tokenizer_path = path / "tokenizer.json"  # the alphabet
        self.tokens_path = path / "tokens"  # the text as ids, split, with its manifest
        self.metrics_path = path / "metrics.jsonl"  # one record per line
        self.baselines_path = path / BASELINES  # their table, only to save time
        self.board_path = path / "tensorboard"  # the log again, with run.tensorboard
        self.report_path = path / REPORT  # a page about the run, for people only
        self.request_path = path / REQUEST  # while it is asked to save
        self.samples_path = path / "samples"  # step-N.txt: samples written during training
        # step-N: model.safetensors, optimizer.safetensors, state.json, belongs.json (configuration
        # and alphabet of the training), MANIFEST.json.
        self.checkpoints = Checkpoints(path / "checkpoints")

    @property
    def text_path(self) -> Path:
        """The folder of its text: `tokens`, or that of its mixture; CheckpointError for a link."""
        path = self.tokens_path
        if path.is_symlink() and path.readlink() == TEXT_OF_MIXTURE:
            return self.path / TEXT_OF_MIXTURE
        check_folder(path)
        return path

    def exists(self) -> bool:
        """Tell whether there is a run here."""
        return self.config_path.is_file()

    def written(self) -> float:
        """Return when the run was written last, in seconds since 1970; 0 if that is unknown."""
        newest = self.metrics_path if self.metrics_path.exists() else self.config_path
        try:
            return newest.stat().st_mtime
        except OSError:
            return 0.0

    @cached_property
    def config(self) -> Config:
        """The resolved configuration; CheckpointError if it is unreadable or wrong."""
        path, mend = self.config_path, "restore it or name another run"
        try:
            config = read_config(read_bytes(path, MAX_BYTES), str(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(path, reason(error), mend) from None
        except UsageError as error:  # not the command's mistake
            raise CheckpointError(error.where, error.what, mend) from None
        for key in config.model.undecided():
            where = f"{path}: model.{key}"
            raise CheckpointError(where, "auto, where a run has what was chosen", mend)
        return config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The alphabet; CheckpointError if it is missing or damaged."""
        return load_tokenizer(self.tokenizer_path)

    def write_sample(self, step: int, text: str) -> None:
        """Save the sample of `step`, byte for byte; MachineError if the disk refuses."""
        with machine_errors(self.samples_path):
            self.samples_path.mkdir(exist_ok=True)  # not its parents: see `new_folder`
            flush_folder(self.path)
        write_file(self.samples_path / f"step-{step}.txt", as_bytes(text))


def find_run(path: Path | None, runs: Path = RUNS, name: str = "") -> RunFolder:
    """Return the run at `path`; None: the newest under `runs`. A bare name may be one of `runs`.

    With a name: the newest of those that `next_free_name` gives for it.

    Raises:
        CheckpointError: There is no run there.
    """
    if path is not None:
        run = RunFolder(or_in_runs(path, runs))
        if run.exists():
            return run
        beside = runs if _is_bare(path) and is_gone(path) else path.parent
        near = ", ".join(str(r.path) for r in runs_under(beside)[:5] if r.path != path)
        what = "not found" if is_gone(path) else "is not a run (no config.yaml)"
        raise CheckpointError(path, what, f"runs there: {near}" if near else "train one first")
    found = runs_under(runs)
    made = [run for run in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", run.path.name)]
    if wanted := made if name else found:
        return wanted[0]
    if found:
        near = ", ".join(str(run.path) for run in found[:5])
        of_them = Phrase("name another with {}: {}", Setting("run"), near)
        raise CheckpointError(f"{runs}/", f"no run named {name} or {name}-N there", of_them)
    mend = "train one first, for example with {}, or name one with {}"
    mends = Phrase(mend, Setting("config", "quickstart"), Setting("run"))
    raise CheckpointError(f"{runs}/", "no run there", mends)


def or_in_runs(path: Path, runs: Path = RUNS) -> Path:
    """Return `runs/NAME` for a bare NAME that is no run itself, if that is one; else `path`."""
    inside = runs / path
    bare = _is_bare(path) and not RunFolder(path).exists()
    return inside if bare and RunFolder(inside).exists() else path


def _is_bare(path: Path) -> bool:
    return len(path.parts) == 1 and path.name not in ("", "..")


def next_free_name(name: str, runs: Path = RUNS) -> Path:
    """Return `runs/name`, or the first of `runs/name-2`, `runs/name-3`, ... that is not taken."""
    path, number = runs / name, 2
    while not is_gone(path):
        path, number = runs / f"{name}-{number}", number + 1
    return path


def runs_under(folder: Path) -> list[RunFolder]:
    """List the runs in a folder, the most recently written first."""
    places = (path.parent for path in folder.glob("*/config.yaml"))
    runs = [RunFolder(place) for place in places if not is_leftover(place.name)]
    return sorted(runs, key=RunFolder.written, reverse=True)
