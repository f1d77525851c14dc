"""charlm train: from a configuration to a run folder."""

import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import output
from charlm.cli.baselines import as_json, reached, table
from charlm.cli.config import named_config
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import CharlmError, DataError, Stopped, UsageError

if TYPE_CHECKING:
    from charlm.config import Config
    from charlm.evaluation import Ladder
    from charlm.lifecycle.begin import PreparedRun
    from charlm.runs import RunFolder
    from charlm.training.loop import Trainer


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
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest.")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", readable=False, help="Begin with the best weights of another run."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Train for this long by the clock, whatever max_steps says."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Override run.seed.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Override run.device: auto, cpu, cuda, mps.")
    ] = None,
    allow_new_data: Annotated[
        bool, typer.Option("--allow-new-data", help="With --resume: accept that the text changed.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> int:
    """Train a model and keep it in a run folder.

    For example: charlm train --config gpt data.source=my.txt --minutes 5
    """
    began = time.perf_counter()
    options = {
        "train.minutes": minutes,
        "train.init_from": init_from,
        "run.seed": seed,
        "run.device": device,
    }
    if resume and init_from:
        raise UsageError(
            "--resume goes on with a run's own weights, --init-from begins with another's; choose one"
        )
    changes = [*(overrides or [])]
    changes += [f"{key}={value}" for key, value in options.items() if value is not None]
    _refuse_half_set_launch()
    quiet = quiet or json
    load_torch()
    with StopSignals() as stop:
        try:
            with stop.at_once():
                from charlm.config import dump_yaml
                from charlm.lifecycle.resume import resumed_config
                from charlm.runs import find_run

                run = find_run(out) if resume else None
                checked = (
                    resumed_config(run, config, changes) if run else named_config(config, changes)
                )
            if print_config:
                output.result(dump_yaml(checked.model_dump()).rstrip())
                return 0
            if run:
                ready = _resumed(checked, run, allow_new_data, quiet, stop)
            else:
                ready = _begun(
                    checked, out, Path(config or "run").stem, changes, quiet, stop, began
                )
            with ready as prepared:
                return _train(prepared, json, quiet, stop, began)
        except Stopped:
            return stop.exit_code


@contextmanager
def _resumed(
    config: "Config", run: "RunFolder", allow_new_data: bool, quiet: bool, stop: StopSignals
) -> Iterator["PreparedRun"]:
    """Lock a run and open it to go on with."""
    from charlm.lifecycle.resume import open_run
    from charlm.storage import folder_lock

    with folder_lock(run.path):
        with stop.at_once(), output.bytes_bar(quiet, stop.requested) as progress:
            prepared = open_run(config, run, progress, allow_new_data=allow_new_data)
        yield prepared


@contextmanager
def _begun(
    config: "Config",
    out: Path | None,
    name: str,
    overrides: list[str],
    quiet: bool,
    stop: StopSignals,
    began: float,
) -> Iterator["PreparedRun"]:
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

    chosen = out or (Path(config.run.out) if config.run.out else None)
    check_new_folder(chosen or next_free_name(name))
    with stop.at_once(), output.bytes_bar(quiet, stop.requested) as progress:
        text = prepare_text(config, progress, output.download_bar(quiet, stop.requested))
        if (
            not quiet
            and config.train.minutes
            and any(o.train.plan for o in config.training_runs().values())
        ):
            output.say("timing a few steps of each size that the minutes may do for")
        config, plans = plan_run(config, text, overrides, time.perf_counter() - began)
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


def _train(
    prepared: "PreparedRun", json: bool, quiet: bool, stop: StopSignals, began: float
) -> int:
    from charlm.lifecycle.resume import commit_resume
    from charlm.models import build_model
    from charlm.training import trainer_for

    config = prepared.config
    for remark in prepared.notes:
        output.note(remark)
    model = build_model(config.model, prepared.tokenizer.vocab_size, config.run.seed)
    trainer = trainer_for(config)(
        config,
        prepared.run,
        prepared.corpus,
        prepared.tokenizer,
        model,
        checkpoint=prepared.checkpoint,
        should_stop=stop.requested,
        should_save=stop.save_requested,
        began=began,
    )
    commit_resume(prepared)
    if not quiet:
        _introduce(prepared, trainer)
    # A budget of minutes is to end on time, so what belongs to it comes before the first step.
    early = not quiet or config.train.minutes is not None
    ladder = _baselines(prepared, trainer, stop) if early else None
    if ladder and not quiet:
        for line in table(ladder, config.data.unit):
            output.say(f"  {line}")
        output.say(
            f"  the model's own losses, from here on, are in windows of {config.model.block_size}: "
            "with less context at the beginning of each"
        )
    with nullcontext() if quiet else _Bar(config, trainer) as bar:
        for record in _records(trainer, stop):
            said = _remark(record)
            if said:
                output.note(said)
            elif bar:
                bar.show(record)
    run = shlex.quote(str(prepared.run.path))
    if trainer.stopped:
        again = f"charlm train --resume --out {run}"
        done = f" at step {trainer.state.step}, saved" if trainer.saved_step >= 0 else ""
        output.say(f"stopped{done}; go on with: {again}")
        return stop.exit_code
    if not trainer.state.step and config.train.minutes:
        output.note("the time was over before the first step; start-up counts, allow more")
    if not early:
        ladder = _baselines(prepared, trainer, stop)
    _conclude(prepared, trainer, ladder, json)
    if not early and stop.requested():
        output.note("stopped before the baselines were scored; the run itself is finished")
        return stop.exit_code
    if not quiet:
        output.say(f"{trainer.state.seconds:.0f} s; sample from it: charlm sample --run {run}")
    return 0


def _records(trainer: "Trainer", stop: StopSignals) -> Iterator[dict[str, Any]]:
    """Yield what training yields; a signal does not wait until the model is compiled.

    Raises:
        DataError: The text ended before its end; the message says what is saved.
    """
    records = trainer.records()
    try:
        for record in records:
            yield record
            if record["kind"] != "compile":
                continue
            try:
                with stop.at_once():
                    following = next(records, None)
            except Stopped:  # every step so far was saved before the compiling
                trainer.stopped = True
                return
            if following:
                yield following
    except DataError as error:  # the run's copy of the text was cut short under our hands
        saved = f" (step {trainer.saved_step} is saved)" if trainer.saved_step >= 0 else ""
        raise DataError(f"{error}{saved}") from None


def _remark(record: dict[str, Any]) -> str | None:
    """Return what a record says to people, however quiet it is to be; None: nothing."""
    expert = f"{record['expert']}: " if "expert" in record else ""
    match record["kind"]:
        case "note":
            return f"{expert}{record['text']}"
        case "skip":
            return f"{expert}left out: {record['reason']}"
        case "rollback":
            return (
                f"{expert}back at step {record['step']}, {record['rate_factor']:g} of the learning "
                f"rate: {record['reason']}"
            )
    return None


def _introduce(prepared: "PreparedRun", trainer: "Trainer") -> None:
    from charlm.models.device import describe_device

    config, splits = prepared.config, prepared.corpus.splits
    vocab = prepared.tokenizer.vocab_size
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in splits.items() if len(part))
    output.say(
        f"text   {output.one_line(config.data.source)}: {sizes} {config.data.unit}; {vocab} symbols"
    )
    output.say(f"model  {config.model.described(vocab)}")
    for name, plan in prepared.plans.items():
        output.say(f"plan   {f'{name}: ' if name else ''}{plan}")
    by_hand = ", gradients by hand" if config.train.gradients == "by_hand" else ""
    output.say(f"device {describe_device(config.run)}{by_hand}")
    output.say(f"run    {prepared.run.path}")
    if trainer.state.step:
        output.say(f"going on from step {trainer.state.step}")


class _Bar:
    """A tqdm bar on stderr while training; one line for each evaluation."""

    def __init__(self, config: "Config", trainer: "Trainer") -> None:
        from tqdm import tqdm

        self.minutes = config.train.minutes
        self.began = trainer.began
        total = trainer.total_steps if self.minutes is None else round(self.minutes * 60)
        self.width = len(str(trainer.total_steps))
        self.loss: float | None = None
        self.expert: str | None = None
        self.bar = tqdm(
            total=total,
            initial=trainer.state.step if self.minutes is None else int(trainer.state.seconds),
            unit="step" if self.minutes is None else "s",
            file=sys.stderr,
            disable=None,  # drawn on a terminal only
            dynamic_ncols=True,
            leave=False,
        )

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, record: dict[str, Any]) -> None:
        """Draw one record."""
        if record["kind"] == "train":
            if record.get("expert") != self.expert:
                self.expert, self.loss = record.get("expert"), None
            # A running mean over about the last 20 steps: single batches jump.
            loss = record["loss_nats"]
            self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
            name = f"{self.expert} " if self.expert else ""
            speed = record.get("chars_per_second")
            pace = f", {speed:,.0f} chars/s" if speed else ""
            self.bar.set_postfix_str(f"{name}loss {self.loss:.3f}{pace}", refresh=False)
            if self.minutes is None:
                self.bar.update(1)
            else:
                self.bar.update(max(0, int(time.perf_counter() - self.began) - self.bar.n))
        elif record["kind"] == "eval":
            train = f"  train {self.loss:.4f}" if self.loss is not None else " " * 14
            star = "  *" if record["best"] else ""
            output.say(
                f"step {record['step']:>{self.width}}{train}  val {record['loss_nats']:.4f} nats"
                f"  {record['seconds']:6.1f} s{star}"
            )
        elif record["kind"] == "tune":
            for key, what in (("alone_nats", "alone"), ("weights", "weight")):
                shares = ", ".join(f"{name} {value:.3f}" for name, value in record[key].items())
                output.say(f"{what:<6} {shares}")
            output.say(
                f"joined {record['loss_nats']:.4f} nats, temperature {record['temperature']:.3f}, "
                f"on {record['chars']:,} characters at the end of the training part"
            )
        elif record["kind"] == "compile":
            output.say("compiling the model for this machine (half a minute, less the next time)")
        elif record["kind"] == "sample":
            output.say(f"{'':{self.width + 7}}{record['text'].strip()[:72]!r}")


