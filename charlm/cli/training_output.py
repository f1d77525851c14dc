"""The output of charlm train; imported only when torch is needed."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from charlm import evaluation
from charlm.cli import output
from charlm.cli.baselines import as_json, reached, table, worse_than_uniform
from charlm.cli.escaping import one_word
from charlm.cli.signals import StopSignals
from charlm.cli.spelling import one_line
from charlm.config.memory import human_bytes
from charlm.config.size import checkpoint_bytes, training_bytes
from charlm.errors import CharlmError, MachineError, Stopped, is_out_of_memory
from charlm.evaluation import Ladder, Score, baselines
from charlm.evaluation.ladder import FACTS, keep, kept
from charlm.evaluation.unknown import uniform_on
from charlm.lifecycle.begin import PreparedRun
from charlm.models.device import describe_device
from charlm.runs.records import (
    CompileRecord,
    EvalRecord,
    NoteRecord,
    Record,
    RollbackRecord,
    SampleRecord,
    SkipRecord,
    TrainRecord,
    TuneRecord,
)
from charlm.training import TrainingLoop


def introduce(prepared: PreparedRun, loop: TrainingLoop) -> None:
    """Print the text, the model, the device and the run on stderr."""
    for line in _introduction(prepared, prepared.run.path):
        output.say(line)
    if loop.state.step:
        output.say(f"continuing from step {loop.state.step}")


def show_plan(prepared: PreparedRun, place: Path) -> None:
    """Print what training would do and need, on stdout."""
    config, chars = prepared.config, len(prepared.corpus.splits["train"])
    vocab = prepared.tokenizer.vocab_size
    for line in _introduction(prepared, place):
        output.result(line)
    steps = sum(one.train.max_steps for one in config.training_runs().values())
    steps += config.model.trained_by != "gradients"  # counting, or joining experts, is one step
    number, unit = (config.train.minutes, "minute") if config.train.minutes else (steps, "step")
    length = f"{number:,.15g} {unit}{'s' * (number != 1)}"
    needs = f"{human_bytes(checkpoint_bytes(config, vocab, chars))} a checkpoint"
    if memory := sum(training_bytes(config, vocab).values()):  # counting takes what there is
        needs = f"{human_bytes(memory)} of memory and {needs}"
    output.result(f"length {length}, about {needs}")
    output.say("dry run: nothing was trained or kept")


def _introduction(prepared: PreparedRun, place: Path) -> Iterator[str]:
    config, vocab = prepared.config, prepared.tokenizer.vocab_size
    count = prepared.corpus.facts.get("source_files")
    files = "" if count is None else f", {count:,} file{'s' * (count != 1)}"
    yield f"text   {one_word(config.data.source)}{files}: {_sizes(prepared)}"
    yield f"model  {one_word(config.model.described(vocab))}"
    for name, plan in prepared.plans.items():
        yield f"plan   {f'{one_word(name)}: ' if name else ''}{plan}"
    by_hand = ", gradients by hand" if config.train.gradients == "by_hand" else ""
    yield f"device {describe_device(config.run)}{by_hand}"
    yield f"run    {one_word(place)}"


def _sizes(prepared: PreparedRun) -> str:
    """Say how long the parts of a text are, and how many symbols it has."""
    data, splits = prepared.config.data, prepared.corpus.splits
    lengths = {name: part.records for name, part in splits.items()}
    unit: str = data.records
    if data.records == "none":
        lengths, unit = {name: len(part) for name, part in splits.items()}, output.units(data.unit)
    parts = ", ".join(f"{length:,} {name}" for name, length in lengths.items() if length)
    symbols = prepared.tokenizer.vocab_size
    if data.records != "none":  # whose boundary nobody sees; the end of a record counts
        chars = sum(len(part) - 1 for part in splits.values() if len(part))
        return f"{parts} {unit}, {chars:,} characters; {symbols - 1} symbols"
    return f"{parts} {unit}; {symbols} symbols"


def remark(record: Record) -> str | None:
    """Return a record's note, which is printed even with --quiet; None if it has none."""
    match record:
        case NoteRecord():
            text = record.text
        case SkipRecord():
            text = f"update skipped: {record.reason}"
        case RollbackRecord():
            rate = f"{record.rate_factor:g} of the learning rate"
            text = f"back to step {record.step}, with {rate}: {record.reason}"
        case _:
            return None
    return f"{record.expert}: {text}" if record.expert else text


TICK = 1.0  # seconds between two looks at a compilation


