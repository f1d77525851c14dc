"""The output of charlm train during the steps: a bar, and a line for each evaluation."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator

from charlm.cli import output
from charlm.cli.curve import LiveCurve, has_room
from charlm.cli.escaping import one_word
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
        self.lowest = math.inf  # of the losses shown, also of a first join, which is not saved
        self.expert: str | None = None
        self.curve = LiveCurve()
        loop.job.progress = self.work
        if self.one_step:  # a bar for each thing that the step does: see `work`
            self.bar = output.bar("", self.symbols.removesuffix("s"), dynamic_ncols=True)
            return
        self.bar = output.Bar(
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
        """Take the bar off the terminal, and leave the last picture of the loss."""
        picture = self.curve.picture() if has_room() else []
        self.curve.close()
        self.bar.close()
        for line in picture:
            output.say(line)

    def show(self, record: Record) -> None:
        """Draw one record."""
        match record:
            case TrainRecord():
                self._move(record)
            case EvalRecord():
                train = f"  train {self.loss:.4f}" if self.loss is not None else " " * 14
                best = record.best and record.loss_nats < self.lowest
                self.lowest = min(self.lowest, record.loss_nats)
                output.say(
                    f"step {record.step:>{self.width}}{train}  val {record.loss_nats:.4f} nats"
                    f"  {record.seconds:6.1f} s{'  best' if best else ''}"
                )
                self.curve.evaluate(record.step, record.loss_nats)
            case TuneRecord():
                found = record.fitted
                self.expert, self.loss = None, found.loss_nats
                self.curve.clear()
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
            self.curve.clear()
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
        self.curve.train(record.step, self.loss)
