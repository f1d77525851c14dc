"""Before the first step: a new run folder with its text, or an old one to go on with.

Everything that can be refused is refused before the folder is made, so a mistake leaves nothing
behind.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from charlm.config import (
    Config,
    MixtureConfig,
    NGramConfig,
    dump_yaml,
    load_config,
    read_config,
)
from charlm.config.schema import SingleModelConfig
from charlm.config.size import check_memory, checkpoint_bytes, human_bytes, trained
from charlm.errors import CheckpointError, DataError, MachineError, UsageError
from charlm.models.device import choose_device, choose_dtype
from charlm.sampling import encode_prompt
from charlm.storage import (
    OtherFormatError,
    RunFolder,
    find_run,
    folder_lock,
    machine_errors,
    read_manifest,
    refuse_locked,
    verify_folder,
    write_file,
)
from charlm.storage.atomic import is_leftover, make_folder, remove_leftovers
from charlm.storage.lock import HOLDER
from charlm.storage.run_folder import Checkpoint, read_checkpoint
from charlm.text import (
    CharTokenizer,
    Corpus,
    Scan,
    Source,
    Tokenizer,
    encode_corpus,
    load_tokenizer,
    open_corpus,
    open_source,
    scan_text,
)
from charlm.text.corpus import check_lengths, split_bounds
from charlm.training.checkpoint import drift, read_state
from charlm.training.compiling import check_compiler
from charlm.training.plan import Plan, given_keys, keep_plan, make_plan

# A save needs room for itself beside the one it replaces; the rest is for records and samples.
DISK_FACTOR = 2.2

LOCKS = (".lock", HOLDER)
Progress = Callable[[str, int], None]  # what is being done, and the bytes read since the last call


@dataclass
class PreparedText:
    """A text that was read once and found fit for the configuration."""

    source: Source
    scan: Scan
    tokenizer: Tokenizer


@dataclass
class PreparedRun:
    """A run folder with everything in it that training needs.

    Args:
        config: What is asked for, fully resolved.
        run: The folder.
        corpus: The text as ids.
        tokenizer: Its alphabet.
        checkpoint: Where to continue from; None at the beginning.
        notes: Remarks for the user that are no errors.
        plans: What was chosen for the time that is given, by the name of an expert.
    """

    config: Config
    run: RunFolder
    corpus: Corpus
    tokenizer: Tokenizer
    checkpoint: Checkpoint | None = None
    notes: list[str] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)


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
            raise UsageError(
                f"{out}: holds a run; continue it with --resume, or choose another --out"
            )
        for path in (out, *out.parents):
            if os.path.lexists(path) and not path.is_dir():
                kind = "file" if path.is_file() else "device, pipe or broken link"
                raise UsageError(f"{path}: is a {kind}; choose another --out")
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
        # A start that was killed leaves its parts, and the holder of the lock, behind.
        ours = set(LOCKS)
        if HOLDER in names:
            ours |= {"tokens", "tokenizer.json", "checkpoints"}
        if any(name not in ours and not is_leftover(name) for name in names):
            raise UsageError(f"{out}: is not empty and not a run; choose another --out")
    try:
        str(out).encode()
    except UnicodeEncodeError:  # weights could be written there, but not read again
        raise UsageError(f"{str(out)!r}: not UTF-8; choose another --out") from None


@contextlib.contextmanager
def new_folder_for_run(out: Path) -> Iterator[None]:
    """Make and lock the folder of a new run; if it is still empty in the end, it vanishes.

    Raises:
        UsageError: A run cannot begin there.
        MachineError: The disk refuses, or another process writes there.
    """
    with machine_errors(out):
        made = [path for path in (out, *out.parents) if not path.exists()]
        make_folder(out)
    try:
        with folder_lock(out):
            _check_new_folder(out)
            yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # only those that are still empty go
                path.rmdir()


def prepare_text(
    config: Config, progress: Progress, fetch: Callable[[int, int], None]
) -> PreparedText:
    """Read the text once and check that it, the model and the machine fit together.

    Raises:
        DataError: The text is missing, unreadable or too short.
        UsageError: The model does not fit into this machine's memory.
        MachineError: The text may not be read or could not be fetched, the device or a compiler
            that is asked for is absent, or this process may not use so much memory.
    """
    choose_device(config.run.device)
    check_compiler(config)
    # A mistake in sizes alone is answered before a large text is read: no text has fewer symbols.
    check_memory(config, vocab_size=1)
    source = open_source(config.data.source, fetch)
    scan = scan_text(source, config.data, lambda read: progress("reading", read))
    tokenizer = scan.tokenizer(config.data)
    _check_lengths(scan.size, config)
    check_memory(config, tokenizer.vocab_size)
    encode_prompt(tokenizer, config.sample.prompt)
    return PreparedText(source, scan, tokenizer)


def resolve_experts(config: Config, tokenizer: Tokenizer) -> Config:
    """Fill in the models of those experts of a mixture that come from runs.

    Raises:
        CheckpointError: A run is missing or damaged, is itself a mixture, or has another alphabet
            or model than is asked for.
    """
    if not isinstance(config.model, MixtureConfig):
        return config
    experts = {}
    for name, expert in config.model.experts.items():
        if expert.run:
            try:
                model = _model_of_run(expert.run, tokenizer)
            except CheckpointError as error:
                raise CheckpointError(f"model.experts.{name}.run: {error}") from None
            if expert.model not in (None, model):
                raise CheckpointError(
                    f"model.experts.{name}.model: {expert.run} has another; leave model out, it "
                    "comes from the run"
                )
            expert = expert.model_copy(update={"model": model})
        experts[name] = expert
    return config.model_copy(update={"model": config.model.model_copy(update={"experts": experts})})


def resolve_dtype(config: Config) -> Config:
    """Settle the precision of a new run, so that it goes on with the same wherever it is resumed.

    Small lessons multiply too little to gain by bfloat16, and gradients by hand are there to be
    compared: both stay in float32.
    """
    if config.run.dtype != "auto":
        return config
    gains = any(
        one.model.type == "gpt" and one.train.gradients == "autograd"
        for one in trained(config).values()
    )
    dtype = choose_dtype("auto", choose_device(config.run.device)) if gains else torch.float32
    run = config.run.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    return config.model_copy(update={"run": run})


def check_first_weights(config: Config, tokenizer: Tokenizer) -> None:
    """Refuse a run to begin from that has other weights than are needed.

    Raises:
        CheckpointError: It is missing or damaged, or has another model or alphabet.
        UsageError: A mixture is to begin from one.
    """
    if isinstance(config.model, MixtureConfig) and config.train.init_from:
        raise UsageError(
            "train.init_from: a mixture has no first weights; name runs as its experts "
            "(model.experts.NAME.run)"
        )
    for expert, one in trained(config).items():
        if one.train.init_from:
            key = f"model.experts.{expert}.train.init_from" if expert else "train.init_from"
            _check_first_weights(key, one.train.init_from, one, tokenizer)


def _check_first_weights(where: str, name: str, config: Config, tokenizer: Tokenizer) -> None:
    try:
        run = find_run(Path(name))
        theirs = run.read_config().model
        if theirs != config.model:
            ours = dict(_leaves(config.model.model_dump()))
            for key, value in _leaves(theirs.model_dump()):
                if ours.get(key) != value:
                    raise CheckpointError(
                        f"{name}: its model.{key} is {value!r}, here {ours.get(key)!r}; make them equal"
                    )
        _compare_alphabets(name, load_tokenizer(run.tokenizer), tokenizer)
        run.read("best", lambda best: None)  # verified
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _model_of_run(name: str, tokenizer: Tokenizer) -> SingleModelConfig:
    """Return the model of a run that can be an expert, its checkpoint verified."""
    run = find_run(Path(name))
    model = run.read_config().model
    if isinstance(model, MixtureConfig):
        raise CheckpointError(f"{name}: is a mixture itself; name its experts")
    _compare_alphabets(name, load_tokenizer(run.tokenizer), tokenizer)
    run.read("best", lambda best: None)  # verified
    return model


def _compare_alphabets(run: str, theirs: Tokenizer, ours: Tokenizer) -> None:
    """Refuse a run whose ids mean other characters.

    Raises:
        CheckpointError: With the first character that only one of them has.
    """
    if theirs.to_json() == ours.to_json():
        return
    if not (isinstance(theirs, CharTokenizer) and isinstance(ours, CharTokenizer)):
        raise CheckpointError(
            f"{run}: is a model of {theirs.unit}, this text is read as {ours.unit}; set data.unit"
        )
    odd = min(set(theirs.alphabet) ^ set(ours.alphabet))
    owner = "the run" if odd in theirs.alphabet else "this text"
    raise CheckpointError(
        f"{run}: has another alphabet: only {owner} has {odd!r} (U+{ord(odd):04X}); train it on "
        "this text, or the mixture on the text of the run"
    )


def _seen_notes(config: Config, corpus: Corpus) -> list[str]:
    """Say of which experts the runs have read what they are going to be judged by, one note each.

    Only a run of this very text can be told; its own copy of the text says where it was cut.
    """
    if not isinstance(config.model, MixtureConfig):
        return []
    notes = []
    train = corpus.splits["train"]
    cut = len(train) - held_back(len(train), config.model.tune_fraction)
    for name, expert in config.model.experts.items():
        try:
            theirs = read_manifest(RunFolder(Path(expert.run)).tokens) if expert.run else {}
            end = theirs["splits"]["train"][1]
        except (CheckpointError, KeyError, TypeError, IndexError):
            continue  # not from a run, or one that has lost its text
        if theirs.get("source_sha256") != corpus.facts["source_sha256"] or end <= cut:
            continue
        who = f"model.experts.{name}.run: {expert.run} has read"
        if end > len(train):
            notes.append(
                f"{who} part of what is validation here: the loss there is flattered; train it "
                "with the same data.val_fraction and data.test_fraction"
            )
        else:
            notes.append(
                f"{who} the end of the training part, on which the weights are fitted: its own is "
                "too large; given as a model instead, it is trained without that end"
            )
    return notes


def _check_lengths(size: int, config: Config) -> None:
    """Refuse a text with a part too short for what the model needs.

    Raises:
        DataError: With the part, its length, and how to mend it.
    """
    model, source = config.model, config.data.source
    bounds = split_bounds(size, config.data)
    for name, (first, last) in bounds.items():
        wanted = name == "train" or getattr(config.data, f"{name}_fraction") > 0
        if wanted and last - first < 2:  # whatever the model: one character to read, one to predict
            mend = "" if name == "train" else f" or raise data.{name}_fraction"
            raise DataError(
                f"{source}: too short: of its {size} characters {last - first} make the {name} "
                f"part, which needs 2; use a longer text{mend}"
            )
    if not isinstance(model, NGramConfig | MixtureConfig):
        check_lengths(size, config.data, model.block_size)
        return
    first, last = bounds["train"]
    models: dict[str, SingleModelConfig] = (
        {"model": model} if isinstance(model, NGramConfig) else {}
    )
    length = last - first
    if isinstance(model, MixtureConfig):
        tuned = held_back(length, model.tune_fraction)
        if tuned < 2:
            raise DataError(
                f"model.tune_fraction: {model.tune_fraction} of the {length} characters to train "
                f"on in {source} is {tuned}, too few to fit weights on; raise it or use a longer text"
            )
        length -= tuned
        models = {
            f"model.experts.{name}.model": expert.model
            for name, expert in model.experts.items()
            if expert.model and not expert.run
        }
    for key, one in models.items():
        leaf, needed = "block_size", one.block_size + 1
        if isinstance(one, NGramConfig):
            leaf, needed = "order", one.order
        if length < needed:
            raise DataError(
                f"{key}.{leaf}: needs {needed} characters to train "
                f"on and {source} leaves {length}; lower it or use a longer text"
            )


def held_back(length: int, tune_fraction: float) -> int:
    """Return how many characters at the end of a training part a mixture's weights are fitted on."""
    return int(length * Fraction(str(tune_fraction)))


