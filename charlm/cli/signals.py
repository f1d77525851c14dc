"""The first signal to stop sets a flag that long loops check; a second one ends the process.

SIGUSR1 sets another flag: save a checkpoint and continue.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from charlm.errors import Stopped, check_stop

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

_STOP = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SAVE = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []


def load_torch(last_words: str = "") -> None:
    """Import torch, or raise MachineError if the memory limit is too low for it.

    A signal meanwhile ends the process: see `ended_at_once`. A handler must not raise during imports: torch
    imports NumPy from C++, which swallows the exception and leaves half a module behind.
    """
    from charlm.config.cores import let_waiting_threads_sleep
    from charlm.config.memory import check_room

    check_room()
    let_waiting_threads_sleep()
    with ended_at_once(last_words):
        import torch  # noqa: F401


@contextmanager
def ended_at_once(last_words: str = "") -> Iterator[None]:
    """While in this context, a signal to stop ends the process with its exit code: there is nothing to save.

    `last_words` are a line on stderr.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if last_words:
            os.write(2, f"{last_words}\n".encode())
        os._exit(128 + number)

    with _handled(_STOP, end):
        yield


def set_unless_ignored(number: int, handler: Handler) -> None:
    """Set the handler of a signal, unless whoever started this process set it to be ignored.

    `nohup` does that with SIGHUP, and a shell without job control with SIGINT in the background.
    """
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, handler)


@contextmanager
def _handled(numbers: list[int], handler: Handler) -> Iterator[None]:
    """Handle these signals while in this context; those that are ignored stay ignored.

    SIGUSR1 is ignored only until there is something to save: see `charlm.__main__`.
    """
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        set_handler = signal.signal if number in _SAVE else set_unless_ignored
        set_handler(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignals:
    """While in this context, SIGINT, SIGTERM and SIGHUP only set a flag, unless they are ignored.

    A `Stopped` that leaves the context ends the command with the signal's exit code.

    Attributes:
        received: The signal's number, or None.
        patient: Whether a second SIGINT is ignored, as where SIGINT only ends a part of the program.
        repeated: Whether every second signal is ignored, as where whoever started this process sends
            each on.
        parent: The process that must still be there, or this one is to stop; None: any.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.patient = False
        self.repeated = False
        self.parent: int | None = None
        self._save = False
        self._urgent = False
        self._scratch: Path | None = None
        self._handled = _handled([*_STOP, *_SAVE], self._handle)

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
        """While in this context, a signal raises `Stopped` at once, or at the latest when the context ends.

        For work that may wait for a pipe or a network and has nothing to save.
        """
        self._urgent = True
        try:
            check_stop(self.requested)  # it may have come just before
            yield
        finally:
            self._urgent = False
        check_stop(
            self.requested
        )  # C code that called back to Python may have dropped the exception

    def __enter__(self) -> "StopSignals":
        self._handled.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._handled.__exit__(None, None, None)
        if kind is Stopped:
            raise typer.Exit(self.exit_code) from None

    def requested(self) -> bool:
        """Tell whether to stop."""
        return self.received is not None or self.orphaned

    @property
    def orphaned(self) -> bool:
        """Whether the process that must still be there has ended."""
        return self.parent not in (None, os.getppid())

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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in _SAVE:
            self._save = True
            return
        patient = self.repeated or (self.patient and signal.SIGINT in (number, self.received))
        if self.received is not None and not patient:
            if self._scratch:
                shutil.rmtree(self._scratch, ignore_errors=True)
            os._exit(128 + number)  # safe: half-written files are never read
        if self.received is None or number != signal.SIGINT:
            self.received = number
        if self._urgent:
            self._urgent = False
            raise Stopped
