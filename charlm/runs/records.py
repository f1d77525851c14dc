"""The events of a run, one record each; in metrics.jsonl, `kind` tells them apart."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from charlm.errors import CheckpointError
from charlm.runs.mixture import Fitted
from charlm.text.raw import for_json, from_json

_KINDS: dict[str, type["Record"]] = {}


@dataclass(frozen=True, kw_only=True)
class Record:
    """An event; `expert` is the expert of a mixture it belongs to. A record's `kind` never changes."""

    kind: ClassVar[str]
    expert: str | None = None

    def __init_subclass__(cls, kind: str = "") -> None:
        cls.kind = kind
        _KINDS[kind] = cls

    def as_json(self) -> dict[str, Any]:
        """Return the line of metrics.jsonl, without fields that are None and with the time last."""
        known = {key: value for key, value in vars(self).items() if value is not None}
        return {"kind": self.kind} | dict(sorted(known.items(), key=lambda kv: kv[0] == "seconds"))


@dataclass(frozen=True, kw_only=True)
class NoteRecord(Record, kind="note"):
    """A note for the user that is not an error. Not logged."""

    text: str


@dataclass(frozen=True, kw_only=True)
class CompileRecord(Record, kind="compile"):
    """The model is about to be compiled, which takes about `expected` seconds. Not logged."""

    expected: float
    cached: bool  # whether this machine compiled it before


@dataclass(frozen=True, kw_only=True)
class TuneRecord(Record, kind="tune"):
    """The weights of a mixture were fitted. Not logged: see mixture.json."""

    fitted: Fitted


@dataclass(frozen=True, kw_only=True)
class EndRecord(Record, kind="end"):
    """The end of a run; its last step is saved."""

    step: int


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """An event with a time: `seconds` of the run, without the time between a stop and a resume."""

    step: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainRecord(StepRecord, kind="train"):
    """A step.

    Its loss is that of its batch before the update; of a counted model, on the text it counted; of a
    mixture, on the slice that its weights are fitted on.
    """

    loss_nats: float
    learning_rate: float | None = None
    grad_norm: float | None = None  # before clipping
    chars_per_second: float | None = None
    weights: Mapping[str, float] | None = None
    temperature: float | None = None


@dataclass(frozen=True, kw_only=True)
class SkipRecord(StepRecord, kind="skip"):
    """A step whose update was left out, because its loss or gradient was not finite."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class EvalRecord(StepRecord, kind="eval"):
    """An evaluation; `best` tells whether its loss is the lowest so far."""

    split: str = "val"
    protocol: str = "windows"
    chars: int
    loss_nats: float
    best: bool


@dataclass(frozen=True, kw_only=True)
class SampleRecord(StepRecord, kind="sample"):
    """A sample; see `charlm.text.raw` for bytes that are not UTF-8."""

    text: str

    def as_json(self) -> dict[str, Any]:  # noqa: D102
        record = super().as_json()
        text, seconds = record.pop("text"), record.pop("seconds")
        return record | for_json("text", text) | {"seconds": seconds}


@dataclass(frozen=True, kw_only=True)
class SaveRecord(StepRecord, kind="save"):
    """A checkpoint. The record is written first, because the checkpoint records the log's length."""


@dataclass(frozen=True, kw_only=True)
class RollbackRecord(StepRecord, kind="rollback"):
    """A return to the checkpoint of `step`, to continue at a lower learning rate."""

    reason: str
    rate_factor: float


def record_of(line: Mapping[str, Any]) -> Record:
    """Return the record that a line of metrics.jsonl holds; fields that are not known are left out.

    Raises CheckpointError if its kind is unknown or a field is missing.
    """
    kind = _KINDS.get(str(line.get("kind")))
    if kind is None:
        raise CheckpointError("metrics.jsonl", f"unknown kind of record {line.get('kind')!r}")
    known = {field.name for field in fields(kind)}
    values = {key: value for key, value in line.items() if key in known}
    if "text" in values:
        values["text"] = from_json("text", line)
    try:
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(
            "metrics.jsonl", f"not a whole record of kind {kind.kind!r}"
        ) from error
