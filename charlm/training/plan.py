"""A size, batch and learning rate for a budget of wall time, on this text and this machine.

A model that is too large does not learn enough in the budget; one that is too small stops improving
early. So steps of growing sizes are timed on this machine, and the largest size wins for which
`Size.updates` fit into the budget. With many passes over the text, weight decay and dropout keep the
model from memorising it. Sizes and limits were found by trial: docs/experiments.md.
"""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter
from statistics import median
from typing import Any

import numpy as np

from charlm.config import Config
from charlm.config.memory import machine_bytes
from charlm.config.size import training_bytes
from charlm.errors import number_of
from charlm.models import build_model
from charlm.models.device import choose_device
from charlm.text import Batches, IdArray
from charlm.training.gradients import GradientLearner
from charlm.training.learner import Clock
from charlm.training.loading import load_kernels

TRIALS = 3  # timed steps of each size, after a first one that fills caches
TRAINING = 0.85  # share of the budget for updates; the rest: start-up, baselines, evaluations
TIMING = 0.02  # share of `TRAINING` that timing one size may take


@dataclass(frozen=True)
class Size:
    """A size of GPT, its training, and the fewest updates that make it worthwhile."""

    updates: int
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int
    learning_rate: float


SIZES = (
    Size(0, 2, 4, 128, 128, 12, 1e-2),
    Size(1500, 4, 4, 128, 256, 8, 1e-2),
    Size(1000, 4, 4, 192, 256, 12, 1e-2),
    Size(1500, 4, 4, 256, 256, 12, 1e-2),
    Size(2200, 4, 5, 320, 256, 12, 1e-2),  # nothing larger was tried
)

SIZED = (
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.block_size",
    "train.batch_size",
    "train.learning_rate",
)
SCHEDULED = (
    "model.dropout",
    "train.weight_decay",
    "train.warmup_steps",
    "train.eval_every",
    "train.sample_every",
)

# Passes over the training part, weight decay, dropout: the first row with no more passes counts.
REGULARISERS = ((9, 1.0, 0.1), (4, 1.0, 0.0), (2.5, 0.5, 0.0), (0, 0.2, 0.0))


@dataclass(frozen=True)
class BudgetPlan:
    """The choices for one GPT."""

    config: Config  # with the choices
    updates: int  # how many fit into the budget, about
    passes: float  # over the training part, about

    def __str__(self) -> str:
        sizes, train = self.config.model.sizes(), self.config.train
        passes = f"{self.passes:,.0f}" if self.passes >= 10 else f"{self.passes:.2g}"
        return (
            f"{number_of(sizes['n_layer'], 'layer')} of {sizes['n_embd']} channels, dropout "
            f"{sizes['dropout']:g}; about {number_of(self.updates, 'update')} of "
            f"{number_of(train.batch_size, 'window')} of "
            f"{sizes['block_size']}, {passes} passes over the text"
        )


def make_plan(
    config: Config,
    vocab_size: int,
    train_chars: int,
    overrides: Collection[str] = (),
    spent: float = 0.0,
) -> tuple[Config, dict[str, BudgetPlan]]:
    """Choose a size for each GPT with `train.plan`, if there is a budget.

    Keys in overrides (KEY=VALUE) are not changed; `spent` seconds of the budget are used already.

    Returns:
        The configuration with the choices, and the plans by name of the expert ("" if there are no
        experts).
    """
    plans: dict[str, BudgetPlan] = {}
    if config.train.minutes is None:
        return config, plans
    every = config.training_runs()
    seconds = max(0.0, config.train.minutes * 60 - spent) * TRAINING / max(1, len(every))
    for name, one in every.items():
        if _plannable(one):
            kept = _given(overrides, name)
            plans[name] = _plan_one(one, vocab_size, train_chars, seconds, kept)
    return config.with_training_runs({name: plan.config for name, plan in plans.items()}), plans


def keep_plan(config: Config, own: Config, overrides: Collection[str] = ()) -> Config:
    """Return a configuration to continue a run with, with the plan in the run's `own`.

    Keys in overrides (KEY=VALUE) are not changed.
    """
    theirs = own.training_runs() if own.train.minutes is not None else {}
    again = {}
    for name, one in config.training_runs().items():
        if name in theirs and _plannable(one) and _plannable(theirs[name]):
            then = {key: attrgetter(key)(theirs[name]) for key in (*SIZED, *SCHEDULED)}
            again[name] = _changed(one, then, _given(overrides, name))
    return config.with_training_runs(again)