class TrainingBar:
    """A tqdm bar on stderr, and a line for each evaluation."""

    def __init__(self, loop: TrainingLoop) -> None:
        self.clock, self.symbols = loop.clock, loop.tokenizer.unit
        self.bitwise = loop.config.model.kind == "mixture (bitwise)"
        steps, budget = loop.learner.total_steps, loop.clock.budget
        self.timed, self.one_step = budget is not None, budget is None and steps == 1
        self.width = len(str(steps))
        self.loss: float | None = None
        self.expert: str | None = None
        loop.job.progress = self.work
        if self.one_step:  # a bar for each thing that the step does: see `work`
            self.bar = output.bar("", self.symbols.removesuffix("s"), dynamic_ncols=True)
            return
        self.bar = tqdm(
            total=steps if budget is None else round(budget),
            initial=int(loop.state.seconds) if self.timed else loop.state.step,
            unit="step",
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} s{postfix}" if self.timed else None,
            file=sys.stderr,
            disable=None,  # drawn on a terminal only
            dynamic_ncols=True,
            leave=False,
        )

    def close(self) -> None:
        """Take the bar off the terminal."""
        self.bar.close()

    def show(self, record: Record) -> None:
        """Draw one record."""
        match record:
            case TrainRecord():
                self._move(record)
            case EvalRecord():
                train = f"  train {self.loss:.4f}" if self.loss is not None else " " * 14
                output.say(
                    f"step {record.step:>{self.width}}{train}  val {record.loss_nats:.4f} nats"
                    f"  {record.seconds:6.1f} s{'  best' if record.best else ''}"
                )
            case TuneRecord():
                found = record.fitted
                self.expert, self.loss = None, found.loss_nats
                rows, before, after = {"alone": found.alone_nats}, "", ""
                if self.bitwise:  # which has no fixed weights
                    after = ", each scored before it was learned from"
                else:
                    rows["weight"] = found.weights
                    gate = "with a gate, " if found.gate else ""
                    before = f", {gate}temperature {found.temperature:.3f},"
                for what, numbers in rows.items():
                    each = ", ".join(
                        f"{one_word(name)} {value:.3f}" for name, value in numbers.items()
                    )
                    output.say(f"{what:<6} {each}")
                output.say(
                    f"joined {found.loss_nats:.4f} nats{before} on {found.chars:,} "
                    f"{output.units(self.symbols)} at the end of the training part{after}"
                )
            case CompileRecord():
                about = f"about {record.expected:.0f} s"
                said = f"cached, {about}" if record.cached else f"{about}, less the next time"
                output.say(f"compiling the model ({said})")
            case SampleRecord():
                of = f"{one_word(record.expert)} alone: " if record.expert else ""
                shown = f"{'':{self.width + 7}}{of}'{one_word(record.text.strip()[:72])}'"
                output.say(output.cut(shown, sys.stderr))

    @contextlib.contextmanager
    def compiling(self, record: CompileRecord) -> Iterator[None]:
        """Draw how long the compilation takes, on a terminal, each second while it lasts."""
        ended, began = threading.Event(), time.perf_counter()
        draw = self.bar.set_description_str if self.one_step else self.bar.set_postfix_str

        def tick() -> None:
            while not ended.wait(TICK):
                spent = time.perf_counter() - began
                draw(f"compiling, {spent:.0f} s of about {record.expected:.0f}")

        ticking = threading.Thread(target=tick, daemon=True)
        if not self.bar.disable:
            ticking.start()
        try:
            yield
        finally:
            ended.set()
            if ticking.is_alive():
                ticking.join()
            draw("")

    def work(self, what: str, done: int, total: int) -> None:
        """Draw how far a long step has come, and the time."""
        if self.bar.disable:
            return
        if not self.one_step:
            self.bar.set_postfix_str(f"{what} {done / max(1, total):.0%}", refresh=False)
            if self.timed:
                self.bar.update(max(0, int(self.clock.seconds()) - self.bar.n))
            self.bar.refresh()
            return
        if done < self.bar.n or self.bar.desc != f"{what}: ":
            self.bar.set_description(what, refresh=False)
            self.bar.reset(total)
        self.bar.update(done - self.bar.n)

    def _move(self, record: TrainRecord) -> None:
        if record.expert != self.expert:
            self.expert, self.loss = record.expert, None
        # A running mean over about the last 20 steps: the loss of single batches is noisy.
        loss = record.loss_nats
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        name = f"{one_word(self.expert)} " if self.expert else ""
        pace = (
            f", {record.chars_per_second:,.0f} {self.symbols}/s" if record.chars_per_second else ""
        )
        if self.one_step:
            return
        self.bar.set_postfix_str(f"{name}loss {self.loss:.3f}{pace}", refresh=False)
        self.bar.update(max(0, int(self.clock.seconds()) - self.bar.n) if self.timed else 1)


