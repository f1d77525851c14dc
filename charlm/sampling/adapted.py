"""Sampling from a model that has learned from the prompt, as under the protocol `adaptive`."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from charlm.errors import check_stop
from charlm.models.adaptive import AdaptiveReader
from charlm.sampling.reader import Reader

PIECE = 1024  # characters read between two checks of whether to stop


class AdaptedReader(Reader):
    """Reads the prompt with a reader that may learn; its copies, which continue it, do not learn.

    A model that learned from its own samples would repeat them more and more.

    Args:
        reader: Reads the prompt.
        progress: Called with the number of characters read since the last call.
        should_stop: Called often; `read` raises Stopped if it returns true.
    """

    def __init__(
        self,
        reader: AdaptiveReader,
        progress: Callable[[int], None] = lambda chars: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.reader = reader
        self.progress, self.should_stop = progress, should_stop

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""
        for part in np.split(idx[0], range(PIECE, idx.shape[1], PIECE)):
            check_stop(self.should_stop)
            log_p = self.reader.go_on(part)
            self.progress(len(part))
        return log_p[-1:].numpy()

    def copy(self) -> Reader:
        """Return a reader that goes on from here and learns no more."""
        return AdaptedReader(self.reader.fork())
