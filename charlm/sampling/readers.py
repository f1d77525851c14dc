"""The fastest reader for a model.

StepReader      any model, any number of texts: its `step`
GPT2Reader      one text, on a CPU
ModernReader    one text, on a CPU
NGramReader     one text, on a CPU
MixtureReader   one text, on a CPU: the readers of its experts, joined
"""

from copy import copy

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from charlm.models import LanguageModel, MixtureModel
from charlm.models.mixture import FLOOR
from charlm.models.registry import kind_of
from charlm.sampling.choose import log_softmax
from charlm.sampling.reader import OneTextReader, Reader, StepReader, Weights, array


def reader_of(
    model: LanguageModel, weights: Weights = "float32", *, several: bool = False
) -> Reader:
    """Return the fastest reader for a new text.

    Its log-probabilities are those of `model.read` up to rounding: within 1e-4 on trained models.

    Args:
        model: In evaluation mode. A reader may copy weights, so later training does not reach it.
        weights: Precision of a GPT's matrices. `int8` is for one text on a CPU.
        several: Whether it will be forked to read many texts in parallel.
    """
    faster = None if several or model.device.type != "cpu" else kind_of(model).find("reader")
    return faster(model, weights) if faster else StepReader(model)


class MixtureReader(OneTextReader):
    """Reads one text with the readers of a mixture's experts: `charlm.models.mixture.join`.

    Args:
        model: In evaluation mode, on a CPU.
        weights: Precision of the matrices of its GPTs.
    """

    def __init__(self, model: MixtureModel, weights: Weights = "float32") -> None:
        self.readers = [reader_of(expert, weights) for expert in model.experts.values()]
        self.shares = array(model.weights)[:, None].astype(np.float64)
        self.temperature = float(model.temperature)
        self.linear = model.combine == "linear"

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""
        log_p = log_softmax(np.concatenate([reader.read(idx) for reader in self.readers]))
        log_p = np.maximum(log_p, FLOOR)
        if self.linear:
            with np.errstate(divide="ignore"):  # the logarithm of a weight of 0
                joined = np.logaddexp.reduce(np.log(self.shares) + log_p, axis=0)
        else:
            joined = (self.shares * log_p).sum(axis=0)
        return joined[None] / self.temperature  # type: ignore[no-any-return]

    def copy(self) -> "MixtureReader":
        """Return a copy that shares the weights."""
        other = copy(self)
        other.readers = [reader.fork() for reader in self.readers]
        return other
