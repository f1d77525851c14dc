"""Keys that give way: values that nobody asked for follow the ones that somebody did.

A preset gives a warm-up of 100 updates, which contradicts `train.max_steps=20`. It was chosen for the
preset's own length, so it follows. A value from KEY=VALUE or from the user's own file never
does: a contradiction between two of those is refused.
"""

from collections.abc import Iterator
from typing import Any

from charlm.config.base import TYPES
from charlm.config.problems import EXPERTS, experts_of
from charlm.config.sections import TrainConfig
from charlm.config.values import number
from charlm.config.yaml_file import Document

# What one may set for a mixture or a counted model, which do no updates of their own.
_OF_ANY_MODEL = {"minutes", "init_from", "optimizer", "gradients", "sample_every", "sample_chars"}


class Settling:
    """One configuration, before it is checked; `preset`: its file is not the user's own."""

    def __init__(self, document: Document, preset: bool) -> None:
        self.document = document
        self.preset = preset

    def notes(self) -> Iterator[str]:
        """Change the keys that give way; yield a line for each."""
        if not isinstance(self.document.value, dict):
            return
        kind = TYPES.get(str(self.document.at(["model", "type"])))
        for path in (["train"], *([*EXPERTS, name, "train"] for name in experts_of(self.document))):
            changes = [*self._training(path)]
            if path != ["train"] or (kind and kind.trained_by == "gradients"):
                yield from changes
        yield from self._style(["model"])
        for name in experts_of(self.document):
            yield from self._style([*EXPERTS, name, "model"])

    def _training(self, path: list[str]) -> Iterator[str]:
        steps, warmup = self._number(path, "max_steps"), self._number(path, "warmup_steps")
        timed = self._number(path, "minutes")
        if warmup > steps >= 0 and not timed:
            what = f"a tenth of max_steps {steps:g}"
            yield from self._set(path, "warmup_steps", int(steps) // 10, what)
        rate, least = self._number(path, "learning_rate"), self._number(path, "min_lr")
        if least > rate > 0:
            yield from self._set(path, "min_lr", rate / 10, f"a tenth of learning_rate {rate:g}")
        started = self.document.at([*path, "init_from"]) is not None
        if timed and started and self.document.at([*path, "plan"]) is True:
            yield from self._set(path, "plan", False, "because init_from has a size already")

        carried = self.document.at([*path, "carry_state"]) is True
        if carried and self.document.at(["data", "records"]) not in (None, "none"):
            yield from self._set(path, "carry_state", False, "because every record begins anew")

    def _style(self, path: list[str]) -> Iterator[str]:
        longest = self.document.at([*path, "n_gram"])
        if self.document.at([*path, "style"]) == "gpt2" and longest not in (None, 1, "1"):
            yield from self._set(path, "n_gram", 1, "because style gpt2 has no such embeddings")

    def _number(self, path: list[str], key: str) -> float:
        """Return the value of a key of `train`; 0 where there is none, or no number."""
        value = self.document.at([*path, key])
        if value is None:
            value = TrainConfig.model_fields[key].default
        try:
            return number(value)
        except ValueError:  # null, or a mistake that is reported when the key is checked
            return 0.0

    def _set(self, path: list[str], key: str, value: Any, why: str) -> Iterator[str]:
        """Change a key, unless the user gave it."""
        dotted = ".".join([*path, key])
        section = self.document.value
        for name in path:
            section = section.setdefault(name, {}) if isinstance(section, dict) else None
        given = dotted in self.document.overrides
        given = given or (not self.preset and dotted in self.document.lines)
        if given or not isinstance(section, dict):
            return
        usual = self.document.where if dotted in self.document.lines else "the default"
        was = section[key] if key in section else TrainConfig.model_fields[key].default
        section[key] = value if isinstance(value, bool) else f"{value:g}"
        yield f"{dotted} is {_shown(value)}, {why} ({usual} has {_shown(was)})"


def without_effect(document: Document) -> Iterator[str]:
    """Yield a line if overrides set how `train` updates a model that does no updates."""
    kind = TYPES.get(str(document.at(["model", "type"])))
    if kind is None or kind.trained_by == "gradients":
        return
    keys = [key for key in document.overrides if key.startswith("train.")]
    updating = [key for key in keys if key.removeprefix("train.") not in _OF_ANY_MODEL]
    if updating:
        own = "it is counted in one step"
        if experts := [n for n, one in experts_of(document).items() if "train" in (one or {})]:
            own = f"each expert has its own, such as model.experts.{experts[0]}.{updating[0]}"
        yield f"no effect on model {document.at(['model', 'type'])!r}: {', '.join(updating)}; {own}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{float(value):g}"
