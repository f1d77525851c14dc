"""charlm train: from a configuration to a run folder."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.config import named_config
from charlm.cli.escaping import one_word, quoted
from charlm.cli.launch import Launch, ended_code, follow, launched
from charlm.cli.options import (
    A_RUN,
    ConfigName,
    Json,
    Overrides,
    RunDevice,
    RunSeed,
    Source,
    either,
    overridden,
)
from charlm.cli.signals import StopSignals, load_torch
from charlm.cli.spelling import one_line
from charlm.errors import CharlmError, Stopped, UsageError

if TYPE_CHECKING:
    from charlm.cli.training_bar import TrainingBar
    from charlm.config import Config
    from charlm.lifecycle.begin import PreparedRun
    from charlm.lifecycle.start import Start, Watcher
    from charlm.runs import RunFolder
    from charlm.runs.records import Record
    from charlm.text.scan import Progress
    from charlm.training import TrainingLoop


@dataclass(frozen=True)
class _Order:
    """What the command line says about a run."""

    given: str | None  # --config
    out: Path | None
    changes: list[str]  # KEY=VALUE
    quiet: bool
    stop: StopSignals
    began: float  # when the command began, by `time.perf_counter`
    launch: Launch | None  # by torchrun


def train(
    overrides: Overrides = None,
    config: ConfigName = None,
    source: Source = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            "--run",
            help="Run folder. Default: the next free name under runs/.",
            **A_RUN,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, or the newest run.")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Start from the best weights of another run.", **A_RUN),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Budget of wall time, instead of train.max_steps.")
    ] = None,
    seed: RunSeed = None,
    device: RunDevice = None,
    allow_new_data: Annotated[
        bool, typer.Option("--allow-new-data", help="With --resume: accept a changed text.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the full configuration and exit.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all and show the plan; make no run.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Then make a page about the run, report.html in its folder."),
    ] = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> int:
    """Train a model and save it in a run folder.

    For example: charlm train --config gpt data.source=my.txt --minutes 5
    """
    began = time.perf_counter()
    if resume and init_from:
        what = "one continues a run, the other starts a new one from another's weights"
        raise UsageError("--resume with --init-from", what, "choose one")
    if resume and dry_run:
        mend = "charlm verify checks an old one"
        raise UsageError("--resume with --dry-run", "there is no new run to check", mend)
    if allow_new_data and not resume:
        raise UsageError(
            "--allow-new-data", "only a run that is resumed can get new data", "add --resume"
        )
    if resume and (named := [one for one in overrides or [] if "=" not in one]):
        out = either(Path(named[0]), out, "--out")
        overrides = [one for one in overrides or [] if one != named[0]]
    overridden(overrides, {"run.out": out})  # the key is recorded, so --out does not set it
    options = {"data.source": source, "train.minutes": minutes, "train.init_from": init_from}
    changes = overridden(overrides, options | {"run.seed": seed, "run.device": device})
    launch = launched()
    if report:
        from charlm.reporting.extra import check_installed

        check_installed()
    load_torch()
    with StopSignals() as stop, launch.speaking() if launch else nullcontext():
        if launch:
            launch.watch(stop)
        if launch and launch.follows:
            if print_config:
                return 0  # the first prints it
            return follow(launch, stop, began)
        with stop.at_once():
            from charlm.config import dump_yaml
            from charlm.lifecycle.resume import resumed_config

            run = _to_resume(config, out, changes) if resume else None
            if print_config:
                asked = (
                    resumed_config(run, config, changes) if run else named_config(config, changes)
                )
                output.content(dump_yaml(asked.model_dump()).rstrip())
                return 0
            if launch and (earlier := launch.earlier_run(stop)):
                run, config, changes = earlier, None, []
        order = _Order(config, out, changes, quiet or json, stop, began, launch)
        if dry_run:
            return _try(order)
        with _resumed(order, run, allow_new_data) if run else _begun(order) as prepared:
            code = _train(order, prepared, json)
            if report and not code:
                _report(order, prepared)
            return code


def _to_resume(given: str | None, out: Path | None, changes: list[str]) -> "RunFolder":
    """Find the run to resume: that in --out, or the newest, with --config of those that it makes."""
    from charlm.runs import find_run

    if given and not out:
        named = named_config(given, changes).run.out
        return find_run(Path(named)) if named else find_run(None, name=_name_of(given))
    return find_run(out)


def _resumed(
    order: _Order, run: "RunFolder", allow_new_data: bool
) -> "AbstractContextManager[PreparedRun]":
    """Lock a run and open it."""
    from charlm.lifecycle.resume import resumed_config
    from charlm.lifecycle.start import resumed

    def resolve() -> "Config":
        config = resumed_config(run, order.given, order.changes)
        _check_launch(order, config)
        return config

    processes = order.launch.size if order.launch else 1
    return resumed(
        run, resolve, _watcher(order), allow_new_data=allow_new_data, processes=processes
    )


def _begun(order: _Order) -> "AbstractContextManager[PreparedRun]":
    """Read the text and plan, then make, lock and fill the folder of a new run."""
    from charlm.lifecycle.start import begun

    return begun(_start(order), _watcher(order))


def _start(order: _Order) -> "Start":
    from charlm.lifecycle.start import Start

    with order.stop.at_once():
        config = named_config(order.given, order.changes)
        _check_launch(order, config)
    return Start(config, _name_of(order.given), order.out, order.changes, order.began)


def _check_launch(order: _Order, config: "Config") -> None:
    """Refuse what the processes of a launch cannot train together; else find them."""
    if order.launch:
        order.launch.check(config, order.stop)


def _watcher(order: _Order) -> "Watcher":
    """Return what shows the start of a run on stderr, and stops it on a signal."""
    from charlm.lifecycle.start import Watcher

    quiet, stop = order.quiet, order.stop

    class Command(Watcher):
        def should_stop(self) -> bool:
            return stop.requested()

        def should_save(self) -> bool:
            return stop.save_requested()

        def at_once(self) -> AbstractContextManager[None]:
            return stop.at_once()

        def reading(self) -> "AbstractContextManager[Progress]":
            return output.bytes_bar(quiet, stop.requested)

        def fetching(self) -> Callable[[int, int], None]:
            return output.download_bar(quiet, stop.requested)

        def planning(self, config: "Config") -> None:
            output.load_kernels(config, quiet)
            if not quiet and any(one.train.plan for one in config.training_runs().values()):
                budget = f"{config.train.minutes:g}-minute budget"
                output.say(f"benchmarking model sizes for the {budget}")

    return Command()


def _try(order: _Order) -> int:
    """Make the run in a folder that is removed again, and show what training would do."""
    from charlm.cli.training_output import show_plan
    from charlm.lifecycle import begin
    from charlm.lifecycle.start import planned
    from charlm.runs import next_free_name

    quiet, stop = order.quiet, order.stop
    plan = planned(_start(order), _watcher(order))
    place = plan.place or next_free_name(_name_of(order.given))
    existing = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    with stop.scratch() as scratch, stop.at_once():
        with output.bytes_bar(quiet, stop.requested) as progress:
            prepared = begin.create_run(plan.config, scratch, plan.text, progress, stop.requested)
        begin.check_disk(prepared.config, existing, plan.text)
        prepared.plans = plan.plans
        for note in prepared.notes:
            output.note(note)
        show_plan(prepared, place)
    return 0


def _name_of(config: str | None) -> str:
    """Return the name of the runs that a configuration makes: that of its preset or file."""
    return Path(config or "run").stem


def _train(order: _Order, prepared: "PreparedRun", json: bool) -> int:
    from charlm.cli.training_bar import TrainingBar, remark
    from charlm.cli.training_output import conclude, ending_notes, introduce, score_baselines
    from charlm.lifecycle.resume import commit_resume
    from charlm.models import build_model
    from charlm.runs.records import SaveRecord
    from charlm.runs.requests import take_request
    from charlm.training import Job, TrainingLoop

    quiet, stop, began = order.quiet, order.stop, order.began
    config, run, tokenizer = prepared.config, prepared.run, prepared.tokenizer
    for text in prepared.notes:
        output.note(text)
    launch = order.launch or Launch(0, 1)
    if config == run.config:  # else a start after a kill would lose what the command line changes
        launch.remember(run.path)
    model = build_model(config.model, tokenizer.vocab_size, config.run.seed)

    def should_save() -> bool:
        return stop.save_requested() or take_request(run)

    parts = config, run, prepared.corpus, tokenizer, model
    job = Job(*parts, stop.requested, should_save, began, ranks=launch.ranks())
    loop = TrainingLoop(job, prepared.checkpoint)
    commit_resume(prepared)
    launch.remember(run.path)
    if not quiet:
        introduce(prepared, loop, launch.size)
    begun = loop.state.step
    # Baselines count towards a budget of wall time, so they come before the first step then.
    early = not quiet or config.train.minutes is not None
    ladder = score_baselines(prepared, loop, stop, quiet) if early else None
    if not stop.requested():
        with stop.at_once():
            output.load_kernels(config, quiet)
    launch.begin(prepared)
    with nullcontext() if quiet else closing(TrainingBar(loop)) as bar:
        for record in _records(loop, stop, bar):
            if isinstance(record, SaveRecord):
                launch.remember(run.path)
            if said := remark(record):
                output.note(said)
            elif bar:
                bar.show(record)
    job.ranks.close()
    place = quoted(str(run.path))
    if loop.stopped:
        done = f" at step {loop.state.step}, saved" if loop.saved_step >= 0 else ""
        why = "torchrun has ended; " if stop.orphaned else ""
        ending = f"{why}stopped{done}; continue with:", launch.resume_command(str(run.path))
        # A command on a line of its own can be pasted, where both would not fit into one.
        output.say(("\n" if len(" ".join(ending)) > output.width(sys.stderr) else " ").join(ending))
        return ended_code(stop) if order.launch else stop.exit_code
    for text in ending_notes(prepared, loop, begun):
        output.note(text)
    if not early:
        ladder = score_baselines(prepared, loop, stop, quiet)
    conclude(prepared, loop, ladder, json)
    if not early and stop.requested():
        output.note("stopped before the baselines were scored; the run is finished")
        return stop.exit_code
    if not quiet:
        output.say(f"{loop.state.seconds:.0f} s; sample from it: charlm sample --run {place}")
    return 0


def _report(order: _Order, prepared: "PreparedRun") -> None:
    """Make a page about the finished run; what prevents it does not undo the training."""
    from charlm.cli.report import write_page
    from charlm.reporting.opened import open_run

    place = prepared.run.report_path
    try:
        run = open_run(prepared.run, prepared.config.run.device)
        write_page([run], place, None, 0, order.stop, order.quiet)
    except CharlmError as error:
        output.note(f"no report: {one_line(error)}")
    else:
        output.say(f"report   {one_word(place)}")


def _records(
    loop: "TrainingLoop", stop: StopSignals, bar: "TrainingBar | None"
) -> Iterator["Record"]:
    """Yield the records of training; a signal ends the compilation of a model at once."""
    from charlm.runs.records import CompileRecord

    records = loop.records()
    for record in records:
        yield record
        if isinstance(record, CompileRecord):
            try:
                with bar.compiling(record) if bar else nullcontext(), stop.at_once():
                    following = next(records, None)
            except Stopped:  # all steps were saved before the compilation
                loop.stopped = True
                return
            if following:
                yield following
