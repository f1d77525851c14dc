"""Before a run continues: check its folder, and note changes since it began.

All checks come before anything in the folder is changed.
"""

import os
import platform
import reprlib
from collections.abc import Sequence
from pathlib import Path

from charlm.config import Config, TrainConfig, changed, load_config
from charlm.config.schema import leaves
from charlm.config.size import check_memory
from charlm.errors import CheckpointError, DataError, MachineError, Phrase, Setting
from charlm.evaluation.repeats import validation_notes
from charlm.lifecycle.begin import (
    PreparedRun,
    PreparedText,
    check_prompt,
    config_file,
    refuse_short,
    with_dtype,
)
from charlm.lifecycle.orders import keep_orders
from charlm.models.device import choose_device
from charlm.runs import RunFolder
from charlm.runs.board import check_board
from charlm.runs.checkpoints import Checkpoint, set_aside
from charlm.runs.checks import RunChecks, require
from charlm.runs.provenance import is_fixed, provenance_of, provenance_of_unjoined
from charlm.runs.state import drift, read_state
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder, remove_leftovers
from charlm.text import encode_corpus, open_source, scan_text
from charlm.text.scan import Progress
from charlm.text.sources import EMBEDDED
from charlm.training.compiling import check_compiler
from charlm.training.plan import keep_plan
from charlm.training.schedule import learning_rate

RATE_JUMP = 2  # from one step to the next, above which it is noted


