"""What is printed during training: a bar, a line for each evaluation, notes."""

import sys
from typing import TYPE_CHECKING

from charlm.cli import output
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

if TYPE_CHECKING:
    from charlm.training import TrainingLoop


def remark(record: Record) -> str | None:
    """Return a record's note, which is printed even with --quiet; None if it has none."""
    match record:
        case NoteRecord():
            text = record.text
        case SkipRecord():
            text = f"update skipped: {record.reason}"
        case RollbackRecord():
            text = (
                f"back to step {record.step}, with {record.rate_factor:g} of the learning rate: "
                f"{record.reason}"
            )
        case _:
            return None
    return f"{record.expert}: {text}" if record.expert else text


class TrainingBar:
    """A tqdm bar on stderr, and a line for each evaluation.

    Args:
        loop: What trains.
    """

    def __init__(self, loop: "TrainingLoop") -> None:
        from tqdm import tqdm

        self.clock = loop.clock
        steps, budget = loop.learner.total_steps, loop.clock.budget
        self.timed = budget is not None
        self.width = len(str(steps))
        self.loss: float | None = None
        self.expert: str | None = None
        self.bar = tqdm(
            total=steps if budget is None else round(budget),
            initial=int(loop.state.seconds) if self.timed else loop.state.step,
            unit="s" if self.timed else "step",
            file=sys.stderr,
            disable=None,  # drawn on a terminal only
            dynamic_ncols=True,
            leave=False,
        )

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *_: object) -> None:
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
                    f"  {record.seconds:6.1f} s{'  *' if record.best else ''}"
                )
            case TuneRecord():
                for what, found in (("alone", record.alone_nats), ("weight", record.weights)):
                    shares = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
                    output.say(f"{what:<6} {shares}")
                output.say(
                    f"joined {record.loss_nats:.4f} nats, temperature {record.temperature:.3f}, "
                    f"on {record.chars:,} characters at the end of the training part"
                )
            case CompileRecord():
                output.say("compiling the model (about half a minute, less the next time)")
            case SampleRecord():
                output.say(f"{'':{self.width + 7}}{record.text.strip()[:72]!r}")

    def _move(self, record: TrainRecord) -> None:
        if record.expert != self.expert:
            self.expert, self.loss = record.expert, None
        # A running mean over about the last 20 steps: the loss of single batches is noisy.
        loss = record.loss_nats
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        name = f"{self.expert} " if self.expert else ""
        speed = record.chars_per_second
        pace = f", {speed:,.0f} chars/s" if speed else ""
        self.bar.set_postfix_str(f"{name}loss {self.loss:.3f}{pace}", refresh=False)
        self.bar.update(max(0, int(self.clock.seconds()) - self.bar.n) if self.timed else 1)
