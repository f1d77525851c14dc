"""A whole configuration."""

from collections.abc import Iterator, Mapping
from typing import Any

from charlm.config.base import TYPES, AnyModel
from charlm.config.sections import (
    SEEDS,
    AdaptConfig,
    DataConfig,
    EvalConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)
from charlm.config.values import Section
from charlm.errors import Problem


class Config(Section):
    """A whole run."""

    data: DataConfig = DataConfig()
    model: AnyModel
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    adapt: AdaptConfig = AdaptConfig()
    sample: SampleConfig = SampleConfig()
    run: RunConfig = RunConfig()

    def conflicts(self) -> Iterator[Problem]:  # noqa: D102
        yield from self.model.conflicts_with(self.train)
        trained = self.model.to_train(self.train).values()
        carried = [
            name for name, (_, t) in self.model.to_train(self.train).items() if t.carry_state
        ]
        for name in filter(None, carried):
            what = "experts read windows from anywhere in the text"
            yield Problem(f"model.experts.{name}.train.carry_state", what, "set it to false")
        if carried and self.data.records != "none":
            what = "every record begins anew, so there is no state to carry"
            yield Problem("train.carry_state", what, "set it to false, or data.records=none")
        if carried and self.run.compile is True:
            what = "true compiles a model that begins anew in each window"
            yield Problem("run.compile", what, "set train.carry_state=false, or compile=auto")
        if self.run.compile is True and any(t.gradients == "by_hand" for _, t in trained):
            what = "true is for autograd, which train.gradients: by_hand does not use"
            yield Problem("run.compile", what, "change one of them")
        if self.train.parallel != "none":
            yield from self._not_shared(self.train.parallel)

    def _not_shared(self, parallel: str) -> Iterator[Problem]:
        """Yield what several processes cannot train in this way."""
        key, train = "train.parallel", self.train
        if self.model.trained_by != "gradients":
            what = (
                f"{parallel} shares the steps of gradient descent, and {self.model.type!r} has none"
            )
            yield Problem(key, what, "leave it none")
        if train.carry_state:
            what = f"{parallel} has no process that knows the carried states of all windows"
            yield Problem(key, what, "set train.carry_state=false")
        if parallel == "ddp":
            return
        if self.model.trained_by == "gradients" and not self.model.has_blocks:
            split = " or ".join(name for name, kind in TYPES.items() if kind.has_blocks)
            what = f"fsdp2 splits a model block by block, and {self.model.type!r} has no blocks"
            yield Problem(key, what, f"set it to ddp, or use {split}")
        if self.data.records != "none":
            what = "fsdp2 needs equally many passes in each process, and records need now more, now fewer"
            yield Problem(key, what, "set it to ddp, or data.records=none")
        if train.gradients == "by_hand":
            yield Problem(
                "train.gradients", "by hand, they need all weights", "use autograd, or ddp"
            )
        if train.exact is True:
            what = "true needs the order of one tree, and fsdp2 adds up in its own"
            yield Problem("train.exact", what, "set it to auto, or train.parallel=ddp")
        if self.run.compile is True:
            what = "true compiles a whole model, and fsdp2 splits it"
            yield Problem("run.compile", what, "set it to false, or train.parallel=ddp")

    def training_runs(self) -> "dict[str, Config]":
        """Return a configuration for each model trained by gradients: "", or experts by name.

        Each expert has its own seed and so reads other windows: otherwise equal experts then make
        different errors, and their product makes fewer.
        """
        found = {}
        for i, (name, (model, train)) in enumerate(self.model.to_train(self.train).items()):
            run = self.run.model_copy(update={"seed": (self.run.seed + i) % SEEDS})
            found[name] = self.model_copy(update={"model": model, "train": train, "run": run})
        return found

    def with_training_runs(self, changed: "Mapping[str, Config]") -> "Config":
        """Return this configuration with some of its `training_runs` changed."""
        if "" in changed:
            return changed[""]
        experts = dict(self.model.members())
        for name, one in changed.items():
            experts[name] = experts[name].model_copy(
                update={"model": one.model, "train": one.train}
            )
        return self.model_copy(update={"model": self.model.with_members(experts)})


def leaves(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their full keys: `experts.gpt.train.max_steps`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= leaves(value, f"{before}{key}.") if nested else {before + key: value}
    return found