def resumed_config(run: RunFolder, given: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration to continue with: the run's own, with overrides.

    Args:
        run: The run to resume.
        given: The configuration named in the command, if any; its model and data must be the run's.
        overrides: KEY=VALUE; only `train`, `eval`, `sample`, `run` and the paths of the text and of
            the experts' runs may change.

    Raises:
        CheckpointError: The model or the data differ from the run's, or it is part of a mixture.
        UsageError: An override is wrong.
    """
    _refuse_expert(run)
    own, file = _with_begun_precision(run.config), str(run.config_path)
    if given is None:
        config = keep_orders(_with_begun_precision(changed(run.config, overrides, file)), own)
    else:
        config = keep_orders(_with_experts_of(own, load_config(given, overrides)), own)
        config = keep_plan(config, own, overrides)
        if config.run.dtype == "auto":
            config = with_dtype(config, own.run.dtype)
    if config.train.init_from is None:
        train = config.train.model_copy(update={"init_from": own.train.init_from})
        config = config.model_copy(update={"train": train})
    theirs, ours = (leaves(one.model_dump()) for one in (own, config))
    for key in {**theirs, **ours}:
        then, now = theirs.get(key), ours.get(key)
        if then != now and is_fixed(key, then, now):
            what = f"the configuration says {now!r}, the run was made with {then!r}"
            raise CheckpointError(f"{run.path}: {key}", what, "start a new run for a change")
    return changed(config, where=f"{given}, as planned" if given else file)


def _refuse_expert(run: RunFolder) -> None:
    """Refuse a run that belongs to a mixture: alone it would not stop in time."""
    path = Path(os.path.abspath(run.path))
    mixture = RunFolder(path.parent.parent)
    inside = path.parent.name == "experts" and mixture.exists()
    if inside and path.name in mixture.config.model.members():
        what = f"is trained as an expert of {mixture.path}"
        raise CheckpointError(run.path, what, "resume that run")


def _with_begun_precision(config: Config) -> Config:
    """Return the configuration of a run with the precision that it began with.

    New runs record it; in older ones `auto` meant float32 on a CPU.
    """
    if config.run.dtype != "auto" or choose_device(config.run.device).type != "cpu":
        return config
    return with_dtype(config, "float32")


def _with_experts_of(own: Config, config: Config) -> Config:
    """Put a mixture's experts in the order of its run, and fill in the models of those from runs.

    An expert's weight and seed depend on its place in that order.
    """
    known, asked = own.model.members(), config.model.members()
    experts = {name: asked[name] for name in (*known, *asked) if name in asked}
    for name, expert in experts.items():
        if expert.run and not expert.model and name in known:
            experts[name] = expert.model_copy(update={"model": known[name].model})
    return config.model_copy(update={"model": config.model.with_members(experts)})


def open_run(
    config: Config,
    run: RunFolder,
    progress: Progress,
    *,
    allow_new_data: bool = False,
    processes: int = 1,
) -> PreparedRun:
    """Open a locked run folder to continue it.

    The text is read again, if it is still there, to notice changes; otherwise the run's copy is used.

    Raises:
        CheckpointError: The folder is damaged, or the text has characters that the run lacks.
        DataError: The text changed and `allow_new_data` is False.
        MachineError: The device, or the requested compiler or package, is missing.
    """
    choose_device(config.run.device)
    check_compiler(config)
    check_board(config)
    sound = RunChecks(run, config=config)
    require(sound.places())
    remove_leftovers(run.path)
    check_prompt(config, run.tokenizer)
    check_memory(config, run.tokenizer.vocab_size)
    require(sound.all())
    checkpoint, notes = sound.newest(), sound.notes
    prepared = PreparedRun(config, run, sound.corpus, run.tokenizer, checkpoint, notes)
    notes += _what_differs(prepared, processes)
    if not checkpoint and not config.model.members():
        notes.append("no checkpoint yet: starting at step 0")
    older = sound.corpus.facts.get("joiner") is None  # than the key data.joiner
    text = _current_text(prepared, progress, as_before=older)
    if not text:
        return prepared
    then, now = str(sound.corpus.facts["source_sha256"]), text.scan.sha256
    if now != then and config.data.source in EMBEDDED and not allow_new_data:
        other = f"Python {platform.python_version()} has another {config.data.source} than this run"
        notes.append(f"{other}, which continues with its own copy")
        return prepared
    if now != then and not allow_new_data:
        what = f"changed since this run began (SHA-256 {now[:12]}... now, {then[:12]}... then)"
        mend = Phrase("restore it, or go on with {}", Setting("allow_new_data", True))
        raise DataError(config.data.source, what, mend)
    if now != then and older:
        text = _current_text(prepared, progress) or text
    _refuse_strange_symbols(run, text)
    if now != then:
        refuse_short(text.scan, config)
        prepared.corpus = encode_corpus(  # replaces the run's copy
            text.source, config.data, text.scan, text.tokenizer, run.tokens_path, progress
        )
        notes += validation_notes(prepared.corpus, text.tokenizer)
        what = "changed since this run began; losses before and after cannot be compared"
        notes.append(f"{config.data.source}: {what}")
    return prepared


def _what_differs(prepared: PreparedRun, processes: int) -> list[str]:
    """Note the changes since the run was saved, one note for each kind."""
    notes, otherwise, factor = [], [], 1.0
    if checkpoint := prepared.checkpoint:
        kept = provenance_of(checkpoint)
        otherwise = drift(checkpoint, prepared.config, processes)
        factor = read_state(checkpoint.path, checkpoint.step).rate_factor
    else:
        kept = provenance_of_unjoined(prepared.run)
    changes = kept.differences(_with_begun_precision(prepared.run.config), prepared.config)
    if "run.dtype" in changes:
        before, now = changes.pop("run.dtype")
        otherwise.append(f"dtype was {before}, now {now}")
    if checkpoint and (jump := _rate_jump(prepared, checkpoint)):
        notes.append(jump)
    if otherwise:
        notes.append(f"not bit-exact: {'; '.join(otherwise)}")
    if changes:
        shown = reprlib.repr
        told = (f"{key} {shown(before)} -> {shown(now)}" for key, (before, now) in changes.items())
        notes.append(f"changed from here on: {'; '.join(told)}")
    if factor < 1:
        notes.append(
            f"steps were not finite: the learning rate is {factor:g} of the configured one"
        )
    return notes


def _rate_jump(prepared: PreparedRun, checkpoint: Checkpoint) -> str | None:
    """Note that a longer schedule raises the learning rate again, which loses what was learned last."""
    if prepared.config.model.trained_by != "gradients":
        return None
    before, now = prepared.run.config.train, prepared.config.train
    state = read_state(checkpoint.path, checkpoint.step)
    if not state.step:
        return None

    def rate(train: TrainConfig, step: int) -> float:
        share = None if train.minutes is None else min(1.0, state.seconds / (60 * train.minutes))
        return state.rate_factor * learning_rate(train, step, share)

    last, following = rate(before, state.step - 1), rate(now, state.step)
    if following <= RATE_JUMP * last or now == before:
        return None
    steady = max(float(f"{last / state.rate_factor:.3g}"), before.min_lr)
    return (
        f"the learning rate rises from {last:.2g} to {following:.2g}, because the schedule is longer "
        f"now; to keep the rate, set train.schedule=constant and train.learning_rate={steady:g}"
    )


def _refuse_strange_symbols(run: RunFolder, text: PreparedText) -> None:
    """Refuse a text with characters that the run has no ids for."""
    strange = text.scan.strange_to(text.tokenizer)
    if strange and text.tokenizer.escape is None:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        odd = f"{strange[0]!r} (U+{ord(strange[0]):04X}){more}"
        what = f"{odd} not in {run.tokenizer_path}, the run's alphabet"
        raise CheckpointError(text.source.name, what, "start a new run for this text")


def commit_resume(prepared: PreparedRun) -> None:
    """Write the configuration that a resumed run continues with, after all checks.

    Checkpoints after the one it continues from are damaged and are set aside. Raise MachineError if
    the disk refuses.
    """
    run, config = prepared.run, prepared.config
    with machine_errors(run.path):
        make_folder(run.path / "checkpoints")
    run.checkpoints.clear_after(prepared.checkpoint, set_aside)
    if config != run.config:
        write_file(run.config_path, config_file(config, str(run.config_path)))


def _current_text(
    prepared: PreparedRun, progress: Progress, *, as_before: bool = False
) -> PreparedText | None:
    """Read the text of a run again; None if it is gone, but a newly given path must exist.

    `as_before`: put its files together as charlm did before it had `data.joiner`.
    """
    data, source = prepared.config.data, None
    name = data.source
    if name == "-":
        return None  # standard input cannot be read again; the run has its ids
    if as_before:
        data = data.model_copy(update={"joiner": ""})
    try:
        source = open_source(name, as_before=as_before)
        scan = scan_text(source, data, progress)
    except (DataError, MachineError) as error:
        if name != prepared.run.config.data.source:
            raise
        if source and isinstance(error, DataError):
            mend = "restore it, or move it away to go on with the run's own copy"
            what = f"{error.what}: changed since this run began"
            raise error.replace(what=what, mend=mend) from None
        prepared.notes.append(f"{name}: no longer readable; using the run's own copy")
        return None
    return PreparedText(source, scan, prepared.tokenizer)