def score_baselines(
    prepared: PreparedRun, loop: TrainingLoop, stop: StopSignals, quiet: bool
) -> Ladder | None:
    """Score the baselines, in at most a tenth of the remaining budget, and print their table.

    They are scored by the protocol of training's evaluations, and kept in the run folder: a resumed
    run reads them there, if they were computed from the same. Return None if they are switched off,
    impossible, stopped or late, or fail: a comparison must not end a run.
    """
    val, path = prepared.corpus.splits["val"], prepared.run.baselines_path
    if not prepared.config.eval.baselines or len(val) < 2:
        return None
    asked = _asked(prepared)
    made_of = {**asked, **{key: prepared.corpus.facts[key] for key in FACTS}}
    if found := kept(path, made_of):
        _show(found, prepared, quiet, "as counted when this run began")
        return found
    ends = math.inf
    if loop.clock.budget is not None:
        left = loop.clock.left()
        # A resumed run may start in the last tenth of the budget: that is for training only.
        ends = time.perf_counter() + (0.1 * left if left > 0.1 * loop.clock.budget else 0)

    def should_stop() -> bool:
        return stop.requested() or time.perf_counter() >= ends

    try:
        ladder = evaluation.climb(
            prepared.corpus.splits["train"],
            val,
            prepared.tokenizer,
            should_stop=should_stop,
            **asked,
        )
    except Stopped:
        if not stop.requested():
            output.note(
                "no baselines: they would take over a tenth of the remaining budget; see charlm baselines"
            )
    except (MemoryError, OSError, RuntimeError, CharlmError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        reason = one_line(error) if isinstance(error, CharlmError) else str(error)
        reason = "out of memory" if is_out_of_memory(error) else reason
        output.note(f"no baselines: {reason}; eval.baselines=false leaves them out")
    else:
        with contextlib.suppress(MachineError):
            keep(ladder, path, made_of)
        _show(ladder, prepared, quiet)
        return ladder
    return None


def _asked(prepared: PreparedRun) -> dict[str, Any]:
    """Return how the baselines of a run are computed."""
    config, minutes = prepared.config, prepared.config.train.minutes
    counted = min(baselines.MAX_COUNTED, len(prepared.corpus.splits["train"]))
    if minutes is not None:  # not by a clock: the same budget gives the same baselines
        counted = min(counted, max(1, int(minutes)) << 20)
    return {
        "block_size": config.model.block_size,
        "max_chars": config.eval.max_chars,
        "max_counted": counted,
    }


def _show(ladder: Ladder, prepared: PreparedRun, quiet: bool, whence: str = "") -> None:
    """Print the table of a run's baselines on stderr."""
    if not quiet:
        for line in table(ladder, prepared.config.data.unit):
            output.say(f"  {line}")
        if whence:
            output.say(f"  {whence}")


KEPT = 0.7  # share of the planned updates below which a plan was not kept
LATE = 1.05  # times the budget


def broken_plan(prepared: PreparedRun, loop: TrainingLoop) -> str | None:
    """Return why a budget did not buy what was planned, or was not kept; None if all went well."""
    done, said = loop.learner.updates(), []
    for name, plan in prepared.plans.items():
        if done.get(name, plan.updates) < KEPT * plan.updates:
            of = f" of {one_word(name)}" if name else ""
            said.append(f"about {plan.updates:,} updates{of} were planned and {done[name]:,} done")
    budget, seconds = loop.clock.budget, loop.state.seconds
    if budget is not None and seconds > LATE * budget:
        said.append(f"the run took {round(seconds, 1):.9g} s instead of {budget:.9g}")
    if not said:
        return None
    return f"{', and '.join(said)}: other programs took time, or what was measured at the start was not typical"


def conclude(prepared: PreparedRun, loop: TrainingLoop, ladder: Ladder | None, json: bool) -> None:
    """Print the result of training and which baselines it beats."""
    state, run, best = loop.state, prepared.run.path, loop.state.best_loss_nats
    unit, last = prepared.config.data.unit, state.val_loss_nats
    guessed = uniform_on(prepared.corpus.splits["val"], vocab := prepared.tokenizer.vocab_size)
    if last is not None and (worse := worse_than_uniform(last, vocab, guessed)):
        output.note(f"the validation loss {last:.4f} is {worse}; is the text sorted, or random?")
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
                "baselines": as_json(ladder, unit)["baselines"] if ladder else None,
                "reached": reached(ladder, best, unit) if ladder and best is not None else None,
            }
        )
        return
    if last is None or best is None:
        steps = f"trained {state.step} steps"
        output.result(f"{steps}; no validation part to score (data.val_fraction)")
        return
    bits = f"{Score(1, last).bits_per_symbol:.3f} bits per {output.one(unit)}"
    output.result(f"validation loss  {last:.4f} nats  ({bits}, step {state.step})")
    if state.best_step != state.step:
        output.result(f"best             {best:.4f} nats  (step {state.best_step})")
    if ladder:
        output.result(f"reached          {reached(ladder, best, unit)}")