def _baselines(prepared: "PreparedRun", trainer: "Trainer", stop: StopSignals) -> "Ladder | None":
    """Score what needs no training, in at most a tenth of the minutes that are left, if any.

    Returns:
        None if it is switched off, impossible, interrupted or too late, or fails: what is only
        there for comparison must not end a run.
    """
    from charlm.evaluation import climb

    train, val = (prepared.corpus.splits[name] for name in ("train", "val"))
    if not prepared.config.eval.baselines or len(val) < 2:
        return None
    ends = math.inf
    if prepared.config.train.minutes is not None:
        now, budget = time.perf_counter(), 60 * prepared.config.train.minutes
        left = trainer.began + budget - now
        # The last tenth, which only a resumed run begins in, is for training alone.
        ends = now + 0.1 * left if left > 0.1 * budget else now

    def should_stop() -> bool:
        return stop.requested() or time.perf_counter() >= ends

    try:
        return climb(train, val, prepared.tokenizer, should_stop=should_stop)
    except Stopped:
        if not stop.requested():
            output.note(
                "no baselines: they take over a tenth of the minutes left; see charlm baselines"
            )
    except (MemoryError, OSError, CharlmError) as error:
        reason = "out of memory" if isinstance(error, MemoryError) else error
        output.note(f"no baselines: {reason}; eval.baselines=false leaves them out")
    return None


