"""charlm train: from a configuration to a run folder."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.config import named_config
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import Stopped, UsageError

if TYPE_CHECKING:
    from charlm.config import Config
    from charlm.lifecycle.begin import PreparedRun
    from charlm.runs import RunFolder
    from charlm.runs.records import Record
    from charlm.training import TrainingLoop


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Override keys, such as train.max_steps=500."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", "-c", metavar="FILE|PRESET", help="A YAML file or a preset's name."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder. Default: the next free name under runs/.", readable=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, or the newest run.")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", readable=False, help="Start from the best weights of another run."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Budget of wall time, instead of train.max_steps."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Override run.seed.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Override run.device: auto, cpu, cuda, mps.")
    ] = None,
    allow_new_data: Annotated[
        bool, typer.Option("--allow-new-data", help="With --resume: accept a changed text.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the full configuration and exit.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> int:
    """Train a model and save it in a run folder.

    For example: charlm train --config gpt data.source=my.txt --minutes 5
    """
    began = time.perf_counter()
    if resume and init_from:
        raise UsageError(
            "--resume with --init-from",
            "one continues a run, the other starts a new one from another's weights",
            "choose one",
        )
    options = {
        "train.minutes": minutes,
        "train.init_from": init_from,
        "run.seed": seed,
        "run.device": device,
    }
    changes = [*(overrides or [])]
    changes += [f"{key}={value}" for key, value in options.items() if value is not None]
    _refuse_half_set_launch()
    load_torch()
    with StopSignals() as stop:
        asked = _Asked(config, changes, out, json, quiet or json, began, stop)
        with stop.at_once():
            from charlm.lifecycle.resume import resumed_config
            from charlm.runs import find_run

            run = find_run(out) if resume else None
            checked = resumed_config(run, config, changes) if run else named_config(config, changes)
        if print_config:
            from charlm.config import dump_yaml

            output.result(dump_yaml(checked.model_dump()).rstrip())
            return 0
        ready = _resumed(asked, checked, run, allow_new_data) if run else _begun(asked, checked)
        with ready as prepared:
            return _train(asked, prepared)


@dataclass(frozen=True)
class _Asked:
    """The options of the command.

    Args:
        config: --config.
        changes: KEY=VALUE, and options that stand for a key.
        out: --out.
        json: --json.
        quiet: Whether to print only notes on stderr.
        began: When the command started, by `time.perf_counter`; a budget of wall time starts there.
        stop: The signals.
    """

    config: str | None
    changes: list[str]
    out: Path | None
    json: bool
    quiet: bool
    began: float
    stop: StopSignals


@contextmanager
def _resumed(
    asked: _Asked, config: "Config", run: "RunFolder", allow_new_data: bool
) -> Iterator["PreparedRun"]:
    """Lock a run and open it, to continue it."""
    from charlm.lifecycle.resume import open_run
    from charlm.storage import folder_lock

    with folder_lock(run.path):
        with asked.stop.at_once(), output.bytes_bar(asked.quiet, asked.stop.requested) as progress:
            prepared = open_run(config, run, progress, allow_new_data=allow_new_data)
        yield prepared


@contextmanager
def _begun(asked: _Asked, config: "Config") -> Iterator["PreparedRun"]:
    """Read the text and plan, then make, lock and fill the folder of a new run."""
    from charlm.lifecycle.begin import (
        check_new_folder,
        create_run,
        free_folder,
        new_folder_for_run,
        plan_run,
        prepare_text,
        take_back_unless_begun,
    )
    from charlm.runs import next_free_name

    quiet, stop = asked.quiet, asked.stop
    name = Path(asked.config or "run").stem
    chosen = asked.out or (Path(config.run.out) if config.run.out else None)
    check_new_folder(chosen or next_free_name(name))
    with stop.at_once(), output.bytes_bar(quiet, stop.requested) as progress:
        text = prepare_text(config, progress, output.download_bar(quiet, stop.requested))
        minutes = config.train.minutes
        if minutes and not quiet and any(one.train.plan for one in config.training_runs().values()):
            output.say(f"benchmarking model sizes for the {minutes:g}-minute budget")
        config, plans = plan_run(config, text, asked.changes, time.perf_counter() - asked.began)
    place = nullcontext(chosen) if chosen else free_folder(name)
    with place as folder, new_folder_for_run(folder):
        with output.bytes_bar(quiet, stop.requested) as progress:
            prepared = create_run(config, folder, text, progress)
        prepared.plans = plans
        try:
            yield prepared
        except Exception:
            take_back_unless_begun(prepared.run)
            raise


def _train(asked: _Asked, prepared: "PreparedRun") -> int:
    from charlm.cli.training_bar import TrainingBar, remark
    from charlm.cli.training_report import conclude, introduce, score_baselines
    from charlm.lifecycle.resume import commit_resume
    from charlm.models import build_model
    from charlm.training import training_loop

    config, stop, quiet = prepared.config, asked.stop, asked.quiet
    for text in prepared.notes:
        output.note(text)
    loop = training_loop(
        config,
        prepared.run,
        prepared.corpus,
        prepared.tokenizer,
        build_model(config.model, prepared.tokenizer.vocab_size, config.run.seed),
        checkpoint=prepared.checkpoint,
        should_stop=stop.requested,
        should_save=stop.save_requested,
        began=asked.began,
    )
    commit_resume(prepared)
    if not quiet:
        introduce(prepared, loop)
    # Baselines count towards a budget of wall time, so they come before the first step then.
    early = not quiet or config.train.minutes is not None
    ladder = score_baselines(prepared, loop, stop, quiet) if early else None
    with nullcontext() if quiet else TrainingBar(loop) as bar:
        for record in _records(loop, stop):
            if said := remark(record):
                output.note(said)
            elif bar:
                bar.show(record)
    run = shlex.quote(str(prepared.run.path))
    if loop.stopped:
        done = f" at step {loop.state.step}, saved" if loop.saved_step >= 0 else ""
        output.say(f"stopped{done}; continue with: charlm train --resume --out {run}")
        return stop.exit_code
    if not loop.state.step and config.train.minutes:
        output.note("the budget ended before the first step; it includes start-up, so allow more")
    if not early:
        ladder = score_baselines(prepared, loop, stop, quiet)
    conclude(prepared, loop, ladder, asked.json)
    if not early and stop.requested():
        output.note("stopped before the baselines were scored; the run is finished")
        return stop.exit_code
    if not quiet:
        output.say(f"{loop.state.seconds:.0f} s; sample from it: charlm sample --run {run}")
    return 0


def _records(loop: "TrainingLoop", stop: StopSignals) -> Iterator["Record"]:
    """Yield the records of training; a signal ends the compilation of a model at once."""
    from charlm.runs.records import CompileRecord

    records = loop.records()
    for record in records:
        yield record
        if not isinstance(record, CompileRecord):
            continue
        try:
            with stop.at_once():
                following = next(records, None)
        except Stopped:  # all steps were saved before the compilation
            loop.stopped = True
            return
        if following:
            yield following


def _refuse_half_set_launch() -> None:
    """Refuse an environment with only some of torchrun's variables."""
    import os

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in names if os.environ.get(name)]
    missing = [name for name in names if name not in present]
    if ("RANK" in present or "WORLD_SIZE" in present) and missing:
        raise UsageError(
            "environment",
            f"{', '.join(present)} set but not {', '.join(missing)}",
            "unset them, or start through torchrun",
        )
    size = os.environ.get("WORLD_SIZE") or "1"
    if size != "1":
        raise UsageError(
            "environment",
            f"WORLD_SIZE is {size!r}, but charlm trains in one process",
            "unset it",
        )
