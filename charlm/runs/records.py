"""What happens in a run, one record each. In metrics.jsonl `kind` tells them apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Record:
    """Anything that happens: outside of mixtures `expert` is None.

    Most have a `step`, and `seconds`: wall time since the run began, without waits between resumes.
    """

    kind: ClassVar[str]
    expert: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the line of metrics.jsonl; what is None is left out."""
        return {"kind": self.kind} | {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class TrainRecord(Record):
    """A step.

    Its loss is that of its batch before the update; of a counted model, on the text it counted; of a
    mixture, on the slice that its weights are fitted on.
    """

    kind = "train"
    step: int
    loss_nats: float
    learning_rate: float | None = None
    grad_norm: float | None = None  # before clipping
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
    """An evaluation; `best` tells whether its loss is the lowest so far."""

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
    """A return to the checkpoint of `step`, to go on at a lower learning rate."""

    kind = "rollback"
    step: int
    reason: str
    rate_factor: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EndRecord(Record):
    """The end of a run; its last step is saved."""

    kind = "end"
    step: int


@dataclass(frozen=True, kw_only=True)
class TuneRecord(Record):
    """The weights of a mixture were fitted, on `chars` predictions. Not logged: see mixture.json."""

    kind = "tune"
    weights: Mapping[str, float]
    temperature: float
    loss_nats: float
    alone_nats: Mapping[str, float]
    chars: int


@dataclass(frozen=True, kw_only=True)
class CompileRecord(Record):
    """The model is about to be compiled. Not logged."""

    kind = "compile"


@dataclass(frozen=True, kw_only=True)
class NoteRecord(Record):
    """A remark for the user that is no error. Not logged."""

    kind = "note"
    text: str
