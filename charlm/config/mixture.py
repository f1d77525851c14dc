"""A mixture: experts, each trained on its own, whose predictions are combined."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_serializer

from charlm.config.base import AnyExpert, ModelConfig, Part
from charlm.config.context_mixing import DEFAULT, Contexts, Mebibytes
from charlm.config.models import CountedWindow
from charlm.config.sections import TrainConfig
from charlm.config.values import Number, Place, Section
from charlm.errors import Problem, number_of

AN_EXPERT = "'counts: {model: {type: ngram}}'"
OF_BITWISE = ("contexts", "memory")  # keys that no other mixture has
MIXER_BYTES = 20_000_000  # of weights, most of them those that refine its predictions


class ExpertConfig(Section):
    """One model of a mixture: taken from an earlier run, or trained for this one."""

    run: Place | None = None
    """A run folder; its best checkpoint becomes the expert."""
    model: AnyExpert | None = None
    """The model to train. With `run`, it is filled in from that run."""
    train: TrainConfig = TrainConfig()
    """How it is trained. All experts share the mixture's budget (`train.minutes`), if it has one;
    their own `minutes` are not used. An expert is not evaluated on its own."""

    def conflicts(self) -> Iterator[Problem]:  # noqa: D102
        if self.run is None and self.model is None:
            yield Problem("", "expected the key run (a run folder) or model (what to train)")
        elif self.run is None and self.model is not None:
            yield from self.model.conflicts_with(self.train)


class MixtureConfig(ModelConfig):
    """Experts whose predictions are multiplied or averaged."""

    trained_by: ClassVar = "joining"
    can_be_expert: ClassVar[bool] = False

    type: Literal["mixture"]
    """Which model this is."""
    block_size: CountedWindow = 256
    """Characters in a window when scored in windows. An expert with a shorter block always sees at
    least half of its block."""
    combine: Literal["log-linear", "linear", "gated", "bitwise"] = "log-linear"
    """`log-linear`: multiply powers of the probabilities, renormalised. `linear`: their mean.
    `gated`: log-linear, with powers that a small network chooses for each character. `bitwise`:
    context mixing (`type: context-mixing`), with the experts' probabilities of each bit as inputs."""
    contexts: Contexts = DEFAULT
    """For `bitwise`: the contexts, as in `context-mixing`."""
    memory: Mebibytes = 1024
    """For `bitwise`: the largest size of its table, in MiB."""
    tune_fraction: Annotated[float, Field(gt=0, lt=1), Number] = 0.1
    """Share of the training part, at its end, used to fit the weights and to train no expert."""
    experts: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")], ExpertConfig],
        BeforeValidator(lambda experts: {} if experts is None else experts),  # as in a section
        Field(json_schema_extra={"additionalProperties": False, "minProperties": 1}),
    ]
    """The experts by name."""

    def conflicts(self) -> Iterator[Problem]:  # noqa: D102
        if not self.experts:
            yield Problem("experts", "none", f"name at least one, such as {AN_EXPERT}")
        for key in OF_BITWISE:
            usual = type(self).model_fields[key].default
            if self.combine != "bitwise" and getattr(self, key) != usual:
                yield Problem(key, "only for a bitwise mixture", "set model.combine=bitwise")

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, dumped: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out keys of other mixtures: a run would keep defaults that a later charlm refuses."""
        found = dumped(self)
        idle = () if self.combine == "bitwise" else OF_BITWISE
        return {key: value for key, value in found.items() if key not in idle}

    def conflicts_with(self, train: TrainConfig) -> Iterator[Problem]:  # noqa: D102
        own = "each expert of a mixture has its own training"
        for key, usual in (("optimizer", "adamw"), ("gradients", "autograd")):
            if getattr(train, key) != usual:
                yield Problem(f"train.{key}", own, f"set model.experts.NAME.train.{key}")
        if train.init_from:
            mend = "name runs as its experts (model.experts.NAME.run)"
            yield Problem("train.init_from", "a mixture has no initial weights", mend)

    @property
    def kind(self) -> str:  # noqa: D102
        return "mixture (bitwise)" if self.combine == "bitwise" else self.type

    @property
    def brief(self) -> str:  # noqa: D102
        return f"mixture {self.combine}"

    def described(self, vocab_size: int) -> str:  # noqa: D102
        return f"mixture ({self.combine}) of {', '.join(self.experts)}"

    def facts(self, chars: int) -> tuple[str, list[tuple[str, str]]]:  # noqa: D102
        count = f", {number_of(self.held_back(chars), 'character')}" if chars else ""
        end = f"the last {100 * self.tune_fraction:.3g} % of the training part{count}"
        if self.combine == "bitwise":
            rows = [("contexts", f"{len(self.contexts)} beside the experts"), ("learned on", end)]
            return "experts, joined bit by bit", rows
        gate = ", a gate" if self.combine == "gated" else ""
        weights = f"{len(self.experts)}{gate} and a temperature, fitted on {end}"
        how = "by a gate" if gate else self.combine
        return f"experts, joined {how}", [("weights", weights)]

    def sizes(self) -> dict[str, Any]:
        """Return the constructor's arguments except the experts, which are models themselves."""
        sizes = {"block_size": self.block_size, "combine": self.combine}
        own = {"contexts": self.contexts, "memory": self.memory}
        return sizes | own if self.combine == "bitwise" else sizes

    def least_text(self) -> dict[str, int]:
        """Return the least text of the experts that this run trains or counts."""
        return {
            f"experts.{name}.model.{key}": chars
            for name, model in self._models().items()
            if not self.experts[name].run
            for key, chars in model.least_text().items()
        }

    def undecided(self) -> list[str]:  # noqa: D102
        models = self._models().items()
        return [f"experts.{name}.model.{key}" for name, one in models for key in one.undecided()]

    def members(self) -> Mapping[str, ExpertConfig]:  # noqa: D102
        return self.experts

    def with_members(self, experts: Mapping[str, ExpertConfig]) -> "MixtureConfig":  # noqa: D102
        return self.model_copy(update={"experts": dict(experts)})

    def held_back(self, chars: int) -> int:  # noqa: D102
        return int(chars * Fraction(str(self.tune_fraction)))

    def to_train(self, train: TrainConfig) -> dict[str, tuple[ModelConfig, TrainConfig]]:  # noqa: D102
        return {
            name: trained
            for name, expert in self.experts.items()
            if expert.run is None and expert.model is not None
            for trained in expert.model.to_train(expert.train).values()
        }

    def parts(self, vocab_size: int) -> list[Part]:
        """List the weights of each expert under its name; a run not read yet has none."""
        return [
            replace(part, name=f"{name}.{part.name}")
            for name, model in self._models().items()
            for part in model.parts(vocab_size)
        ]

    def buffer_bytes(self) -> int:  # noqa: D102
        return sum(model.buffer_bytes() for model in self._models().values())

    def table_bytes(self, vocab_size: int, chars: int) -> int:  # noqa: D102
        of_experts = (model.table_bytes(vocab_size, chars) for model in self._models().values())
        return sum(of_experts, self._own_bytes(vocab_size, chars))

    def likely_table_bytes(self, vocab_size: int, chars: int) -> int:  # noqa: D102
        models = self._models().values()
        of_experts = (model.likely_table_bytes(vocab_size, chars) for model in models)
        return sum(of_experts, self._own_bytes(vocab_size, chars))

    def _own_bytes(self, vocab_size: int, chars: int) -> int:
        """Estimate the bytes of what joins the experts: if bitwise, a text and a mixer's weights."""
        text = chars * (1 if vocab_size <= 256 else 4)
        return text + MIXER_BYTES if self.combine == "bitwise" else 0

    def _models(self) -> dict[str, ModelConfig]:
        """Return the experts whose model is known."""
        return {name: one.model for name, one in self.experts.items() if one.model is not None}
