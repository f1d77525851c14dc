"""Before the first step: a new run folder with its text.

All checks come before the folder is made, so a mistake leaves nothing behind.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from charlm.backprop.by_hand import check_derived
from charlm.config import Config, changed, dump_yaml
from charlm.config.memory import human_bytes
from charlm.config.size import check_memory, checkpoint_bytes
from charlm.errors import (
    CharlmError,
    DataError,
    MachineError,
    Phrase,
    Setting,
    UsageError,
    number_of,
)
from charlm.evaluation.remarks import text_notes
from charlm.lifecycle.orders import choose_orders
from charlm.lifecycle.takeover import (
    alphabet_notes,
    check_first_weights,
    resolve_experts,
    seen_notes,
)
from charlm.models.device import choose_device, choose_dtype
from charlm.models.registry import KINDS, Kind, kind_for
from charlm.runs import RunFolder, next_free_name
from charlm.runs.board import check_board
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.metrics import read_metrics
from charlm.runs.mixture import FITTED
from charlm.runs.provenance import PROVENANCE
from charlm.storage import folder_lock, machine_errors, refuse_locked, write_file
from charlm.storage.atomic import (
    flush_folder,
    is_leftover,
    make_folder,
    remove_leftovers,
    shared_place,
)
from charlm.storage.lock import HOLDER, LOCK
from charlm.storage.machine import is_gone
from charlm.storage.regular import is_folder, is_regular
from charlm.text import Corpus, Scan, Source, Tokenizer, encode_corpus, open_source, scan_text
from charlm.text.large import IDS, put_back
from charlm.text.parts import check_lengths, check_parts, record_bounds
from charlm.text.scan import Progress
from charlm.text.survey import LOOKED_AT, Survey
from charlm.training.compiling import check_compiler
from charlm.training.plan import BudgetPlan, make_plan

# A save needs room for itself beside the one it replaces; the rest is for records and samples.
DISK_FACTOR = 2.2

LOCKS = (LOCK, HOLDER)
OF_EXPERTS = (Kind("").learner, KINDS["ngram"].learner)  # what a mixture does for its experts
OUT, RESUME = Setting("out"), Setting("resume", True)
ANOTHER = Phrase("choose another {}", OUT)


@dataclass
class PreparedText:
    """A text that was read once and fits the configuration."""

    source: Source
    scan: Scan
    tokenizer: Tokenizer


@dataclass
class PreparedRun:
    """A run folder with everything that training needs."""

    config: Config  # fully resolved
    run: RunFolder
    corpus: Corpus
    tokenizer: Tokenizer
    checkpoint: Checkpoint | None = None  # where to continue from
    notes: list[str] = field(default_factory=list)  # remarks for the user that are not errors
    # The choices for the time budget, by the name of an expert.
    plans: dict[str, BudgetPlan] = field(default_factory=dict)


def check_new_folder(out: Path) -> None:
    """Refuse a folder in which a new run cannot begin.

    Raises:
        UsageError: It is a file, holds a run, or is not empty.
        MachineError: A run is being written there, and the message says by whom.
    """
    with machine_errors(out):
        refuse_locked(out)
    _check_new_folder(out)


def _check_new_folder(out: Path) -> None:
    with machine_errors(out):
        if RunFolder(out).exists():
            mend = Phrase("continue it with {}, or choose another {}", RESUME, OUT)
            raise UsageError(out, "holds a run", mend)
        for path in (out, *out.parents):
            if os.path.lexists(path) and not path.is_dir():
                kind = "file" if path.is_file() else "device, pipe or broken link"
                raise UsageError(path, f"is a {kind}", ANOTHER)
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if any(not is_leftover(name) and not _is_of_a_start(out, name, names) for name in names):
            raise UsageError(out, "is not empty and not a run", ANOTHER)
    try:
        str(out).encode()
    except UnicodeEncodeError:  # weights could be written there but not read
        raise UsageError(repr(str(out)), "not UTF-8", ANOTHER) from None


def _is_of_a_start(out: Path, name: str, names: Collection[str]) -> bool:
    """Tell whether a file or folder in `out` is from a start that was killed."""
    path = out / name
    if name in LOCKS or (name == "tokenizer.json" and HOLDER in names):
        return is_regular(path)
    of_start = HOLDER in names and is_folder(path)
    return of_start and (name == "tokens" or (name == "checkpoints" and not any(path.iterdir())))


@contextlib.contextmanager
def new_folder_for_run(out: Path) -> Iterator[None]:
    """Make and lock the folder of a new run; remove it at the end if it is still empty.

    Raises the errors of `check_new_folder`.
    """
    with machine_errors(out):
        made = [path for path in (out, *out.parents) if not path.exists()]
        make_folder(out)
    try:
        with folder_lock(out):
            _check_new_folder(out)
            yield
    finally:
        _remove_empty(*made)


@contextlib.contextmanager
def free_folder(name: str) -> Iterator[Path]:
    """Make the next free folder for a run of this name; remove it at the end if it is still empty.

    Two commands that start at once get two folders. MachineError if the disk refuses.
    """
    made = False
    while not made:
        path = next_free_name(name)
        with machine_errors(path):
            make_folder(path.parent)
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                made = True
            flush_folder(path.parent)
    try:
        yield path
    finally:
        _remove_empty(path, path.parent)


def _remove_empty(*folders: Path) -> None:
    """Remove those folders that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def prepare_text(
    config: Config,
    progress: Progress,
    fetch: Callable[[int, int], None],
    out: Path | None = None,
) -> PreparedText:
    """Read the text once and check that it, the model and the machine fit together.

    In `out`, a start of the same run may have been killed: what it knew of a large text is used.

    Raises:
        DataError: The text is missing, unreadable or too short.
        UsageError: The model does not fit into this machine's memory, has no gradients by hand, or
            is an expert with a learner of its own.
        MachineError: The text is unreadable or could not be fetched, the requested device,
            compiler or package is missing, or this process may not use that much memory.
    """
    choose_device(config.run.device)
    check_compiler(config)
    check_board(config)
    for one in config.training_runs().values():
        if one.train.gradients == "by_hand":
            check_derived(kind_for(one.model), one.model.kind)
    for name, expert in config.model.members().items():
        if expert.model and not expert.run and kind_for(expert.model).learner not in OF_EXPERTS:
            where, what = f"model.experts.{name}.model", "has a learner of its own"
            mend = f"train it alone, and set model.experts.{name}.run"
            raise UsageError(where, f"{expert.model.type!r} {what}", mend)
    # Refuse impossible sizes before reading a large text: no text has fewer symbols than 1.
    check_memory(config, vocab_size=1)
    source = open_source(config.data.source, fetch)
    begun = RunFolder(out).tokens_path if out else None
    scan = scan_text(source, config.data, progress, Survey(config.data, LOOKED_AT), begun)
    tokenizer = scan.tokenizer(config.data)
    refuse_short(scan, config)
    check_memory(config, tokenizer.vocab_size)
    check_prompt(config, tokenizer)
    return PreparedText(source, scan, tokenizer)


