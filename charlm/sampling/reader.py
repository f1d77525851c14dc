"""Reading on: characters in, the logits of the next one out, whatever the model."""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.models.base import LanguageModel

Weights = Literal["float32", "int8"]


@runtime_checkable
class Reader(Protocol):
    """What reads texts on, B of them side by side."""

    def read(self, idx: Int[ndarray, "B n"]) -> Float[ndarray, "B V"]:
        """Read n more characters of each text, at least 1; return the logits of the next one."""
        ...


class StepReader:
    """Any model, any number of texts.

    Args:
        model: In evaluation mode.
        batch_size: Texts side by side (B).
    """

    def __init__(self, model: LanguageModel, batch_size: int) -> None:
        self.model = model
        with torch.no_grad():
            self.state = model.start(batch_size)

    def read(self, idx: Int[ndarray, "B n"]) -> Float[ndarray, "B V"]:
        """Read n more characters of each text."""
        with torch.no_grad():  # not inference mode, whose tensors nobody else may write into
            ids = torch.from_numpy(idx).to(self.model.device)
            logits, self.state = self.model.step(ids, self.state)
            return logits.float().cpu().numpy()


def array(tensor: Tensor) -> Any:
    """Return an array that shares the tensor's memory."""
    return tensor.detach().numpy()
