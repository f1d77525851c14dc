"""Readers: characters in, the logits of the next one out, for any model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.models.base import LanguageModel

Weights = Literal["float32", "int8"]


@runtime_checkable
class Reader(Protocol):
    """Reads B texts in parallel. A new reader is for one text, of which nothing has been read."""

    def read(self, idx: Int[ndarray, "B n"]) -> Float[ndarray, "B V"]:
        """Read n more characters of each text, at least 1; return the logits of the next one."""
        ...

    def fork(self, count: int = 1) -> "Reader":
        """Return a reader of `count` texts that all continue this one, which stays usable."""
        ...


class StepReader:
    """Reads any number of texts with any model.

    Args:
        model: In evaluation mode.
        state: The model's state; None: nothing has been read of one text.
    """

    def __init__(self, model: LanguageModel, state: Any = None) -> None:
        self.model = model
        with torch.no_grad():
            self.state = model.start(1) if state is None else state

    def read(self, idx: Int[ndarray, "B n"]) -> Float[ndarray, "B V"]:
        """Read n more characters of each text."""
        with torch.no_grad():  # inference mode would forbid later writes into its tensors
            ids = torch.from_numpy(idx).to(self.model.device)
            logits, self.state = self.model.step(ids, self.state)
            return logits.float().cpu().numpy()

    def fork(self, count: int = 1) -> Reader:
        """Return a reader of `count` texts that all continue this one."""
        with torch.no_grad():
            return StepReader(self.model, self.model.repeat(self.state, count))


class OneTextReader(ABC):
    """Base of the readers of one text."""

    @abstractmethod
    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""

    def copy(self) -> "OneTextReader":
        """Return a copy that shares the weights."""
        return copy(self)

    def fork(self, count: int = 1) -> Reader:
        """Return a reader of `count` texts that all continue this one."""
        copies = [self.copy() for _ in range(count)]
        return SideBySide(copies) if count > 1 else copies[0]


class SideBySide:
    """Reads several texts, each with a reader of its own.

    Args:
        readers: One per text.
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers

    def read(self, idx: Int[ndarray, "B n"]) -> Float[ndarray, "B V"]:
        """Read n more characters of each text."""
        rows = zip(self.readers, idx[:, None], strict=True)
        return np.concatenate([reader.read(row) for reader, row in rows])

    def fork(self, count: int = 1) -> Reader:
        """Return a reader with `count` continuations of each text."""
        return SideBySide([reader.fork() for reader in self.readers for _ in range(count)])


def array(tensor: Tensor) -> Any:
    """Return an array that shares the tensor's memory."""
    return tensor.detach().numpy()