def check_prompt(config: Config, tokenizer: Tokenizer) -> None:
    """Refuse a prompt with characters that are not in the alphabet, with a DataError."""
    try:
        tokenizer.encode(config.sample.prompt)
    except DataError as error:
        raise error.within("sample.prompt").replace(mend="choose another") from None


def resolve_dtype(config: Config) -> Config:
    """Choose the precision of a new run, so that it is the same wherever the run is resumed.

    Small models gain nothing from bfloat16, and gradients by hand are compared with autograd's: both
    stay in float32.
    """
    if config.run.dtype != "auto":
        return config
    runs = config.training_runs().values()
    gains = any(one.model.deep and one.train.gradients == "autograd" for one in runs)
    dtype = choose_dtype("auto", choose_device(config.run.device)) if gains else torch.float32
    return with_dtype(config, str(dtype).removeprefix("torch."))


def with_dtype(config: Config, dtype: str) -> Config:
    """Return the configuration with another precision."""
    return config.model_copy(update={"run": config.run.model_copy(update={"dtype": dtype})})


def refuse_short(scan: Scan, config: Config) -> None:
    """Raise DataError if a part of the text is too short for the model."""
    model, source, size = config.model, config.data.source, scan.size
    if scan.records:
        record_bounds(scan.records.records, config.data)
    else:
        check_parts(size, config.data)
    if model.trained_by == "gradients":
        if scan.records:  # of any length
            return
        check_lengths(size, config.data, model.block_size)
        return
    first, last = scan.bounds(config.data)["train"]
    length = last - first
    if model.members():
        tuned = model.held_back(length)
        if tuned < 2:
            chars = number_of(length, "character")
            what = f"of the {chars} to train on in {source} it leaves {tuned}, too few"
            raise DataError("model.tune_fraction", what, "raise it or use a longer text")
        if scan.records and record_bounds(scan.records.records, config.data)["train"][1] < 2:
            what = f"a mixture needs 2 records to train on, and {source} leaves 1"
            raise DataError("model.tune_fraction", what, "use a longer list")
        length -= tuned
    for key, needed in model.least_text().items():
        if length < needed:
            what = (
                f"needs {number_of(needed, 'character')} to train on and {source} leaves {length}"
            )
            raise DataError(f"model.{key}", what, "lower it or use a longer text")