def plan_run(
    config: Config, text: PreparedText, overrides: Sequence[str], spent: float = 0.0
) -> tuple[Config, dict[str, Plan]]:
    """Choose what `train.plan` leaves to the time, the text and the machine; see `make_plan`.

    Args:
        config: What is asked for.
        text: What will be read.
        overrides: KEY=VALUE; these keys stay as they are given.
        spent: Seconds of the budget that are over.

    Raises:
        UsageError: What is kept does not go with the plan, or takes more memory than there is.
        DataError: The text is too short for it.
    """
    first, last = split_bounds(text.scan.size, config.data)["train"]
    vocab_size, keys = text.tokenizer.vocab_size, given_keys(overrides)
    planned, plans = make_plan(resolve_dtype(config), vocab_size, last - first, keys, spent)
    if plans:
        planned = _checked(planned, "the plan")
        check_memory(planned, vocab_size)
        _check_lengths(text.scan.size, planned)
    return planned, plans


def _checked(config: Config, where: str) -> Config:
    """Return a configuration that was put together, once it is known that it can be read again.

    Raises:
        UsageError: It cannot: two of its values contradict each other.
    """
    return read_config(dump_yaml(config.model_dump()).encode(), where)


def create_run(config: Config, out: Path, text: PreparedText, progress: Progress) -> PreparedRun:
    """Fill a locked, empty folder: the text as ids, the alphabet, and last the configuration.

    What fails takes back what it made.

    Raises:
        CheckpointError: What it is to begin from, or a run of an expert, is missing or of another kind.
        MachineError: The disk is too small or refuses.
    """
    try:
        return _create_run(config, RunFolder(out), text, progress)
    except BaseException:
        _take_back(out)
        raise


