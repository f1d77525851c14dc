"""What is printed before and after training: the run, its baselines, its result."""

import math
import time
from typing import TYPE_CHECKING

from charlm.cli import output
from charlm.cli.baselines import as_json, reached, table
from charlm.cli.signals import StopSignals
from charlm.errors import CharlmError, Stopped

if TYPE_CHECKING:
    from charlm.config import Config
    from charlm.evaluation import Ladder
    from charlm.lifecycle.begin import PreparedRun
    from charlm.training import TrainingLoop


def introduce(prepared: "PreparedRun", loop: "TrainingLoop") -> None:
    """Print the text, the model, the device and the run on stderr."""
    from charlm.models.device import describe_device

    config, splits = prepared.config, prepared.corpus.splits
    vocab = prepared.tokenizer.vocab_size
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in splits.items() if len(part))
    output.say(
        f"text   {output.one_line(config.data.source)}: {sizes} {output.units(config.data.unit)}; "
        f"{vocab} symbols"
    )
    output.say(f"model  {config.model.described(vocab)}")
    for name, plan in prepared.plans.items():
        output.say(f"plan   {f'{name}: ' if name else ''}{plan}")
    by_hand = ", gradients by hand" if config.train.gradients == "by_hand" else ""
    output.say(f"device {describe_device(config.run)}{by_hand}")
    output.say(f"run    {prepared.run.path}")
    if loop.state.step:
        output.say(f"continuing from step {loop.state.step}")


def score_baselines(
    prepared: "PreparedRun", loop: "TrainingLoop", stop: StopSignals, quiet: bool
) -> "Ladder | None":
    """Score the baselines, in at most a tenth of the remaining budget, and print their table.

    Returns:
        None if they are switched off, impossible, stopped or late, or fail: a comparison must not
        end a run.
    """
    from charlm.evaluation import climb

    train, val = (prepared.corpus.splits[name] for name in ("train", "val"))
    if not prepared.config.eval.baselines or len(val) < 2:
        return None
    ends = math.inf
    if loop.clock.budget is not None:
        left = loop.clock.left()
        # A resumed run may start in the last tenth of the budget: that is for training only.
        ends = time.perf_counter() + (0.1 * left if left > 0.1 * loop.clock.budget else 0)

    def should_stop() -> bool:
        return stop.requested() or time.perf_counter() >= ends

    try:
        ladder = climb(train, val, prepared.tokenizer, should_stop=should_stop)
    except Stopped:
        if not stop.requested():
            output.note(
                "no baselines: they would take over a tenth of the remaining budget; see charlm baselines"
            )
    except (MemoryError, OSError, CharlmError) as error:
        reason = "out of memory" if isinstance(error, MemoryError) else error
        output.note(f"no baselines: {reason}; eval.baselines=false leaves them out")
    else:
        if not quiet:
            _show_baselines(ladder, prepared.config)
        return ladder
    return None


def _show_baselines(ladder: "Ladder", config: "Config") -> None:
    for line in table(ladder, config.data.unit):
        output.say(f"  {line}")
    output.say(
        f"  the losses of the model below are in windows of {config.model.block_size}, where the "
        "first characters have little context"
    )


def conclude(
    prepared: "PreparedRun", loop: "TrainingLoop", ladder: "Ladder | None", json: bool
) -> None:
    """Print the result of training and which baselines it beats."""
    from charlm.evaluation import Score

    state, run, best = loop.state, prepared.run.path, loop.state.best_loss_nats
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
            f"validation loss  {last.loss_nats:.4f} nats  ({last.bits_per_char:.3f} bits per "
            f"character, step {state.step})"
        )
        if state.best_step != state.step:
            output.result(
                f"best             {state.best_loss_nats:.4f} nats  (step {state.best_step})"
            )
        if ladder:
            output.result(f"reached          {reached(ladder, state.best_loss_nats)}")
