"""A request to stop is a flag that every long loop polls; a second one is obeyed at once.

SIGUSR1 is another flag: save, and go on.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from charlm.errors import Stopped, check_stop

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


_SAVE = getattr(signal, "SIGUSR1", None)


def load_torch() -> None:
    """Import torch, once it is known to fit; a signal meanwhile ends the process.

    Nothing is to be saved then, and imports do not bear exceptions: torch imports NumPy from C++,
    which swallows what a handler raises and leaves half a module behind.

    Raises:
        MachineError: This process may not have so much memory.
    """
    from charlm.config.size import check_room

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

    Attributes:
        received: The signal's number, or None.
        patient: Whether SIGINT again is no more than SIGINT: so where it ends less than the program.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.patient = False
        self._save = False
        self._urgent = False
        self._scratch: Path | None = None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a folder that goes when the block ends, or when a second signal ends the program."""
        with tempfile.TemporaryDirectory(prefix="charlm-") as name:
            self._scratch = Path(name)
            try:
                yield self._scratch
            finally:
                self._scratch = None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While in this context, a signal raises `Stopped` wherever the program is.

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

    def requested(self) -> bool:
        """Tell whether to stop."""
        return self.received is not None

    def save_requested(self) -> bool:
        """Tell whether to save now; once for each time that it is asked for."""
        asked, self._save = self._save, False
        return asked

    def forget(self, number: int) -> None:
        """Take this signal, if it came, as done: it is not to end the program."""
        if self.received == number:
            self.received = None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for SIGINT."""
        return 128 + (self.received or signal.SIGINT)

    def _handle_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        patient = self.patient and signal.SIGINT in (number, self.received)
        if self.received is not None and not patient:
            if self._scratch:
                shutil.rmtree(self._scratch, ignore_errors=True)
            os._exit(128 + number)  # the user insists: nothing half-written is ever read
        if self.received is None or number != signal.SIGINT:
            self.received = number
        if self._urgent:
            self._urgent = False
            raise Stopped
