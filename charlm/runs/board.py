"""The log of a run once more, in the format of TensorBoard, in the run's folder `tensorboard`.

TensorBoard gets each step once, whatever happens: a run that is resumed begins a new file, which says
from which step on older files no longer count.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charlm.config import Config
from charlm.errors import MachineError, Setting
from charlm.runs.metrics import read_metrics
from charlm.storage.machine import is_gone

if TYPE_CHECKING:
    from tensorboard.summary.writer.record_writer import RecordWriter

EVENTS = "events.out.tfevents"  # TensorBoard knows its files by this name and reads them in order
VERSION = "brain.Event:2"
# What records of a kind hold, and the usual names of these numbers.
TAGS = {
    "train": {
        "loss_nats": "loss/train",
        "learning_rate": "learning_rate",
        "grad_norm": "grad_norm",
        "chars_per_second": "chars_per_second",
    },
    "eval": {"loss_nats": "loss/val"},
}
SAMPLE = "sample"


def check_board(config: Config) -> None:
    """Raise MachineError if a run asks for TensorBoard and its package is not installed."""
    if config.run.tensorboard and find_spec("tensorboard") is None:
        what = "the package tensorboard is missing"
        raise MachineError(
            Setting("run.tensorboard", True), what, "pip install 'charlm[tensorboard]'"
        )


class Board:
    """Writes the records of a run for TensorBoard.

    Args:
        folder: Where to; it is made if needed.
        log: The metrics.jsonl, with those records that stay valid. A new folder gets all of them.
        step: The step that the run continues from.
        seconds: Its wall time so far.
        remark: Called once if the disk refuses: the run goes on without it.
    """

    def __init__(
        self, folder: Path, log: Path, step: int, seconds: float, remark: Callable[[str], None]
    ) -> None:
        self.folder, self.log, self.remark = folder, log, remark
        self.began = time.time() - seconds
        self.file: RecordWriter | None = None
        with self._forgiving():
            folder.mkdir(exist_ok=True)
        self.go_on(step)

    def go_on(self, step: int) -> None:
        """Begin a file; of the older ones, only what is before `step` counts, and the log for it."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.close()
        with self._forgiving():
            before = sorted(path.name for path in self.folder.glob(f"{EVENTS}.*"))
            number = len(before)
            while (path := self.folder / f"{EVENTS}.{number:06d}.charlm").exists():
                number += 1
            self.file = RecordWriter(path.open("xb"))
            self._write(file_version=VERSION)
            first = step if before else 0
            # The server of TensorBoard takes the first start for no restart, so the first file has one.
            self._write(step=first, session_log=_start())
            for record in () if is_gone(self.log) else read_metrics(self.log):
                if record.get("step", -1) >= first:
                    self.add(record)
            self.file.flush()

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record, as in the log, if there is something to show in it."""
        from tensorboard.compat.proto import summary_pb2

        kind, values = record["kind"], []
        for key, tag in TAGS.get(kind, {}).items():
            if record.get(key) is not None:
                values.append(summary_pb2.Summary.Value(tag=tag, simple_value=record[key]))
        if kind == "sample":
            values += _text(record["text"])
        if values:
            with self._forgiving():
                when = self.began + record["seconds"]
                summary = summary_pb2.Summary(value=values)
                self._write(wall_time=when, step=record["step"], summary=summary)
                if kind != "train":
                    self.flush()

    def flush(self) -> None:
        """Hand all records to the system, so that TensorBoard sees them."""
        if self.file:
            with self._forgiving():
                self.file.flush()

    def close(self) -> None:
        """Close the file."""
        file, self.file = self.file, None
        if file:
            with self._forgiving():
                file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        if self.file:
            event = event_pb2.Event(**{"wall_time": time.time(), **fields})
            self.file.write(event.SerializeToString())

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Say that the disk refuses, once, and write no more."""
        try:
            yield
        except OSError as error:
            file, self.file = self.file, None
            with contextlib.suppress(OSError):
                if file:
                    file.close()
            self.remark(f"no more is written for TensorBoard: {self.folder}: {error.strerror}")


def _start() -> Any:
    """Return an event that says from its step on: what was written before is not valid."""
    from tensorboard.compat.proto import event_pb2

    return event_pb2.SessionLog(status=event_pb2.SessionLog.START)


def _text(text: str) -> list[Any]:
    """Return a sample; TensorBoard reads Markdown, in which indented lines are shown as they are."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    shown = "\n".join(f"    {line}" for line in text.split("\n"))
    return list(text_pb(SAMPLE, shown).value)
