"""Readers: characters in, the logits of the next one out. `reader_of` picks the fastest.

StepReader      any model, any number of texts: its `step`
MixtureReader   one text, on a CPU: the readers of its experts, joined
GPT2Reader, ModernReader, NGramReader   one text, on a CPU, in the files after this one
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.models import LanguageModel, MixtureModel
from charlm.models.gate import features_of
from charlm.models.mixture import FLOOR
from charlm.models.onednn import by_onednn
from charlm.models.registry import kind_of
from charlm.sampling.choose import log_softmax

Weights = Literal["float32", "int8"]


class Reader(ABC):
    """Reads B texts in parallel. A new reader is for one text, of which nothing has been read."""

    @abstractmethod
    def read(self, idx: Int[ndarray, "B n"]) -> Float[ndarray, "B V"]:
        """Read n >= 1 more characters of each text; return the logits of the next one."""

    def copy(self) -> "Reader":
        """Return a copy that shares the weights."""
        return copy(self)

    def fork(self, count: int = 1) -> "Reader":
        """Return a reader of `count` texts that all continue this one, which stays usable."""
        copies = [self.copy() for _ in range(count)]
        return SideBySide(copies) if count > 1 else copies[0]


def reader_of(
    model: LanguageModel, weights: Weights = "float32", *, several: bool = False
) -> Reader:
    """Return the fastest reader for a new text, or for `several` that are forked from it.

    Its log-probabilities are those of `model.read` up to rounding: within 1e-4 on trained models.
    `weights` is the precision of a GPT's matrices; `int8` is for one text on a CPU. A reader may
    copy the weights of the model, which is in evaluation mode: later training does not change them.
    """
    faster = None if several or model.device.type != "cpu" else kind_of(model).find("reader")
    return faster(model, weights) if faster else StepReader(model)


class StepReader(Reader):
    """Reads any number of texts with any model, from `state` on; None: the start of one text."""

    def __init__(self, model: LanguageModel, state: Any = None) -> None:
        self.model = by_onednn(model)
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


class SideBySide(Reader):
    """Reads several texts, each with a reader of its own."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers

    def read(self, idx: Int[ndarray, "B n"]) -> Float[ndarray, "B V"]:
        """Read n more characters of each text."""
        rows = zip(self.readers, idx[:, None], strict=True)
        return np.concatenate([reader.read(row) for reader, row in rows])

    def fork(self, count: int = 1) -> Reader:
        """Return a reader with `count` continuations of each text."""
        return SideBySide([reader.fork() for reader in self.readers for _ in range(count)])


class MixtureReader(Reader):
    """Reads one text with the readers of a mixture's experts: `charlm.models.mixture.join`."""

    def __init__(self, model: MixtureModel, weights: Weights = "float32") -> None:
        self.readers = [reader_of(expert, weights) for expert in model.experts.values()]
        self.shares = array(model.weights)[:, None].astype(np.float64)
        self.temperature = float(model.temperature)
        self.linear = model.combine == "linear"
        gate = model.gate
        self.gate = (array(gate.inner), array(gate.outer)) if gate is not None else None

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""
        log_p = log_softmax(np.concatenate([reader.read(idx) for reader in self.readers]))
        log_p = np.maximum(log_p, FLOOR)
        if self.gate is not None:
            inner, outer = self.gate
            hidden = np.maximum(inner[:, :-1] @ features_of(log_p, np) + inner[:, -1], 0.0)
            powers = self.shares[:, 0] / self.temperature + outer[:, :-1] @ hidden + outer[:, -1]
            return (powers @ log_p)[None]  # type: ignore[no-any-return]
        if self.linear:
            with np.errstate(divide="ignore"):  # the logarithm of a weight of 0
                joined = np.logaddexp.reduce(np.log(self.shares) + log_p, axis=0)
        else:
            joined = (self.shares * log_p).sum(axis=0)
        return joined[None] / self.temperature  # type: ignore[no-any-return]

    def copy(self) -> Reader:
        """Return a copy that shares the weights."""
        other = copy(self)
        other.readers = [reader.fork() for reader in self.readers]
        return other


def array(tensor: Tensor) -> Any:
    """Return an array that shares the tensor's memory."""
    return tensor.detach().numpy()
