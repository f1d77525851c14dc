"""Before going on: an old run folder, and what may differ from when it was begun.

Whatever can be refused is refused before anything in the folder is changed.
"""

import os
import reprlib
from collections.abc import Sequence
from pathlib import Path

from charlm.config import Config, changed, dump_yaml, load_config
from charlm.config.keys import leaves
from charlm.config.size import check_memory
from charlm.errors import CheckpointError, DataError, MachineError
from charlm.lifecycle.begin import (
    PreparedRun,
    PreparedText,
    Progress,
    check_prompt,
    refuse_short,
)
from charlm.models.device import choose_device
from charlm.runs import RunFolder
from charlm.runs.belongs import FIXED, Belongs, begun_with, belongs_to, is_moved
from charlm.runs.folder import check_log
from charlm.runs.mixture import OWN_PLACE, strange_places
from charlm.runs.state import TrainingState, drift, newest_sound, read_state
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder, remove_leftovers
from charlm.text import Corpus, encode_corpus, load_tokenizer, open_corpus, open_source, scan_text
from charlm.training.compiling import check_compiler
from charlm.training.plan import given_keys, keep_plan

_MEND = "restore it"


def resumed_config(run: RunFolder, given: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration to go on with: the run's own, with overrides.

    Args:
        run: The run to resume.
        given: The --config that was passed too, if any: it must ask for the same model and data.
        overrides: KEY=VALUE; only `train`, `eval`, `sample` and `run` may change, and where the text
            and the runs of experts lie.

    Raises:
        CheckpointError: The model or the data differ from the run's, or it is part of a mixture.
        UsageError: An override is wrong.
    """
    _refuse_expert(run)
    own = _as_it_was(run.read_config())
    if given is None:
        config = _as_it_was(run.read_config(overrides))
    else:
        config = _with_experts_of(own, load_config(given, overrides))
        config = keep_plan(config, own, given_keys(overrides))
        if config.run.dtype == "auto":
            run_section = config.run.model_copy(update={"dtype": own.run.dtype})
            config = config.model_copy(update={"run": run_section})
    for section in ("model", "data"):
        theirs, ours = (dict(leaves(getattr(c, section).model_dump())) for c in (own, config))
        for key in {**theirs, **ours}:
            then, now = theirs.get(key), ours.get(key)
            if then != now and not is_moved(f"{section}.{key}", then, now):
                raise CheckpointError(
                    f"{run.path}: {section}.{key}: the configuration says {now!r}, the run was made "
                    f"with {then!r}; start a new run for a change"
                )
    if config.train.init_from is None:
        train = config.train.model_copy(update={"init_from": own.train.init_from})
        config = config.model_copy(update={"train": train})
    for whole in FIXED:
        key = whole.removeprefix("train.")
        if getattr(own.train, key) != getattr(config.train, key):
            raise CheckpointError(
                f"{run.path}: {whole}: the configuration says {getattr(config.train, key)!r}, "
                f"the run was made with {getattr(own.train, key)!r}; start a new run for a change"
            )
    return changed(config, where=f"{given}, as planned" if given else str(run.config))


def _refuse_expert(run: RunFolder) -> None:
    """Refuse a run that is trained as a part of a mixture: alone it would not stop where it has to.

    Raises:
        CheckpointError: It is one.
    """
    path = Path(os.path.abspath(run.path))
    mixture = RunFolder(path.parent.parent)
    inside = path.parent.name == "experts" and mixture.exists()
    if inside and path.name in mixture.read_config().model.members():
        raise CheckpointError(
            f"{run.path}: is trained as an expert of {mixture.path}; go on with that one"
        )


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
    known, asked = own.model.members(), config.model.members()
    experts = {name: asked[name] for name in (*known, *asked) if name in asked}
    for name, expert in experts.items():
        if expert.run and not expert.model and name in known:
            experts[name] = expert.model_copy(update={"model": known[name].model})
    return config.model_copy(update={"model": config.model.with_members(experts)})


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
    _refuse_strange_places(config, run)
    remove_leftovers(run.path)
    own = _as_it_was(run.read_config())
    tokenizer = load_tokenizer(run.tokenizer)
    check_prompt(config, tokenizer)
    check_memory(config, tokenizer.vocab_size)
    corpus = open_corpus(run.tokens)
    prepared = PreparedRun(config, run, corpus, tokenizer)
    prepared.checkpoint = newest_sound(run, prepared.notes)
    prepared.notes += _what_differs(prepared, own)
    if not prepared.checkpoint and not config.model.members():
        prepared.notes.append("no checkpoint yet: starting at step 0")
    moved = own.data.source != config.data.source
    text, differs = _current_text(config, prepared, progress, moved=moved), False
    if text:
        differs = text.scan.sha256 != corpus.facts["source_sha256"]
        if differs and not allow_new_data:
            raise DataError(
                f"{config.data.source}: changed since this run began (SHA-256 "
                f"{text.scan.sha256[:12]}... now, {str(corpus.facts['source_sha256'])[:12]}... "
                "then); restore it, or go on with --allow-new-data"
            )
        _refuse_strange_symbols(run, text)
    _kept(prepared).check(config, tokenizer.to_json())
    if text and differs:
        prepared.corpus = _encode_anew(config, prepared, text, progress)
    return prepared


def _kept(prepared: PreparedRun) -> Belongs:
    """Return what the weights that a run goes on with belong to."""
    checkpoint = prepared.checkpoint
    return belongs_to(checkpoint) if checkpoint else begun_with(prepared.run)


def _what_differs(prepared: PreparedRun, own: Config) -> list[str]:
    """Say what is otherwise than when a run was saved, one remark for each kind.

    Raises:
        CheckpointError: What may not change did, in its config.yaml or in its log.
    """
    run, checkpoint, state = prepared.run, prepared.checkpoint, TrainingState()
    if checkpoint:
        state = read_state(checkpoint.path, checkpoint.step)
        check_log(run.metrics, state.metrics_bytes)
    changes = _kept(prepared).differences(own, prepared.config)
    notes = []
    otherwise = drift(checkpoint) if checkpoint else []
    if "run.dtype" in changes:
        before, now = changes.pop("run.dtype")
        otherwise.append(f"dtype was {before}, now {now}")
    if otherwise:
        notes.append(f"not bit-exact: {'; '.join(otherwise)}")
    if changes:
        shown = reprlib.repr
        told = (f"{key} {shown(before)} -> {shown(now)}" for key, (before, now) in changes.items())
        notes.append(f"changed from here on: {'; '.join(told)}")
    if state.rate_factor < 1:
        notes.append(
            f"steps were not finite: the learning rate is {state.rate_factor:g} of what is asked for"
        )
    return notes


def _encode_anew(
    config: Config, prepared: PreparedRun, text: PreparedText, progress: Progress
) -> Corpus:
    """Put a text that changed in the place of the run's own copy."""
    refuse_short(text.scan.size, config)
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


def _refuse_strange_symbols(run: RunFolder, text: PreparedText) -> None:
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


def _refuse_strange_places(config: Config, run: RunFolder) -> None:
    """Refuse a run that would be written to in another place, or where writing waits for ever.

    Raises:
        CheckpointError: One of its own files, or of its experts, is a link, a pipe or a device.
    """
    for path, kind in strange_places(config, run):
        raise CheckpointError(f"{path}: is {kind}; {OWN_PLACE}")


def commit_resume(prepared: PreparedRun) -> None:
    """Write down what a resumed run goes on with, once nothing can refuse it any more.

    Checkpoints after the one it goes on from are damaged and would be taken for newer than what
    comes now: they are set aside.

    Raises:
        MachineError: The disk or its permissions refuse.
    """
    run, config = prepared.run, prepared.config
    with machine_errors(run.path):
        make_folder(run.path / "checkpoints")
    run.set_aside_after(prepared.checkpoint.step if prepared.checkpoint else -1)
    if config != run.read_config():
        write_file(run.config, dump_yaml(config.model_dump()).encode())


def _current_text(
    config: Config, prepared: PreparedRun, progress: Progress, *, moved: bool
) -> PreparedText | None:
    """Read the text of a run once more; None where that is not there any more.

    Args:
        config: What is gone on with.
        prepared: The run.
        progress: Told of what was read.
        moved: Whether it was said to be in another place than before, so that it has to be there.

    Raises:
        DataError: It is there and cannot be what the run was begun with.
    """
    name = config.data.source
    if name == "-":
        return None  # standard input is gone; the ids of what it was are in the run
    source = None
    try:
        source = open_source(name)
        scan = scan_text(source, config.data, lambda read: progress("checking", read))
    except (DataError, MachineError) as error:
        if moved:
            raise
        if source and isinstance(error, DataError):
            raise DataError(
                f"{str(error).rpartition('; ')[0]}: changed since this run began; restore it, or move "
                "it away to go on with the run's own copy"
            ) from None
        prepared.notes.append(f"{name}: no longer readable; using the run's own copy")
        return None
    return PreparedText(source, scan, prepared.tokenizer)
