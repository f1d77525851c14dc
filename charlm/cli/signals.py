"""The first signal to stop sets a flag that long loops check; a second one ends the process.

SIGUSR1 sets another flag: save a checkpoint and go on.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import typer

from charlm.errors import Stopped, check_stop

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


_SAVE = getattr(signal, "SIGUSR1", None)


def load_torch() -> None:
    """Import torch, if the memory limit leaves room for it; a signal meanwhile ends the process.

    There is nothing to save yet, and a handler must not raise during imports: torch imports NumPy
    from C++, which swallows the exception and leaves half a module behind.

    Raises:
        MachineError: The memory limit of this process is too low.
    """
    from charlm.config.memory import check_room

    check_room()
    previous = {number: signal.signal(number, _leave) for number in _SIGNALS}
    try:
        import torch  # noqa: F401
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


class StopSignals:
    """While in this context, SIGINT, SIGTERM and SIGHUP only set a flag.

    A `Stopped` that leaves the context ends the command with the signal's exit code.

    Attributes:
        received: The signal's number, or None.
        patient: Whether a second SIGINT is ignored: set where SIGINT ends a part of the program only.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.patient = False
        self._save = False
        self._urgent = False
        self._scratch: Path | None = None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a folder that is removed when the block ends or a second signal ends the process."""
        with tempfile.TemporaryDirectory(prefix="charlm-") as name:
            self._scratch = Path(name)
            try:
                yield self._scratch
            finally:
                self._scratch = None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While in this context, a signal raises `Stopped` at once.

        For work that may wait for a pipe or a network and has nothing to save.
        """
        self._urgent = True
        try:
            check_stop(self.requested)  # it may have come just before
            yield
        finally:
            self._urgent = False

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        if _SAVE:
            self._previous[_SAVE] = signal.signal(_SAVE, self._handle_save)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is Stopped:
            raise typer.Exit(self.exit_code) from None

    def requested(self) -> bool:
        """Tell whether to stop."""
        return self.received is not None

    def save_requested(self) -> bool:
        """Tell whether to save now; true once for each request."""
        asked, self._save = self._save, False
        return asked

    def forget(self, number: int) -> None:
        """Forget this signal if it was received: it has been handled."""
        if self.received == number:
            self.received = None

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal ended: 130 for SIGINT."""
        return 128 + (self.received or signal.SIGINT)

    def _handle_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        patient = self.patient and signal.SIGINT in (number, self.received)
        if self.received is not None and not patient:
            if self._scratch:
                shutil.rmtree(self._scratch, ignore_errors=True)
            os._exit(128 + number)  # the user insists; nothing half-written is ever read
        if self.received is None or number != signal.SIGINT:
            self.received = number
        if self._urgent:
            self._urgent = False
            raise Stopped