def plan_run(
    config: Config, text: PreparedText, overrides: Sequence[str], spent: float = 0.0
) -> tuple[Config, dict[str, BudgetPlan]]:
    """Choose sizes and training settings for a time budget, if `train.plan` is set; see `make_plan`.

    Raises:
        UsageError: An override contradicts the plan, or needs more memory than there is.
        DataError: The text is too short for it.
    """
    first, last = text.scan.bounds(config.data)["train"]
    vocab_size = text.tokenizer.vocab_size
    planned, plans = make_plan(resolve_dtype(config), vocab_size, last - first, overrides, spent)
    if plans:
        planned = changed(planned, where="the plan")
        check_memory(planned, vocab_size)
        refuse_short(text.scan, planned)
    return planned, plans


def config_file(config: Config, where: str) -> bytes:
    """Return a config.yaml with every key of a configuration, or raise the UsageError of `changed`."""
    return dump_yaml(changed(config, where=where).model_dump()).encode()


def create_run(
    config: Config,
    out: Path,
    text: PreparedText,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    resumable: bool = False,
) -> PreparedRun:
    """Fill a locked, empty folder: the text as ids, the alphabet, and last the configuration.

    If that fails, the files it made are removed. What is finished of the ids of a large text stays if
    the run is `resumable`: if it would be started in the same folder again. `should_stop` is called
    often after the text has been read.

    Raises:
        CheckpointError: The run to start from, or that of an expert, is missing or of another kind.
        MachineError: The disk is too small or refuses.
        Stopped: `should_stop` said so.
    """
    run = RunFolder(out)
    corpus: Corpus | None = None
    place = shared_place(run.tokens_path) if resumable and text.scan.counted else None
    try:
        config = resolve_dtype(resolve_experts(config, text.tokenizer))
        config_file(config, str(run.config_path))  # refuses what it cannot hold
        check_first_weights(config, text.tokenizer)
        check_disk(config, out, text)
        remove_leftovers(out, place)
        corpus = encode_corpus(
            text.source,
            config.data,
            text.scan,
            text.tokenizer,
            run.tokens_path,
            progress,
            resumable=resumable,
        )
        with machine_errors(out):
            make_folder(run.checkpoints.folder)
        write_file(run.tokenizer_path, text.tokenizer.to_json().encode())
        vocab_size = text.tokenizer.vocab_size
        config, chosen = choose_orders(config, corpus, vocab_size, run, should_stop)
        write_file(run.config_path, config_file(config, str(run.config_path)))
        taken = [*alphabet_notes(config, text.tokenizer), *seen_notes(config, corpus)]
        notes = [*text.scan.notes, *taken, *chosen]
        if records := text.scan.records:
            notes += records.more_notes(config.model.block_size, corpus.facts.get("repeats"))
        notes += text_notes(text.scan, corpus, text.tokenizer, config.data)
    except BaseException as error:
        _take_back(out, place, kept_of(text, resumable, error) if corpus else None)
        raise
    return PreparedRun(config, run, corpus, text.tokenizer, notes=notes)


