"""Ctrl-C in Python, or the stop button of a notebook: finish the step, save, and then raise."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from charlm.errors import Stopped


class Interrupt:
    """Whether an interrupt was asked for."""

    def __init__(self) -> None:
        self.asked = False
        self._urgent = False

    def __call__(self) -> bool:
        """Tell whether to stop."""
        return self.asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self._urgent:  # the second one does not wait
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While in this context, raise at once: there is nothing to save."""
        self._urgent = True
        try:
            yield
        finally:
            self._urgent = False


@contextmanager
def held_back() -> Iterator[Interrupt]:
    """Give what tells of a KeyboardInterrupt, which is raised when the context ends instead of at once.

    A second one is raised at once. In a thread other than the main one, or where another handler is
    set, nothing is held back.
    """
    interrupt = Interrupt()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupt
        return
    signal.signal(signal.SIGINT, interrupt._ask)
    try:
        yield interrupt
    except Stopped:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupt.asked:
        raise KeyboardInterrupt
