"""The output of charlm train before and after the steps; imported only when torch is needed."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charlm import evaluation
from charlm.cli import output
from charlm.cli.baselines import as_json, reached, table, worse_than_uniform
from charlm.cli.escaping import one_word
from charlm.cli.signals import StopSignals
from charlm.cli.spelling import one_line
from charlm.config.memory import human_bytes
from charlm.config.size import checkpoint_bytes, training_bytes
from charlm.errors import CharlmError, MachineError, Stopped, is_out_of_memory, number_of
from charlm.evaluation import Ladder, Score, baselines
from charlm.evaluation.ladder import FACTS, keep, kept
from charlm.evaluation.unknown import uniform_on
from charlm.lifecycle.begin import PreparedRun
from charlm.models.device import describe_device
from charlm.text.tokenizer import symbols_in_words
from charlm.training import TrainingLoop


def introduce(prepared: PreparedRun, loop: TrainingLoop, processes: int = 1) -> None:
    """Print the text, the model, the device and the run on stderr."""
    for line in _introduction(prepared, prepared.run.path, processes):
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
    length = number_of(number, unit)
    needs = f"{human_bytes(checkpoint_bytes(config, vocab, chars))} a checkpoint"
    if memory := sum(training_bytes(config, vocab).values()):  # counting takes what there is
        needs = f"{human_bytes(memory)} of memory and {needs}"
    output.result(f"length {length}, about {needs}")
    output.say("dry run: nothing was trained or kept")


def _introduction(prepared: PreparedRun, place: Path, processes: int = 1) -> Iterator[str]:
    config, vocab = prepared.config, prepared.tokenizer.vocab_size
    count = prepared.corpus.facts.get("source_files")
    files = "" if count is None else f", {number_of(count, 'file')}"
    yield f"text   {one_word(config.data.source)}{files}: {_sizes(prepared)}"
    yield f"model  {one_word(config.model.described(vocab))}"
    for name, plan in prepared.plans.items():
        yield f"plan   {f'{one_word(name)}: ' if name else ''}{plan}"
    by_hand = ", gradients by hand" if config.train.gradients == "by_hand" else ""
    each = "" if processes == 1 else f", in each of {processes} processes ({config.train.parallel})"
    yield f"device {describe_device(config.run)}{by_hand}{each}"
    yield f"run    {one_word(place)}"


def _sizes(prepared: PreparedRun) -> str:
    """Say how long the parts of a text are, and how many symbols it has."""
    data, splits = prepared.config.data, prepared.corpus.splits
    lengths = {name: part.records for name, part in splits.items()}
    unit: str = data.records if data.column is None else "records"
    if data.records == "none":
        lengths, unit = {name: len(part) for name, part in splits.items()}, output.units(data.unit)
    parts = ", ".join(f"{length:,} {name}" for name, length in lengths.items() if length)
    symbols = symbols_in_words(prepared.tokenizer)
    if data.records != "none":  # the end of a record counts as a character
        chars = sum(len(part) - 1 for part in splits.values() if len(part))
        return f"{parts} {unit}, {number_of(chars, 'character')}; {symbols}"
    return f"{parts} {unit}; {symbols}"


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


def ending_notes(prepared: PreparedRun, loop: TrainingLoop, begun: int) -> Iterator[str]:
    """Yield remarks on a run that has ended and was begun, or resumed, at step `begun`."""
    finished = prepared.checkpoint is not None and loop.state.step == begun
    if finished:
        yield nothing_left(loop)
    if not loop.state.step and prepared.config.train.minutes:
        yield "the budget ended before the first step; it includes start-up, so allow more"
    elif not finished and (broken := broken_plan(prepared, loop)):
        yield broken


def nothing_left(loop: TrainingLoop) -> str:
    """Say that a run was finished before it was resumed, and how to train on."""
    train, step = loop.config.train, loop.state.step
    done = f"nothing was left to do: this run was finished at step {step:,}"
    if loop.config.model.trained_by != "gradients":
        return f"{done}; a model of this type learns in one step"
    if train.minutes is None and step >= train.max_steps:
        more = 2 * (train.max_steps or 1)
        return (
            f"{done}; to train on, raise the number: charlm train --resume train.max_steps={more}"
        )
    if train.minutes is not None:
        return f"{done}; to train on, raise train.minutes={train.minutes:g}"
    return f"{done}, by train.patience={train.patience}; to train on, raise it"


LEARNED = 0.9  # of the loss of guessing; a model below that has learned something of the text
KEPT = 0.7  # share of the planned updates below which a plan was not kept
LATE = 1.05  # times the budget


def broken_plan(prepared: PreparedRun, loop: TrainingLoop) -> str | None:
    """Return why a budget did not buy what was planned, or was not kept; None if all went well."""
    done, said = loop.learner.updates(), []
    for name, plan in prepared.plans.items():
        if done.get(name, plan.updates) < KEPT * plan.updates:
            of = f" of {one_word(name)}" if name else ""
            were = number_of(plan.updates, f"update{of} was", f"updates{of} were")
            said.append(f"about {were} planned and {done[name]:,} done")
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
    guessed = uniform_on(prepared.corpus.splits["val"], prepared.tokenizer.vocab_size)
    if last is not None and (worse := worse_than_uniform(last, guessed)):
        why = "is the text sorted, or random?"
        if best is not None and best < LEARNED * guessed:
            early = f"{best:.4f} at step {state.best_step}, before the training part was learned by heart"
            why = f"it was {early}; train for fewer steps, or on a longer text"
        output.note(f"the validation loss {last:.4f} is {worse}; {why}")
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
        steps = f"trained {number_of(state.step, 'step')}"
        output.result(f"{steps}; no validation part to score (data.val_fraction)")
        return
    bits = f"{Score(1, last).bits_per_symbol:.3f} bits per {output.one(unit)}"
    output.result(f"validation loss  {last:.4f} nats  ({bits}, step {state.step})")
    if state.best_step != state.step:
        output.result(f"best             {best:.4f} nats  (step {state.best_step})")
    if ladder:
        output.result(f"reached          {reached(ladder, best, unit)}")
