"""What happens in a run, one record each: `kind` tells them apart in metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Record:
    """Anything that happens.

    Args:
        expert: The expert of a mixture it happened to; None outside of mixtures.
    """

    kind: ClassVar[str]
    expert: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the line of metrics.jsonl; what is None is left out."""
        return {"kind": self.kind} | {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class TrainRecord(Record):
    """A step.

    Args:
        step: Steps done, this one included.
        loss_nats: Mean loss of its batch before the update; of a counted model, on the text it
            counted; of a mixture, on the slice that its weights are fitted on.
        learning_rate: Of its update.
        grad_norm: Of its gradient, before clipping.
        chars_per_second: Characters learnt from, by the time this step took.
        weights: Of a mixture's experts.
        temperature: Of a mixture.
        seconds: Wall time since the run began, resumes included, waits between them not.
    """

    kind = "train"
    step: int
    loss_nats: float
    learning_rate: float | None = None
    grad_norm: float | None = None
    chars_per_second: float | None = None
    weights: Mapping[str, float] | None = None
    temperature: float | None = None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SkipRecord(Record):
    """A step whose update was left out, because its loss or gradient was not finite."""

    kind = "skip"
    step: int
    reason: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EvalRecord(Record):
    """An evaluation; `best` tells whether it is the lowest loss so far."""

    kind = "eval"
    step: int
    split: str = "val"
    protocol: str = "windows"
    chars: int
    loss_nats: float
    best: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SampleRecord(Record):
    """A sample."""

    kind = "sample"
    step: int
    text: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SaveRecord(Record):
    """A checkpoint. The record is written first: the checkpoint vouches for the log up to it."""

    kind = "save"
    step: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RollbackRecord(Record):
    """A return to an earlier checkpoint, `step`, to go on at a lower learning rate."""

    kind = "rollback"
    step: int
    reason: str
    rate_factor: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EndRecord(Record):
    """The end, whose checkpoint is saved."""

    kind = "end"
    step: int


@dataclass(frozen=True, kw_only=True)
class TuneRecord(Record):
    """The weights of a mixture were fitted; not in the log, mixture.json keeps more of it.

    Args:
        weights: Of the experts.
        temperature: Of their product or mean.
        loss_nats: Of the mixture on the slice.
        alone_nats: Of each expert there.
        chars: Predictions that these losses are means of.
    """

    kind = "tune"
    weights: Mapping[str, float]
    temperature: float
    loss_nats: float
    alone_nats: Mapping[str, float]
    chars: int


@dataclass(frozen=True, kw_only=True)
class CompileRecord(Record):
    """The model is about to be compiled; not in the log."""

    kind = "compile"


@dataclass(frozen=True, kw_only=True)
class NoteRecord(Record):
    """A remark for the user that is no error; not in the log."""

    kind = "note"
    text: str