def kept_of(text: PreparedText, resumable: bool, error: BaseException) -> PreparedText | None:
    """Return a text whose ids are kept for the next start after an error; None: they are not.

    They took long if the text is large, and a text that is wrong must be changed.
    """
    kept = resumable and text.scan.counted and not isinstance(error, DataError)
    return text if kept else None


def take_back_unless_begun(run: RunFolder, kept: PreparedText | None = None) -> None:
    """Remove a new run that failed before its first step, so that the command can be repeated.

    A run that has or may have a step stays. The ids of a text that is `kept` are put where a start in
    the same folder goes on with them.
    """
    runs = [run, *map(RunFolder, run.path.glob("experts/*"))]
    with contextlib.suppress(CharlmError, OSError):
        if any(one.checkpoints.saved() for one in runs):
            return
        logs = [one.metrics_path for one in runs if not is_gone(one.metrics_path)]
        if any(r["kind"] in ("train", "skip") for log in logs for r in read_metrics(log)):
            return
        remove_leftovers(run.path)
        for one in reversed(runs):
            ours = [one.path / FITTED, one.path / PROVENANCE, one.baselines_path]
            ours += [one.metrics_path, one.config_path]
            if one is not run:
                ours += [one.tokenizer_path, one.tokens_path]  # a link to the mixture's
            for path in [*one.samples_path.glob("step-*.txt"), *ours]:
                path.unlink(missing_ok=True)
            folders = (one.samples_path, one.checkpoints.folder, one.path / "experts", one.path)
            _remove_empty(*folders)
        _take_back(run.path, shared_place(run.tokens_path), kept)


def _take_back(out: Path, place: Path | None, kept: PreparedText | None) -> None:
    """Remove the files that a failed start made, and nothing else.

    What is at `place` stays, and the whole ids of a text that is `kept` go there.
    """
    tokens = RunFolder(out).tokens_path
    if kept and kept.scan.counted:
        with contextlib.suppress(MachineError):
            put_back(tokens, kept.scan.counted, kept.tokenizer)
    shutil.rmtree(tokens, ignore_errors=True)
    _remove_empty(out / "checkpoints")
    for name in ("tokenizer.json", *LOCKS):
        with contextlib.suppress(OSError):
            (out / name).unlink()
    with contextlib.suppress(MachineError):
        remove_leftovers(out, place)


def check_disk(config: Config, out: Path, text: PreparedText) -> None:
    """Raise MachineError if the disk has no room for the ids and the checkpoints.

    The ids that an earlier start left in `out` have their room: they are used, or deleted first.
    """
    first, last = text.scan.bounds(config.data)["train"]
    size = checkpoint_bytes(config, text.tokenizer.vocab_size, last - first)
    needed = int(DISK_FACTOR * size) + 4 * text.scan.size
    with machine_errors(out):
        free = shutil.disk_usage(out).free
    with contextlib.suppress(OSError):
        begun = (shared_place(RunFolder(out).tokens_path) / IDS).stat()
        free += 512 * getattr(begun, "st_blocks", 0)  # which Windows does not tell
    if free < needed:
        what = f"this run needs about {human_bytes(needed)} of disk and {human_bytes(free)} is free"
        raise MachineError(out, what, Phrase("free some space or choose another {}", OUT))