def _take_back(out: Path) -> None:
    """Remove what a run that did not come to be has made, and nothing else."""
    for path in [out / name for name in ("tokens", "tokenizer.json", "checkpoints", *LOCKS)]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(MachineError):
        remove_leftovers(out)


def _create_run(
    config: Config, run: RunFolder, text: PreparedText, progress: Progress
) -> PreparedRun:
    out = run.path
    config = resolve_dtype(resolve_experts(config, text.tokenizer))
    check_first_weights(config, text.tokenizer)
    check_disk(config, out, text)
    remove_leftovers(out)
    corpus = encode_corpus(
        text.source,
        config.data,
        text.scan,
        text.tokenizer,
        run.tokens,
        lambda read: progress("encoding", read),
    )
    with machine_errors(out):
        make_folder(out / "checkpoints")
    write_file(run.tokenizer, text.tokenizer.to_json().encode())
    write_file(run.config, dump_yaml(config.model_dump()).encode())
    notes = [*text.scan.notes, *_seen_notes(config, corpus)]
    return PreparedRun(config, run, corpus, text.tokenizer, notes=notes)


def resumed_config(run: RunFolder, given: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration to go on with: the run's own, with overrides.

    Args:
        run: The run to resume.
        given: The --config that was passed too, if any: it must ask for the same model and data.
        overrides: KEY=VALUE; only `train`, `eval`, `sample` and `run` may change.

    Raises:
        CheckpointError: The model or the data differ from the run's.
        UsageError: An override is wrong.
    """
    own = _as_it_was(run.read_config())
    if given is None:
        config = _as_it_was(run.read_config(overrides))
    else:
        config = _with_experts_of(own, load_config(given, overrides))
        config = _checked(keep_plan(config, own, given_keys(overrides)), f"{given}, as planned")
        if config.run.dtype == "auto":
            run_section = config.run.model_copy(update={"dtype": own.run.dtype})
            config = config.model_copy(update={"run": run_section})
    for section in ("model", "data"):
        theirs, ours = (dict(_leaves(getattr(c, section).model_dump())) for c in (own, config))
        for key in {**theirs, **ours}:
            if theirs.get(key) != ours.get(key):
                raise CheckpointError(
                    f"{run.path}: {section}.{key}: the configuration says {ours.get(key)!r}, the "
                    f"run was made with {theirs.get(key)!r}; start a new run for a change"
                )
    if config.train.init_from is None:
        train = config.train.model_copy(update={"init_from": own.train.init_from})
        config = config.model_copy(update={"train": train})
    fixed = ("batch_size", "optimizer", "init_from")
    for key in fixed:
        if getattr(own.train, key) != getattr(config.train, key):
            raise CheckpointError(
                f"{run.path}: train.{key}: the configuration says {getattr(config.train, key)!r}, "
                f"the run was made with {getattr(own.train, key)!r}; start a new run for a change"
            )
    return config


def _as_it_was(config: Config) -> Config:
    """Return the configuration of a run with the precision that it was begun with.

    Runs of today say which; `auto` in one of before meant float32 on a CPU.
    """
    if config.run.dtype != "auto" or choose_device(config.run.device).type != "cpu":
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"dtype": "float32"})})


def _with_experts_of(own: Config, config: Config) -> Config:
    """Put a mixture's experts in the order of its run, and fill in the models of those from runs.

    Weights and seeds belong to an expert by its place.
    """
    if not (isinstance(config.model, MixtureConfig) and isinstance(own.model, MixtureConfig)):
        return config
    known, asked = own.model.experts, config.model.experts
    experts = {name: asked[name] for name in (*known, *asked) if name in asked}
    for name, expert in experts.items():
        if expert.run and not expert.model and name in known:
            experts[name] = expert.model_copy(update={"model": known[name].model})
    return config.model_copy(update={"model": config.model.model_copy(update={"experts": experts})})


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by their whole keys: `experts.gpt.train.max_steps`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield before + key, value


def open_run(
    config: Config, run: RunFolder, progress: Progress, *, allow_new_data: bool = False
) -> PreparedRun:
    """Open a locked run folder to go on with it.

    The text is read again where it still can be, to notice that it changed; where it is gone, the
    run's own copy of its ids serves.

    Raises:
        CheckpointError: The folder is damaged, or the text has characters that the run lacks.
        DataError: The text changed and `allow_new_data` is False.
        MachineError: The device is absent, or a compiler that is asked for.
    """
    choose_device(config.run.device)
    check_compiler(config)
    _refuse_links(run)
    remove_leftovers(run.path)
    own = _as_it_was(run.read_config())
    tokenizer = load_tokenizer(run.tokenizer)
    encode_prompt(tokenizer, config.sample.prompt)
    check_memory(config, tokenizer.vocab_size)
    corpus = open_corpus(run.tokens)
    prepared = PreparedRun(config, run, corpus, tokenizer)
    prepared.checkpoint = newest_sound(run, prepared.notes)
    if not prepared.checkpoint and not isinstance(config.model, MixtureConfig):
        prepared.notes.append("no checkpoint yet: starting at step 0")
    text = _current_text(config, prepared, progress)
    if text:
        differs = text.scan.sha256 != corpus.facts["source_sha256"]
        if differs and not allow_new_data:
            raise DataError(
                f"{config.data.source}: changed since this run began (SHA-256 "
                f"{text.scan.sha256[:12]}... now, {str(corpus.facts['source_sha256'])[:12]}... "
                "then); restore it, or go on with --allow-new-data"
            )
        _refuse_strange(run, text)
        if differs:
            prepared.corpus = _encode_anew(config, prepared, text, progress)
    if prepared.checkpoint:
        changes = drift(prepared.checkpoint)
        before = own.run.dtype
        if before != config.run.dtype:
            changes.append(f"dtype was {before}, now {config.run.dtype}")
        if changes:
            prepared.notes.append(f"not bit-exact: {'; '.join(changes)}")
    changed = _changes(own, config)
    if changed:
        prepared.notes.append(f"changed from here on: {'; '.join(changed)}")
    return prepared


def _encode_anew(
    config: Config, prepared: PreparedRun, text: PreparedText, progress: Progress
) -> Corpus:
    """Put a text that changed in the place of the run's own copy."""
    _check_lengths(text.scan.size, config)
    corpus = encode_corpus(
        text.source,
        config.data,
        text.scan,
        text.tokenizer,
        prepared.run.tokens,
        lambda read: progress("encoding", read),
    )
    prepared.notes.append(
        f"{config.data.source}: changed since this run began; going on with it, though losses "
        "before and after do not compare"
    )
    return corpus


def _refuse_strange(run: RunFolder, text: PreparedText) -> None:
    """Refuse a text with characters that the run has no ids for.

    Raises:
        CheckpointError: With the first of them.
    """
    strange = text.scan.strange_to(text.tokenizer)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise CheckpointError(
            f"{text.source.name}: {strange[0]!r} (U+{ord(strange[0]):04X}){more} not in "
            f"{run.tokenizer}, the run's alphabet; start a new run for this text"
        )


def _refuse_links(run: RunFolder) -> None:
    """Refuse a run that would be written to in another place, or where writing waits for ever.

    Raises:
        CheckpointError: One of its own files is a link, a pipe or a device.
    """
    names = ("config.yaml", "tokenizer.json", "metrics.jsonl", "mixture.json")
    for path in [run.path / name for name in (*names, "checkpoints", "samples", "experts")]:
        strange = path.name in names and path.exists() and not path.is_file()
        if path.is_symlink() or strange:
            kind = "a link" if path.is_symlink() else "no regular file"
            raise CheckpointError(f"{path}: is {kind}; put a file or folder of its own there")


def commit_resume(prepared: PreparedRun) -> None:
    """Write down what a resumed run goes on with, once nothing can refuse it any more.

    Checkpoints after the one it goes on from are damaged and would be taken for newer than what
    comes now: they are removed.

    Raises:
        MachineError: The disk or its permissions refuse.
    """
    run, config = prepared.run, prepared.config
    run.remove_after(prepared.checkpoint.step if prepared.checkpoint else -1)
    if config != run.read_config():
        write_file(run.config, dump_yaml(config.model_dump()).encode())


def _changes(before: Config, after: Config) -> list[str]:
    """Say which keys differ between two configurations of one run, one phrase each."""
    return [
        f"{section}.{key} {old!r} -> {after_keys[key]!r}"
        for section, keys in before.model_dump().items()
        for after_keys in [getattr(after, section).model_dump()]
        for key, old in keys.items()
        if old != after_keys[key]
    ]


def newest_sound(run: RunFolder, notes: list[str]) -> Checkpoint | None:
    """Return the newest checkpoint that verifies: an older one serves where a newer is damaged.

    Raises:
        OtherFormatError: The newest is of a format that this version does not read: not damaged,
            and its steps are not to be done again.
        CheckpointError: There are checkpoints, and all are damaged.
    """
    damage: CheckpointError | None = None
    for step, path in reversed(run.saved()):
        try:
            checkpoint = read_checkpoint(step, path, mend="restore it")
            verify_folder(path, mend="restore it")
            read_state(path, step)
        except OtherFormatError:
            raise
        except CheckpointError as error:
            notes.append(f"damaged, going back to an older checkpoint: {error}")
            damage = error
        else:
            return checkpoint
    if damage:
        raise CheckpointError(f"{damage} or start a new run")
    return None


def _current_text(config: Config, prepared: PreparedRun, progress: Progress) -> PreparedText | None:
    if config.data.source == "-":
        return None  # standard input is gone; the ids of what it was are in the run
    try:
        source = open_source(config.data.source)
        scan = scan_text(source, config.data, lambda read: progress("checking", read))
    except (DataError, MachineError):
        prepared.notes.append(f"{config.data.source}: no longer readable; using the run's own copy")
        return None
    return PreparedText(source, scan, prepared.tokenizer)


def check_disk(config: Config, out: Path, text: PreparedText) -> None:
    """Refuse to begin where the checkpoints will not fit.

    Raises:
        MachineError: With what is needed and what is free.
    """
    first, last = split_bounds(text.scan.size, config.data)["train"]
    size = checkpoint_bytes(config, text.tokenizer.vocab_size, last - first)
    needed = int(DISK_FACTOR * size) + 4 * text.scan.size
    with machine_errors(out):
        free = shutil.disk_usage(out).free
    if free < needed:
        raise MachineError(
            f"{out}: this run needs about {human_bytes(needed)} of disk and {human_bytes(free)} is "
            "free; free some space or choose another --out"
        )