def _plannable(config: Config) -> bool:
    """Tell whether a plan is wanted and the sizes were tried with this kind of model."""
    train = config.train
    tried = train.optimizer == "muon" and train.gradients == "autograd"
    return train.plan and tried and config.model.can_be_planned


def _plan_one(
    config: Config, vocab_size: int, train_chars: int, seconds: float, given: Collection[str]
) -> BudgetPlan:
    """Return the largest size that fits the time and the memory."""

    def updates_of(one: Config) -> int:
        return int(seconds / seconds_a_step(one, vocab_size, TIMING * seconds))

    best, updates = config, 0
    for size in SIZES:
        candidate, smallest = _sized(config, size, train_chars, given), size is SIZES[0]
        needed = sum(training_bytes(candidate, vocab_size).values())
        if not smallest and needed > machine_bytes() / 2:
            break
        fitting = updates_of(candidate)
        if not smallest and fitting < size.updates:
            break
        best, updates = candidate, fitting
    passes = _passes(best, updates, train_chars)
    decay, dropout = next(found for least, *found in REGULARISERS if passes >= least)
    with_dropout = _changed(best, {"model.dropout": dropout}, given)
    if with_dropout.model != best.model:  # such a step takes longer, by a tenth on a CPU
        updates = updates_of(with_dropout)
    every = max(50, updates // 5)
    schedule = {
        "train.weight_decay": decay,
        "train.warmup_steps": min(best.train.warmup_steps, updates // 10),
        "train.eval_every": every,
        "train.sample_every": every if best.train.sample_every else 0,
    }
    planned = _changed(with_dropout, schedule, given)
    return BudgetPlan(planned, updates, _passes(best, updates, train_chars))


def _passes(config: Config, updates: int, train_chars: int) -> float:
    """Return how often updates read a training part."""
    return updates * config.train.batch_size * config.model.block_size / train_chars


def seconds_a_step(config: Config, vocab_size: int, limit: float = math.inf) -> float:
    """Return the median time of a few updates on random text; none starts after `limit` seconds."""
    for _ in load_kernels(config):  # takes seconds on the first use on a machine
        pass
    model = build_model(config.model, vocab_size, config.run.seed)
    model = model.to(choose_device(config.run.device))
    block_size, batch_size = config.model.block_size, config.train.batch_size
    text = IdArray(np.random.default_rng(0).integers(vocab_size, size=8 * (block_size + 1)))
    batches = Batches(text, block_size, batch_size, config.run.seed)
    learner = GradientLearner(config, model, batches, Clock(time.perf_counter()))
    taken = []
    for _ in range(TRIALS + 1):
        started = time.perf_counter()
        learner.update(0.0)  # this learning rate cannot diverge
        taken.append(time.perf_counter() - started)
        if sum(taken) > limit:
            break
    learner.close()
    return median(taken[1:] or taken)


def _sized(config: Config, size: Size, train_chars: int, given: Collection[str]) -> Config:
    """Return a configuration of this size.

    Keys that depend on each other are kept together: channels and heads, batch and micro-batch.
    """
    kept = {*given}
    if kept & {"model.n_embd", "model.n_head"}:
        kept |= {"model.n_embd", "model.n_head"}
    if config.train.micro_batch_size is not None:
        kept.add("train.batch_size")
    if config.train.min_lr > size.learning_rate:  # the schedule falls to min_lr
        kept.add("train.learning_rate")
    if train_chars < 100 * size.block_size:  # the text may be shorter than the window
        kept.add("model.block_size")
    return _changed(config, {key: getattr(size, key.partition(".")[2]) for key in SIZED}, kept)


def _changed(config: Config, values: Mapping[str, Any], kept: Collection[str]) -> Config:
    """Return a configuration with these values by dotted key, except for the keys to keep."""
    for dotted, value in values.items():
        if dotted not in kept:
            part, _, key = dotted.partition(".")
            section = getattr(config, part).model_copy(update={key: value})
            config = config.model_copy(update={part: section})
    return config


def _given(overrides: Collection[str], name: str) -> set[str]:
    """Return the keys of KEY=VALUE overrides, an expert's without `model.experts.NAME.`."""
    before = f"model.experts.{name}." if name else ""
    keys = (override.partition("=")[0].strip() for override in overrides)
    return {key.removeprefix(before) for key in keys if key.startswith(before)}