def _conclude(
    prepared: "PreparedRun", trainer: "Trainer", ladder: "Ladder | None", json: bool
) -> None:
    """Print what came of it, beside what is reached without training."""
    from charlm.evaluation import Score

    state, run, best = trainer.state, prepared.run.path, trainer.state.best_loss_nats
    if json:
        output.result_json(
            {
                "run": str(run),
                "step": state.step,
                "loss_nats": state.val_loss_nats,
                "best_loss_nats": state.best_loss_nats,
                "best_step": state.best_step if state.best_loss_nats is not None else None,
                "counted_bigram_nats": ladder.loss_nats("bigram") if ladder else None,
                "seconds": round(state.seconds, 3),
                "baselines": as_json(ladder)["baselines"] if ladder else None,
                "reached": reached(ladder, best) if ladder and best is not None else None,
            }
        )
        return
    if state.val_loss_nats is None or state.best_loss_nats is None:
        output.result(
            f"trained {state.step} steps; no validation part to score (data.val_fraction)"
        )
    else:
        last = Score(1, state.val_loss_nats)
        output.result(
            f"validation loss  {last.loss_nats:.4f} nats  ({last.bits_per_char:.3f} bits a "
            f"character, step {state.step})"
        )
        if state.best_step != state.step:
            output.result(
                f"best             {state.best_loss_nats:.4f} nats  (step {state.best_step})"
            )
        if ladder:
            output.result(f"reached          {reached(ladder, state.best_loss_nats)}")


def _refuse_half_set_launch() -> None:
    """Notice a launcher that set some of torchrun's variables and not the others."""
    import os

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in names if os.environ.get(name)]
    missing = [name for name in names if name not in present]
    if ("RANK" in present or "WORLD_SIZE" in present) and missing:
        raise UsageError(
            f"environment: {', '.join(present)} set but not {', '.join(missing)}; unset them, or "
            "start through torchrun"
        )
    size = os.environ.get("WORLD_SIZE") or "1"
    if size != "1":
        raise UsageError(
            f"environment: WORLD_SIZE is {size!r} and this charlm trains in one process; unset it"
        )
